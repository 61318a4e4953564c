"""Who is asking: a user with a session, a guest, or a tenant with its key."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from proxy.errors import SessionRevoked, Unauthenticated
from proxy.stores.directory import TenantKey
from proxy.tenants.directory import Snapshot
from proxy.tenants.plans import Plan, Tenant
from proxy.tenants.terms import Terms

GUEST_PREFIX = "guest-"
_GUEST = re.compile(GUEST_PREFIX + "[0-9a-f]{16}")


@dataclass(frozen=True)
class Session:
    """What a verified token says. Times are seconds since 1970 UTC.

    Attributes:
        endpoints: what it was narrowed to; None for all that the plan allows.
        guest: whether it was given without a credential.
        owner_expires_at: of an upload token, when the session that asked for it expires.
        signed_with: a digest of the secret that its token was signed with; '' if it was not read from one.
    """

    id: str
    tenant: str
    subject: str
    issued_at: float
    expires_at: float
    endpoints: tuple[str, ...] | None = None
    guest: bool = False
    owner_expires_at: float | None = None
    signed_with: str = field(default="", compare=False, repr=False)


@dataclass(frozen=True)
class Caller:
    """Who is asking, once authenticated.

    Attributes:
        subject: the end user; empty for the tenant itself, that came with its key.
        endpoints: what it may call.
        session: None for a tenant key.
    """

    tenant: Tenant
    subject: str
    plan_name: str
    terms: Terms
    endpoints: frozenset[str]
    session: Session | None = None
    key_id: str | None = None

    @property
    def plan(self) -> Plan:
        return self.terms.plan

    @property
    def narrowed_to(self) -> tuple[str, ...] | None:
        """The endpoints that its session was narrowed to; None for all of its plan."""
        return self.session.endpoints if self.session else None


def is_guest_name(subject: str) -> bool:
    # The prefix first: nearly all names end there, without a regular expression.
    return subject.startswith(GUEST_PREFIX) and _GUEST.fullmatch(subject) is not None


def check_not_revoked(caller: Caller, snapshot: Snapshot) -> None:
    """Make sure that what a caller presented still counts by a later reading of the directory.

    Raises:
        Unauthenticated: it does not (also SessionRevoked).
    """
    if caller.session is not None and caller.session.subject:
        find_tenant(caller.session, snapshot)
    else:
        find_key(caller.key_id or "", snapshot)


def find_tenant(session: Session, snapshot: Snapshot) -> Tenant:
    tenant = snapshot.tenants.get(session.tenant)
    if tenant is None or (session.guest and not tenant.guests.enabled):
        raise Unauthenticated("The session's tenant no longer accepts it.")
    if snapshot.is_revoked(session.tenant, session.subject, session.id, session.issued_at):
        raise SessionRevoked("The session was revoked; get a new one.")
    return tenant


def find_key(key_id: str, snapshot: Snapshot) -> TenantKey:
    record = snapshot.keys.get(key_id)
    if record is None or record.tenant not in snapshot.tenants:
        raise Unauthenticated("The tenant key is no longer valid.")
    return record
