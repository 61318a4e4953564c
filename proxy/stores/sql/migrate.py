"""Bring a database to this version with Alembic, and tell whether it is there.

Alembic is loaded only to migrate: a process that finds its database at this version starts without it, in half of the
time and a tenth less memory.

The first two digits of a revision are its release, and a migration within a release only adds: tables, and columns that
are null or have a default. So versions of one release run side by side on the newest schema. What takes away, or
changes what is there, begins a new release, before which all older versions are stopped.
"""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, MetaData, inspect, text

from proxy.stores.errors import FileUnusable, SchemaTooNew
from proxy.stores.sql.engine import AnyConnection
from proxy.stores.sql.schema import metadata

if TYPE_CHECKING:
    from alembic.config import Config

_log = logging.getLogger(__name__)
_FOLDER = Path(__file__).with_name("migrations")


@cache
def known_revisions() -> frozenset[str]:
    """List the revisions that lead to this version of the program: the numbers with which their files begin."""
    return frozenset(path.name.partition("_")[0] for path in (_FOLDER / "versions").glob("[0-9]*_*.py"))


@cache
def newest() -> str:
    """Return the revision that this version of the program needs, or one that has all of it."""
    return max(known_revisions())


def release_of(revision: str) -> str:
    return revision[:2]


async def upgrade(connection: AnyConnection) -> str:
    """Run what is missing in the connection's transaction; return the revision reached.

    A database that a newer version of this release made is left as it is.

    Raises:
        SchemaTooNew: the database was made by a version that this one cannot run beside.
        FileUnusable: a SQLite file is another program's.
    """
    from alembic.util import CommandError

    try:
        return await connection.run_sync(_upgrade)
    except CommandError:
        raise SchemaTooNew("The proxy's database belongs to a newer version; run that version.") from None


def _upgrade(connection: Connection) -> str:
    from alembic import command

    if connection.dialect.name == "postgresql":
        # Several may migrate at once: the others wait here and then find nothing to do. SQLite waits at its BEGIN.
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7287870001)")
    revision = _current(connection)
    if connection.dialect.name == "sqlite":
        _check_ours(connection, revision)
    if revision is not None and revision > newest() and _is_served(connection, revision):
        return revision
    command.upgrade(config_for(connection), "head")
    if revision != newest():
        fields = {"before": revision or "empty", "now": newest()}
        _log.info("database schema upgraded", extra={"log_fields": fields})
    return newest()


def _check_ours(connection: Connection, revision: str | None) -> None:
    """Leave another program's file as it is. A server's database may be shared, as each program has a schema there."""
    is_ours = not inspect(connection).get_table_names() if revision is None else revision.isdecimal()
    if not is_ours:
        raise FileUnusable("The proxy's database file belongs to another program: name another file.")


def config_for(connection: Connection) -> Config:
    """Make what Alembic needs to know to work on a connection."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


async def current(connection: AnyConnection) -> str | None:
    """Return the revision that the database is at; None for an empty one."""
    return await connection.run_sync(_current)


def _current(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
    return revision


async def is_served(connection: AnyConnection, revision: str) -> bool:
    """Return whether this version can use a database that is at another revision of the same release."""
    return await connection.run_sync(_is_served, revision)


def _is_served(connection: Connection, revision: str) -> bool:
    is_of_release = release_of(revision) == release_of(newest()) and (
        revision in known_revisions() or revision > newest()
    )
    return is_of_release and has_all(connection, metadata)


def has_all(connection: Connection, needed: MetaData) -> bool:
    """Return whether a database has these tables and columns, and no others that an insert must give a value for."""
    inspector = inspect(connection)
    there = set(inspector.get_table_names())
    for table in needed.tables.values():
        if table.name not in there:
            return False
        columns = {column["name"]: column for column in inspector.get_columns(table.name)}
        if not columns.keys() >= set(table.columns.keys()):
            return False
        more = (column for name, column in columns.items() if name not in table.columns)
        if any(not column["nullable"] and column["default"] is None for column in more):
            return False
    return True
