"""One reading of the directory, indexed for the questions that calls ask."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from proxy.clock import to_iso
from proxy.errors import StoreUnavailable, TenantSuspended
from proxy.stores.directory import DirectoryRows, TenantKey
from proxy.stores.removal import FormerTenant
from proxy.tenants.identity import Identity
from proxy.tenants.overrides import Overrides
from proxy.tenants.plans import MoreEndpoint, Plan, Tenant, list_prices
from proxy.tenants.revoked import RevokedSessions
from proxy.tenants.terms import Terms, guest_terms, user_terms

#: The same object in later readings, as long as no tenant and no plan has changed.
Issuers = dict[str, list[tuple[str, Identity]]]


@dataclass(frozen=True)
class Snapshot:
    """One consistent reading of the directory, indexed for the questions that calls ask.

    Attributes:
        revoked: what is revoked since counts in an older reading too.
        newest_revocation: the number of the last one that is in it.
        suspended: since when tenants are suspended, by their ids.
        former: tenants that were deleted, the latest last.
        issuers: by the name of an issuer of identity tokens, which tenants accept it, and how.
        prices: of a second of compute time, in US dollars, by endpoint.
        granted: the tenants that were ever given a grant.
        overrides: what some subjects have instead of their plan.
    """

    version: int = 0
    plans: dict[str, Plan] = field(default_factory=dict)
    tenants: dict[str, Tenant] = field(default_factory=dict)
    keys: dict[str, TenantKey] = field(default_factory=dict)
    revoked: RevokedSessions = field(default_factory=RevokedSessions)
    newest_revocation: int = 0
    origins: frozenset[str] = frozenset()
    issuers: Issuers = field(default_factory=dict)
    prices: dict[str, float] = field(default_factory=dict)
    suspended: Mapping[str, float] = field(default_factory=dict)
    granted: frozenset[str] = frozenset()
    former: tuple[FormerTenant, ...] = ()
    _deleted: Mapping[str, float] = field(default_factory=dict, repr=False)
    overrides: Overrides = field(default_factory=Overrides)
    _terms: dict[tuple[str, str, bool], Terms] = field(default_factory=dict, repr=False, compare=False)

    def terms_of(self, tenant: Tenant, plan_name: str, *, is_guest: bool) -> Terms:
        """Return what binds a tenant's users, or its guests, on a plan that there is."""
        key = (tenant.id, plan_name, is_guest)
        if (terms := self._terms.get(key)) is None:
            terms = self._terms[key] = self._make_terms(tenant, self.plans[plan_name], is_guest)
        return terms

    def plan_of(self, tenant: Tenant, subject: str, given: str | None = None, *, is_guest: bool = False) -> str:
        """Return the name of a subject's plan: that of its override, else the one that is given, else its tenant's."""
        override = self.overrides.get(tenant.id, subject)
        if override is not None and override.plan is not None:
            return override.plan
        return given or (tenant.guest_plan if is_guest else tenant.plan)

    def subject_terms(self, tenant: Tenant, subject: str, plan_name: str, *, is_guest: bool) -> Terms:
        """Return what binds a subject on its plan, which there is."""
        override = self.overrides.get(tenant.id, subject)
        if override is None or override.limits is None:
            return self.terms_of(tenant, plan_name, is_guest=is_guest)
        return self._make_terms(tenant, override.limits.apply(self.plans[plan_name]), is_guest)

    def _make_terms(self, tenant: Tenant, plan: Plan, is_guest: bool) -> Terms:
        return guest_terms(plan, self.plans[tenant.plan], tenant.guests.share) if is_guest else user_terms(plan)

    def is_revoked(
        self, tenant: str, subject: str, session_id: str, issued_at: float, newest: int | None = None
    ) -> bool:
        """Return whether a session is revoked.

        Args:
            newest: the number of the newest revocation when it was minted; None if that is not known.
        """
        if issued_at <= self._deleted.get(tenant, float("-inf")):
            # It is of a tenant that had this name before.
            return True
        return self.revoked.cover(tenant, subject, session_id, issued_at, newest)

    def find_uncleared(self, tenant: str) -> FormerTenant | None:
        """Find the deleted tenant of which something is left under a name."""
        return next((one for one in self.former if one.id == tenant and not one.is_cleared), None)

    def has_records(self, name: str) -> bool:
        """Return whether a name is that of a tenant, or of the records of a deleted one."""
        return name in self.tenants or self.find_former(name) is not None

    def has_had(self, name: str) -> bool:
        """Return whether a tenant has a name, or had it, or the records of a deleted one have it."""
        return self.has_records(name) or any(one.id == name for one in self.former)

    def find_former(self, records: str) -> FormerTenant | None:
        """Find the deleted tenant whose records have a name."""
        return next((one for one in self.former if one.records == records), None)

    def describe(self, tenant: Tenant) -> dict[str, Any]:
        """Describe a tenant as the plan file has it, and since when it is suspended."""
        since = self.suspended.get(tenant.id)
        return {**tenant.model_dump(mode="json"), "suspended_at": None if since is None else to_iso(since)}

    def check_active(self, tenant: str) -> None:
        """Make sure that a tenant is not suspended.

        Raises:
            TenantSuspended: it is.
        """
        if tenant in self.suspended:
            raise TenantSuspended("The operator of this proxy has suspended the tenant; ask them to resume it.")

    def guest_host(self, origin: str) -> Tenant | None:
        """Find the tenant that lets in guests from pages of this origin."""
        hosts = (tenant for tenant in self.tenants.values() if tenant.guests.enabled)
        return next((tenant for tenant in hosts if origin in tenant.allowed_origins), None)


def build_snapshot(rows: DirectoryRows, revoked: RevokedSessions, now: float) -> Snapshot:
    """Index the rows of a reading that was made at a moment.

    Raises:
        StoreUnavailable: this version cannot read them.
    """
    try:
        plans = {name: Plan.model_validate(document) for name, document in rows.plans.items()}
        tenants = [Tenant.model_validate(document) for document in rows.tenants]
        prices = _read_prices(rows.endpoints)
        overrides = Overrides.read(rows.overrides, now)
    except ValidationError as problem:
        raise StoreUnavailable("The proxy's database contains a plan that this version cannot read.") from problem
    former = tuple(sorted(rows.former, key=lambda one: one.deleted_at))
    return Snapshot(
        version=rows.version,
        plans=plans,
        tenants={tenant.id: tenant for tenant in tenants},
        keys={key.id: key for key in rows.keys},
        revoked=revoked,
        newest_revocation=rows.newest,
        origins=frozenset(origin for tenant in tenants for origin in tenant.allowed_origins),
        issuers=_index_issuers(tenants),
        prices=prices,
        suspended=rows.suspended,
        granted=rows.granted,
        former=former,
        _deleted={one.id: one.deleted_at for one in former},
        overrides=overrides,
    )


def _read_prices(documents: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    endpoints = [MoreEndpoint.model_validate({"id": id_, **document}) for id_, document in documents.items()]
    return list_prices(endpoints)


def _index_issuers(tenants: Iterable[Tenant]) -> Issuers:
    issuers: Issuers = {}
    for tenant in tenants:
        for identity in tenant.identity:
            issuers.setdefault(identity.issuer, []).append((tenant.id, identity))
    return issuers
