"""Tenants, plans, keys and revocations as this process sees them, never older than `MAX_AGE_SECONDS`.

Every call needs them, so they are held in memory. A reading is cheap while nothing changed (one number is compared);
a change made anywhere counts here within five seconds. When the store cannot be asked any more, callers are refused:
a revocation could otherwise go unseen.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from pydantic import ValidationError

from proxy.clock import Clock
from proxy.errors import StoreUnavailable
from proxy.stores.directory import DirectoryRows, DirectoryStore, Revocation, TenantKey
from proxy.tenants.plans import Plan, PlanFile, Tenant
from proxy.tenants.revoked import RevokedSessions
from proxy.tenants.terms import Terms, guest_terms, user_terms

REFRESH_SECONDS = 2.0
MAX_AGE_SECONDS = 4.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """One consistent reading of the directory, indexed for the questions that calls ask.

    Attributes:
        revoked: what is revoked since counts in an older reading too.
        newest_revocation: the number of the last one that is in it.
    """

    version: int = 0
    plans: dict[str, Plan] = field(default_factory=dict)
    tenants: dict[str, Tenant] = field(default_factory=dict)
    keys: dict[str, TenantKey] = field(default_factory=dict)
    revoked: RevokedSessions = field(default_factory=RevokedSessions)
    newest_revocation: int = 0
    origins: frozenset[str] = frozenset()
    _terms: dict[tuple[str, str, bool], Terms] = field(default_factory=dict, repr=False, compare=False)

    def terms_of(self, tenant: Tenant, plan_name: str, *, is_guest: bool) -> Terms:
        """What binds a tenant's users, or its guests, on a plan that there is."""
        key = (tenant.id, plan_name, is_guest)
        if (terms := self._terms.get(key)) is None:
            terms = self._terms[key] = self._make_terms(tenant, self.plans[plan_name], is_guest)
        return terms

    def _make_terms(self, tenant: Tenant, plan: Plan, is_guest: bool) -> Terms:
        return guest_terms(plan, self.plans[tenant.plan], tenant.guests.share) if is_guest else user_terms(plan)

    def is_revoked(self, tenant: str, subject: str, session_id: str, issued_at: float) -> bool:
        return (tenant, subject, session_id, issued_at) in self.revoked

    def guest_host(self, origin: str) -> Tenant | None:
        """The tenant that lets in guests from pages of this origin."""
        hosts = (tenant for tenant in self.tenants.values() if tenant.guests.enabled)
        return next((tenant for tenant in hosts if origin in tenant.allowed_origins), None)


class Directory:
    """Hands out the current `Snapshot`, and writes changes through so that they count here at once.

    Attributes:
        is_open: whether there are snapshots. If not at first, callers are refused until `apply` has succeeded: which
            tenants there are is not known before.
    """

    def __init__(self, store: DirectoryStore, clock: Clock, *, is_open: bool = True) -> None:
        self._store = store
        self._clock = clock
        self.is_open = is_open
        self._snapshot = Snapshot()
        self._read_at = float("-inf")
        self._refreshing: asyncio.Task[None] | None = None
        self._listeners: list[Callable[[Snapshot], None]] = []

    def listen(self, listener: Callable[[Snapshot], None]) -> None:
        """Have every new reading shown to a listener as soon as it is there."""
        self._listeners.append(listener)

    @property
    def latest(self) -> Snapshot:
        """What was last read, however old: for questions that grant nothing, such as CORS."""
        return self._snapshot

    def young(self) -> Snapshot | None:
        """The reading, if it is young enough to decide by and need not be made again yet."""
        return self._snapshot if 0 <= self._clock.now() - self._read_at < REFRESH_SECONDS else None

    async def snapshot(self) -> Snapshot:
        """A reading that is young enough to decide by.

        Raises:
            StoreUnavailable: there is none, and the store does not answer.
        """
        age = self._clock.now() - self._read_at
        if not 0 <= age < REFRESH_SECONDS:
            refreshing = self._refresh_once()
            if not 0 <= age < MAX_AGE_SECONDS:
                # Shielded: other calls wait for the same reading, even if some are cancelled.
                await asyncio.shield(refreshing)
        return self._snapshot

    async def refresh(self) -> None:
        """Read what has changed, unless the last reading is young.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        if self.young() is None:
            await asyncio.shield(self._refresh_once())

    def _refresh_once(self) -> asyncio.Task[None]:
        if not self.is_open:
            raise StoreUnavailable("The proxy has not read its tenants and plans yet; try again shortly.")
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._refresh())
            self._refreshing.add_done_callback(_log_failure)
        return self._refreshing

    async def _refresh(self) -> None:
        if not self.is_open:
            return
        asked_at = self._clock.now()
        if await self._store.version() != self._snapshot.version:
            self._snapshot = snapshot = await self._read(asked_at)
            for listener in self._listeners:
                listener(snapshot)
        self._read_at = asked_at

    async def _read(self, now: float) -> Snapshot:
        """Read what was revoked since, and the rest if there were other changes. Each change is one version."""
        known = self._snapshot
        if known.version:
            new = await self._store.load_revocations(known.newest_revocation)
            if new.version - known.version == len(new.revocations):
                known.revoked.add(new.revocations, now)
                return replace(known, version=new.version, newest_revocation=new.newest)
        rows = await self._store.load(known.newest_revocation)
        revoked = RevokedSessions() if rows.are_all else known.revoked
        revoked.add(rows.revocations, now)
        return _build_snapshot(rows, revoked)

    async def apply(self, file: PlanFile) -> bool:
        """Make a plan file hold; False when it did already."""
        changed = await self._store.apply(
            {name: plan.model_dump(mode="json") for name, plan in file.plans.items()},
            [tenant.model_dump(mode="json") for tenant in file.tenants],
        )
        self.is_open = True
        await self._refresh()
        return changed

    async def add_key(self, key: TenantKey) -> None:
        await self._store.add_key(key)
        await self._refresh()

    async def revoke_key(self, key_id: str) -> bool:
        known = await self._store.revoke_key(key_id)
        await self._refresh()
        return known

    async def revoke(self, revocation: Revocation) -> None:
        await self._store.revoke(revocation)
        await self._refresh()

    async def touch_key(self, key_id: str, used_at: float) -> None:
        await self._store.touch_key(key_id, used_at)

    async def close(self) -> None:
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.gather(self._refreshing, return_exceptions=True)


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (failure := task.exception()) is not None:
        _log.warning("tenants and plans could not be read again: %s", type(failure).__name__)


def _build_snapshot(rows: DirectoryRows, revoked: RevokedSessions) -> Snapshot:
    try:
        plans = {name: Plan.model_validate(document) for name, document in rows.plans.items()}
        tenants = [Tenant.model_validate(document) for document in rows.tenants]
    except ValidationError as problem:
        raise StoreUnavailable("The proxy's database contains a plan that this version cannot read.") from problem
    return Snapshot(
        version=rows.version,
        plans=plans,
        tenants={tenant.id: tenant for tenant in tenants},
        keys={key.id: key for key in rows.keys},
        revoked=revoked,
        newest_revocation=rows.newest,
        origins=frozenset(origin for tenant in tenants for origin in tenant.allowed_origins),
    )
