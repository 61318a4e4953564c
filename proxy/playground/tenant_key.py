"""The tenant key that `dev` prints."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

from proxy.clock import SystemClock
from proxy.errors import ProxyError
from proxy.settings import Settings, SettingsError
from proxy.stores.audit import Author
from proxy.stores.sql import SqlStores
from proxy.tenants import keys
from proxy.tenants.directory import Directory
from proxy.tenants.plans import PlanFile


@contextmanager
def tenant_key(settings: Settings, file: PlanFile, tenant: str) -> Iterator[str]:
    """Make a key of a tenant that works until the block ends.

    Raises:
        SettingsError: the database cannot be used.
    """
    text, record = keys.make(tenant, "dev", SystemClock().now())

    async def add(directory: Directory) -> None:
        await directory.apply(file, by=_author())
        await directory.add_key(record, by=_author())

    try:
        asyncio.run(_on_database(settings, add))
    except ProxyError as error:
        raise SettingsError([f"PROXY_DATABASE_URL: {error.message}"]) from None
    try:
        yield text
    finally:
        # The database may be one that outlives the trial.
        with suppress(ProxyError):
            asyncio.run(_on_database(settings, lambda directory: directory.revoke_key(record.id, by=_author())))


def _author() -> Author:
    return Author.of_process("server:dev", SystemClock().now())


async def _on_database(settings: Settings, work: Callable[[Directory], Awaitable[object]]) -> None:
    stores = SqlStores.of(settings.stores)
    try:
        await stores.prepare()
        await work(Directory(stores.directory, SystemClock()))
    finally:
        await stores.close()
