"""Revocations that last as long as any session they concern."""

from __future__ import annotations

from proxy.stores.directory import Revocation
from proxy.tenants.caller import GRACE_SECONDS, Session
from proxy.tenants.plans import MAX_SESSION_SECONDS

#: For renewals by a process that has not read the revocation yet, and clocks that differ.
_MARGIN_SECONDS = 60.0


def revoke_own(session: Session, now: float) -> Revocation:
    """Revoke a session with all its renewals: none that there is now lasts longer than the session was minted for."""
    expires_at = max(session.expires_at, now + session.ttl_seconds + _MARGIN_SECONDS) + GRACE_SECONDS
    return Revocation(session.tenant, session.id, None, issued_before=now, expires_at=expires_at)


def revoke_by_name(tenant: str, session_id: str | None, subject: str | None, now: float) -> Revocation:
    """Revoke one session, or all of a subject, that an operator or a tenant names.

    What plan they were minted under is not known, so this outlives the longest session that any plan can give.
    """
    expires_at = now + MAX_SESSION_SECONDS + _MARGIN_SECONDS + GRACE_SECONDS
    return Revocation(tenant, session_id, subject, issued_before=now, expires_at=expires_at)
