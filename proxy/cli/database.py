"""Access of commands to the database that the settings name; a server may be running."""

from __future__ import annotations

import asyncio
import getpass
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from proxy import settings
from proxy.cli.output import refuse, refuse_on_error, say
from proxy.clock import SystemClock
from proxy.errors import ProxyError
from proxy.playground.registry import RunningDev, find_running
from proxy.redaction import Redactor
from proxy.settings import LogSettings, StoreSettings
from proxy.stores.audit import Author
from proxy.stores.sql import SqlStores
from proxy.telemetry.logs import configure_logging
from proxy.tenants.directory import Directory, Snapshot
from proxy.tenants.plan_file import read_file
from proxy.tenants.plans import Tenant
from proxy.tenants.removal import finish_interrupted

T = TypeVar("T")
DATABASE = "PROXY_DATABASE_URL"
TenantId = Annotated[str, typer.Argument(help="The tenant's id.")]


def run_on_database(
    run: Callable[[SqlStores, Directory], Awaitable[T]], *, prepare: bool = True, is_read_only: bool = False
) -> T:
    """Run a function on the database that the settings name; a server may be running.

    Args:
        prepare: whether the database is made, brought to this version and given the tenants of the plan file before.
        is_read_only: do none of this, and refuse a database that is not there, or not at this version.
    """
    stores_settings = read_store_settings()
    if is_read_only:
        _check_there(stores_settings)
    configure_logging(LogSettings("text", "warning"), Redactor(settings.secrets_in(stores_settings)))

    async def work() -> T:
        stores = SqlStores.of(stores_settings)
        try:
            if is_read_only:
                await stores.check_revision()
            elif prepare:
                await stores.prepare()
                await _ensure_tenants(stores)
            return await run(stores, Directory(stores.directory, SystemClock()))
        finally:
            await stores.close()

    try:
        return asyncio.run(work())
    except ProxyError as error:
        refuse([error.message])


def read_store_settings() -> StoreSettings:
    """Read where the database is, or print what is wrong and exit."""
    return refuse_on_error(lambda: settings.read_stores({**os.environ, **_database_of_dev()}))


def _check_there(stores_settings: StoreSettings) -> None:
    """Refuse a SQLite file that is not there: to open it would make it."""
    path = stores_settings.sqlite_path
    if path is not None and not Path(path).exists():
        refuse([f"{DATABASE}: there is no database yet; make it with: fal-proxy migrate"])


def is_set(name: str) -> bool:
    """Return whether the environment has a setting, itself or in a file."""
    return any(os.environ.get(one, "").strip() for one in (name, f"{name}_FILE"))


def find_dev() -> RunningDev | None:
    """Find the running `dev` whose database to use: no setting names another one, and the default has no file."""
    if is_set(DATABASE) or Path(settings.DEFAULTS[DATABASE].removeprefix("sqlite:///")).exists():
        return None
    running = find_running(str(Path.cwd()))
    if len(running) > 1:
        each = "; ".join(f"{dev.database_url} (dev at {dev.url})" for dev in running)
        refuse([f"{DATABASE}: several 'dev' are running; set it to the database of one: {each}"])
    return running[0] if running else None


def _database_of_dev() -> dict[str, str]:
    dev = find_dev()
    if dev is None:
        return {}
    say(f"using the database of the running 'dev' at {dev.url}")
    return {DATABASE: dev.database_url}


async def _ensure_tenants(stores: SqlStores) -> None:
    """Apply the plan file as the server does, so that commands find the same tenants before its first start."""
    directory = Directory(stores.directory, SystemClock())
    if (await directory.snapshot()).tenants:
        # Later it would undo what 'tenants apply' did with another file.
        return
    path = os.environ.get("PROXY_CONFIG", "").strip()
    file, _ = refuse_on_error(lambda: read_file(settings.existing_file(path) if path else None))
    await finish_interrupted(stores.directory, stores.removal)
    await directory.apply(file, by=command_author())


def command_author() -> Author:
    """Return the author of what a command changes: the system's user."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        # A container's user need not have a name.
        user = str(os.getuid())
    name = "".join(character for character in user[:64] if character.isprintable())
    return Author.of_process(f"command:{name}", SystemClock().now())


async def read_snapshot(_stores: SqlStores, directory: Directory) -> Snapshot:
    return await directory.snapshot()


def find_tenant(snapshot: Snapshot, tenant: str) -> Tenant:
    """Find the tenant with an id, or say which there are and exit."""
    if tenant not in snapshot.tenants:
        refuse([f"there is no tenant {tenant[:100]}; there are: {', '.join(sorted(snapshot.tenants)) or 'none'}"])
    return snapshot.tenants[tenant]


def check_tenant(snapshot: Snapshot, tenant: str | None) -> None:
    """Refuse an id that no tenant has or had: a list of its entries would be empty."""
    if tenant is not None and not snapshot.has_had(tenant):
        find_tenant(snapshot, tenant)
