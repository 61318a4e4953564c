"""Deletes tenants."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from functools import partial

from proxy.clock import Clock
from proxy.errors import NotFound
from proxy.stores.audit import Author
from proxy.stores.directory import DirectoryStore
from proxy.stores.removal import FormerTenant, RemovalStore
from proxy.tenants.directory import MAX_AGE_SECONDS, Directory

#: After this long, every process has read that a tenant is gone, and has let in its last call.
SPREAD_SECONDS = MAX_AGE_SECONDS + 1
#: The least rest after a transaction, and how many times as long as the transaction it is.
REST_SECONDS, REST_TIMES = 0.01, 2
#: Of the name, in that of the records: with what follows it, that is no longer than a name may be.
_KEPT_CHARACTERS = 46


class TenantRemoval:
    """Deletes a tenant: first its rights, and then, once no process has calls of it, what is kept under its name."""

    def __init__(self, directory: Directory, store: RemovalStore, clock: Clock) -> None:
        self._directory = directory
        self._store = store
        self._clock = clock

    async def delete_or_finish(self, name: str, *, by: Author) -> FormerTenant:
        """Delete a tenant, or finish a deletion of that name that was interrupted. Return when the name is free.

        Raises:
            NotFound: there is neither.
            StoreUnavailable: as `delete`.
        """
        snapshot = await self._directory.snapshot()
        if (former := snapshot.find_uncleared(name)) is not None:
            await self.finish(former)
            return former
        if name not in snapshot.tenants:
            raise NotFound("There is no such tenant.")
        return await self.delete(name, by=by)

    async def delete(self, tenant: str, *, by: Author) -> FormerTenant:
        """Delete a tenant. Return when its name is free.

        Raises:
            NotFound: there is none.
            StoreUnavailable: the database does not answer. Its rights may be gone; `finish` clears the rest.
        """
        records = f"{tenant[:_KEPT_CHARACTERS]}~{secrets.token_hex(8)}"
        former = FormerTenant(records, tenant, self._clock.now())
        if not await self._directory.delete_tenant(former, by=by):
            raise NotFound("There is no such tenant.")
        await self.finish(former)
        return former

    async def finish(self, former: FormerTenant) -> None:
        """Clear what a deleted tenant leaves."""
        await _clear(self._store, former)
        await self._directory.refresh_now()


async def finish_interrupted(directory: DirectoryStore, store: RemovalStore) -> None:
    """Clear what is left of deletions that were interrupted, so that a plan file that has their names can be applied.

    Raises:
        StoreUnavailable: the database does not answer.
    """
    for former in (await directory.load()).former:
        if not former.is_cleared:
            await _clear(store, former)


async def _clear(store: RemovalStore, former: FormerTenant) -> None:
    await asyncio.sleep(SPREAD_SECONDS)
    await repeat(partial(store.clear_some, former))


async def repeat(step: Callable[[], Awaitable[bool]]) -> None:
    """Do a transaction until it finds nothing more, with rests in which those of calls have their turn."""
    now = asyncio.get_running_loop().time
    began = now()
    while await step():
        await asyncio.sleep(max(REST_SECONDS, REST_TIMES * (now() - began)))
        began = now()
