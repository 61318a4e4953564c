"""Revocations that last as long as any session they concern."""

from __future__ import annotations

from proxy.stores.directory import Revocation
from proxy.tenants.caller import Session
from proxy.tenants.plans import MAX_SESSION_SECONDS


def revoke_own(session: Session, now: float) -> Revocation:
    """Revoke a session whose end is known."""
    return Revocation(session.tenant, session.id, None, issued_before=now, expires_at=session.expires_at)


def revoke_by_name(tenant: str, session_id: str | None, subject: str | None, now: float) -> Revocation:
    """Revoke one session, or all of a subject, that an operator names.

    What plan they were minted under is not known, so this outlives the longest session that any plan can give.
    """
    return Revocation(tenant, session_id, subject, issued_before=now, expires_at=now + MAX_SESSION_SECONDS)
