"""Bring a database to this version with Alembic, and tell whether it is there.

Alembic is loaded only to migrate: a process that finds its database at this version starts without it, in half of the
time and a tenth less memory.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, inspect, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from proxy.errors import StoreUnavailable

if TYPE_CHECKING:
    from alembic.config import Config

_FOLDER = Path(__file__).with_name("migrations")


@cache
def newest() -> str:
    """The revision that this version of the program needs. Revisions are numbered, and their files begin with them."""
    return max(path.name.partition("_")[0] for path in (_FOLDER / "versions").glob("[0-9]*_*.py"))


async def upgrade(engine: AsyncEngine) -> str:
    """Run what is missing, in one transaction where the database can; return the revision reached.

    Raises:
        StoreUnavailable: the database was made by a version of the program that this one does not know.
    """
    from alembic.util import CommandError

    try:
        async with engine.begin() as connection:
            await connection.run_sync(_upgrade)
    except CommandError:
        raise StoreUnavailable("The proxy's database was made by a newer version; run that one.") from None
    return newest()


def _upgrade(connection: Connection) -> None:
    from alembic import command

    if connection.dialect.name == "postgresql":
        # Several replicas may start at once: whoever comes second waits here and then finds nothing to do.
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7287870001)")
    command.upgrade(config_for(connection), "head")


def config_for(connection: Connection) -> Config:
    """What Alembic needs to know to work on a connection."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


async def current(connection: AsyncConnection) -> str | None:
    """The revision that the database is at; None for an empty one."""
    return await connection.run_sync(_current)


def _current(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
    return revision
