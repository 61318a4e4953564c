"""Tenants, plans, keys and revocations as this process sees them, never older than `MAX_AGE_SECONDS`.

Every call needs them, so they are held in memory. A reading is cheap while nothing changed (one number is compared);
a change made anywhere takes effect here within five seconds. While the store does not answer, callers are refused:
a revocation could otherwise be missed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from proxy.clock import Clock
from proxy.errors import StoreUnavailable
from proxy.stores.audit import Author, Change
from proxy.stores.directory import DirectoryStore, Revocation, TenantKey
from proxy.stores.removal import FormerTenant
from proxy.tenants.plans import PlanFile
from proxy.tenants.prices import find_unpriced
from proxy.tenants.revoked import RevokedSessions
from proxy.tenants.snapshot import Issuers as Issuers
from proxy.tenants.snapshot import Snapshot as Snapshot
from proxy.tenants.snapshot import build_snapshot

REFRESH_SECONDS = 2.0
MAX_AGE_SECONDS = 4.0
#: Plans that are named in one line of the log.
MOST_LOGGED = 20
_Documents = dict[str, dict[str, Any]]
_log = logging.getLogger(__name__)


class Directory:
    """Gives the current `Snapshot`, and writes changes through so that they take effect here at once.

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
        """Call a listener with every new reading."""
        self._listeners.append(listener)

    @property
    def latest(self) -> Snapshot:
        """What was last read, however old: for questions that grant nothing, such as CORS."""
        return self._snapshot

    def young(self) -> Snapshot | None:
        """Return the reading, if it is young enough to decide by. A next one that is due begins beside the caller.

        Under load a reading takes hundreds of milliseconds, as its thread waits for the interpreter again and again.
        """
        age = self._age()
        if not 0 <= age < MAX_AGE_SECONDS:
            return None
        if age >= REFRESH_SECONDS:
            self._refresh_once()
        return self._snapshot

    async def snapshot(self) -> Snapshot:
        """Return a reading that is young enough to decide by.

        Raises:
            StoreUnavailable: there is none, and the store does not answer.
        """
        if self.young() is None:
            # Shielded: other calls wait for the same reading, even if some are cancelled.
            await asyncio.shield(self._refresh_once())
        return self._snapshot

    async def read_now(self) -> Snapshot:
        """Read what any process had written before this call.

        Raises:
            StoreUnavailable: as `snapshot`, or the store does not answer now.
        """
        await self.snapshot()
        await self._refresh()
        return self._snapshot

    async def refresh(self) -> None:
        """Read what has changed, if the next reading is due.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        if not 0 <= self._age() < REFRESH_SECONDS:
            await asyncio.shield(self._refresh_once())

    def _age(self) -> float:
        """Return the seconds since the last reading; less than 0 if the clock was set back."""
        return self._clock.now() - self._read_at

    async def refresh_now(self) -> None:
        """Read what has changed, however young the last reading is: for a change that was written past this one."""
        await self._refresh()

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
        known = self._snapshot
        if await self._store.version() != known.version:
            self._show(await self._read(asked_at))
        elif known.overrides.end_at <= asked_at:
            self._show(replace(known, overrides=known.overrides.drop_ended(asked_at)))
        self._read_at = asked_at

    def _show(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        for listener in self._listeners:
            listener(snapshot)

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
        snapshot = build_snapshot(rows, revoked, now)
        _log_unpriced(snapshot)
        return snapshot

    async def apply(self, file: PlanFile, *, by: Author) -> bool:
        """Apply a plan file; False if it changes nothing."""
        changed = await self._store.apply(*_list_documents(file), by=by)
        self.is_open = True
        await self._refresh()
        return changed

    async def preview(self, file: PlanFile) -> Sequence[Change]:
        """List what `apply` would change, and change nothing.

        Raises:
            StoreUnavailable: as `apply`.
        """
        return await self._store.preview(*_list_documents(file))

    async def suspend(self, tenant: str, *, by: Author) -> None:
        """Refuse all that a tenant, its users and its guests ask, until it is resumed."""
        await self._store.set_suspended(tenant, self._clock.now(), by=by)
        await self._refresh()

    async def resume(self, tenant: str, *, by: Author) -> None:
        await self._store.set_suspended(tenant, None, by=by)
        await self._refresh()

    async def delete_tenant(self, former: FormerTenant, *, by: Author) -> bool:
        """Delete a tenant and its keys: none of its credentials counts any more. False if there is none."""
        is_deleted = await self._store.delete_tenant(former, by=by)
        await self._refresh()
        return is_deleted

    async def add_key(self, key: TenantKey, *, by: Author) -> None:
        await self._store.add_key(key, by=by)
        await self._refresh()

    async def revoke_key(self, key_id: str, *, by: Author) -> bool:
        known = await self._store.revoke_key(key_id, by=by)
        await self._refresh()
        return known

    async def revoke(self, revocation: Revocation, *, by: Author | None) -> None:
        await self._store.revoke(revocation, by=by)
        await self._refresh()

    async def touch_key(self, key_id: str, used_at: float) -> None:
        await self._store.touch_key(key_id, used_at)

    async def close(self) -> None:
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.gather(self._refreshing, return_exceptions=True)


def _list_documents(file: PlanFile) -> tuple[_Documents, list[dict[str, Any]], _Documents]:
    """List the plans, tenants and endpoints of a file, as they are stored."""
    return (
        {name: plan.model_dump(mode="json") for name, plan in file.plans.items()},
        [tenant.model_dump(mode="json") for tenant in file.tenants],
        {endpoint: {"price_per_compute_second": price} for endpoint, price in file.prices.items()},
    )


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (failure := task.exception()) is not None:
        _log.warning("directory not refreshed", extra={"log_fields": {"problem": type(failure).__name__}})


def _log_unpriced(snapshot: Snapshot) -> None:
    """Log quotas of usd that cannot count: a version before this one let a plan have them without prices."""
    if pairs := sorted(find_unpriced(snapshot.plans, snapshot.tenants.values(), snapshot.prices)):
        listed = ", ".join(f"{plan}: {endpoint}" for plan, endpoint in pairs[:MOST_LOGGED])
        _log.error("quotas of usd without prices", extra={"log_fields": {"number": len(pairs), "plans": listed}})
