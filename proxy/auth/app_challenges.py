"""Challenges for apps, which their platform signs together with what it says of the app.

Nothing is stored of a challenge: it carries its end, and a code that only this proxy can make, for one kind of proof,
one tenant and one origin. All of it is base64 for URLs, as Google Play wants a nonce.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode

from proxy.auth.proof_of_work import EXPIRY_SECONDS
from proxy.auth.sessions import CHALLENGE_SALT, Sessions
from proxy.clock import Clock
from proxy.errors import ProofInvalid

#: Of the end, of what no two challenges share, and of the code: base64 of these needs no padding.
_END_BYTES, _RANDOM_BYTES, _CODE_BYTES = 8, 20, 32
LENGTH = (_END_BYTES + _RANDOM_BYTES + _CODE_BYTES) * 4 // 3


class AppChallenges:
    """Makes challenges, and knows them again."""

    def __init__(self, sessions: Sessions, clock: Clock) -> None:
        self._sessions = sessions
        self._clock = clock

    def make(self, kind: str, tenant: str, origin: str) -> tuple[str, int]:
        """Make a challenge for one kind of proof, and say when it ends."""
        expires_at = int(self._clock.now()) + EXPIRY_SECONDS
        head = expires_at.to_bytes(_END_BYTES) + secrets.token_bytes(_RANDOM_BYTES)
        code = _code(self._sessions.derive_keys(CHALLENGE_SALT)[0], head, kind, tenant, origin)
        return urlsafe_b64encode(head + code).decode(), expires_at

    def check(self, text: str, kind: str, tenant: str, origin: str) -> None:
        """Check that a text is such a challenge, and in time.

        Raises:
            ProofInvalid: it is not.
        """
        given = urlsafe_b64decode(text) if len(text) == LENGTH and text.isascii() else b""
        head, code = given[:-_CODE_BYTES], given[-_CODE_BYTES:]
        keys = self._sessions.derive_keys(CHALLENGE_SALT)
        # Decoding leaves out what is no base64: a challenge has one spelling.
        if urlsafe_b64encode(given).decode() != text or not any(
            hmac.compare_digest(_code(key, head, kind, tenant, origin), code) for key in keys
        ):
            raise ProofInvalid("The challenge is not one of this proxy's for this tenant and this kind; get a new one.")
        if int.from_bytes(head[:_END_BYTES]) <= self._clock.now():
            raise ProofInvalid("The challenge has expired; get a new one.")


def _code(key: bytes, head: bytes, *bound_to: str) -> bytes:
    # ALTCHA's challenges are signed with the same key; they begin with a brace.
    return hmac.digest(key, b"\0".join([b"app", *(text.encode() for text in bound_to), head]), hashlib.sha256)
