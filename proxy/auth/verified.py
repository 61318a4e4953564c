"""A verified identity token, and when it ends."""

from __future__ import annotations

from typing import NamedTuple

from proxy.auth.issuer_keys import KeySource
from proxy.errors import InvalidToken, SessionExpired
from proxy.tenants.caller import Session
from proxy.tenants.key_set import KeySet

#: For clocks that differ.
LEEWAY_SECONDS = 60


class TokenExpired(InvalidToken, SessionExpired):
    """The token's time is over. For reading jobs, the grace period of sessions holds."""


class Verified(NamedTuple):
    """What a token says, and by which keys it was verified."""

    session: Session
    source: KeySource
    keys: KeySet

    def has_expired(self, now: float, grace_seconds: float) -> bool:
        return self.session.expires_at + max(LEEWAY_SECONDS, grace_seconds) <= now
