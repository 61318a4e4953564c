"""Access of commands to the database that the settings name; a server may be running."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

import typer

from proxy import settings
from proxy.cli.output import refuse, refuse_on_error
from proxy.clock import SystemClock
from proxy.errors import ProxyError
from proxy.redaction import Redactor
from proxy.settings import LogSettings
from proxy.stores.sql import SqlStores
from proxy.telemetry.logs import configure_logging
from proxy.tenants.directory import Directory, Snapshot
from proxy.tenants.plan_file import read_file
from proxy.tenants.plans import Tenant

T = TypeVar("T")
TenantId = Annotated[str, typer.Argument(help="The tenant's id.")]


def run_on_database(run: Callable[[SqlStores, Directory], Awaitable[T]], *, prepare: bool = True) -> T:
    """Run a function on the database that the settings name; a server may be running."""
    stores_settings = refuse_on_error(lambda: settings.read_stores(os.environ))
    configure_logging(LogSettings("text", "warning"), Redactor(settings.secrets_in(stores_settings)))

    async def work() -> T:
        stores = SqlStores.of(stores_settings)
        try:
            if prepare:
                await stores.prepare()
                await _ensure_tenants(stores)
            return await run(stores, Directory(stores.directory, SystemClock()))
        finally:
            await stores.close()

    try:
        return asyncio.run(work())
    except ProxyError as error:
        refuse([error.message])


async def _ensure_tenants(stores: SqlStores) -> None:
    """Apply the plan file as the server does, so that commands find the same tenants before its first start."""
    directory = Directory(stores.directory, SystemClock())
    if (await directory.snapshot()).tenants:
        # Later it would undo what 'tenants apply' did with another file.
        return
    path = os.environ.get("PROXY_CONFIG", "").strip()
    file, _ = refuse_on_error(lambda: read_file(settings.existing_file(path) if path else None))
    await directory.apply(file)


async def read_snapshot(_stores: SqlStores, directory: Directory) -> Snapshot:
    return await directory.snapshot()


def find_tenant(snapshot: Snapshot, tenant: str) -> Tenant:
    if tenant not in snapshot.tenants:
        refuse([f"there is no tenant {tenant}; there are: {', '.join(sorted(snapshot.tenants)) or 'none'}"])
    return snapshot.tenants[tenant]
