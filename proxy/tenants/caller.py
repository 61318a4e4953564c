"""Who is asking: a user with a session, a guest, or a tenant with its key."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

from proxy.errors import InvalidToken, SessionRevoked, Unauthenticated
from proxy.stores.directory import TenantKey
from proxy.tenants.directory import Snapshot
from proxy.tenants.identity import Identity
from proxy.tenants.plans import Plan, Tenant
from proxy.tenants.terms import Terms

GUEST_PREFIX = "guest-"
#: How long an expired session still reads the jobs that were submitted before it expired.
GRACE_SECONDS = 600.0
_GUEST = re.compile(GUEST_PREFIX + "[0-9a-f]{16}")


class InputCeilings(NamedTuple):
    """What a session narrows the ceilings of its plan to; None for the plan's own."""

    max_tokens: int | None = None
    max_prompt_chars: int | None = None


PLAN_CEILINGS = InputCeilings()


class SessionQuota(NamedTuple):
    """How much of a unit a session has, in millionths, with all its renewals."""

    unit: str
    limit: int


@dataclass(frozen=True)
class Session:
    """What a verified token says. Times are seconds since 1970 UTC.

    Attributes:
        endpoints: what it was narrowed to; None for all that the plan allows.
        guest: whether it was given without a credential.
        issued_at: when it was minted. A renewal keeps that, and the id, so that a revocation counts for it too.
        ceilings: what else it was narrowed to.
        quotas: what it has of some units, beside what its subject and its tenant have; one a unit.
        tags: the words by which its tenant knows it.
        plan: the plan that the claims of an identity token gave it; None for the tenant's own.
        identity: of an identity token, the issuer by which it was verified.
        owner_expires_at: of an upload token, when the session that asked for it expires.
        newest_revocation: the number of the newest one when it was minted; None if that is not known.
        minted_for: of a renewed session, how many seconds it was minted for.
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
    minted_for: float | None = None
    signed_with: str = field(default="", compare=False, repr=False)
    ceilings: InputCeilings = PLAN_CEILINGS
    quotas: tuple[SessionQuota, ...] = ()
    tags: tuple[str, ...] = ()
    plan: str | None = None
    identity: Identity | None = field(default=None, compare=False, repr=False)
    newest_revocation: int | None = None

    @property
    def ttl_seconds(self) -> float:
        """How long it was minted for, and how long each renewal lasts at most."""
        return self.expires_at - self.issued_at if self.minted_for is None else self.minted_for


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
    def lasting_plan(self) -> str:
        """The name of the plan that it has while no override gives it another one."""
        if self.session is None:
            return self.tenant.plan
        return self.session.plan or (self.tenant.guest_plan if self.session.guest else self.tenant.plan)

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
        TenantSuspended: it would, but its tenant is suspended.
    """
    if caller.session is not None and caller.session.subject:
        find_tenant(caller.session, snapshot)
    else:
        find_key(caller.key_id or "", snapshot)


def find_tenant(session: Session, snapshot: Snapshot) -> Tenant:
    tenant = snapshot.tenants.get(session.tenant)
    if tenant is None or (session.guest and not tenant.guests.enabled):
        raise Unauthenticated("The session's tenant no longer accepts it.")
    if session.identity is not None and session.identity not in tenant.identity:
        raise InvalidToken("The tenant no longer accepts this token's issuer.")
    minted = (session.issued_at, session.newest_revocation)
    if snapshot.is_revoked(session.tenant, session.subject, session.id, *minted):
        raise SessionRevoked("The session was revoked; get a new one.")
    snapshot.check_active(tenant.id)
    return tenant


def find_key(key_id: str, snapshot: Snapshot) -> TenantKey:
    record = snapshot.keys.get(key_id)
    if record is None or record.tenant not in snapshot.tenants:
        raise Unauthenticated("The tenant key is no longer valid.")
    snapshot.check_active(record.tenant)
    return record
