"""Connections to the database, made as this program needs them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import orjson
from sqlalchemy.engine import make_url

from proxy import libpq
from proxy.stores.sql.sqlite import SqliteConnection, SqliteEngine
from proxy.stores.sqlite.location import SqliteLocation

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from proxy.stores.sql.connection_timeout import ConnectionTimeout
    from proxy.stores.sql.ledger_connection import LedgerConnection

AnyConnection: TypeAlias = "SqliteConnection | AsyncConnection"
AnyEngine: TypeAlias = "SqliteEngine | AsyncEngine"
#: How columns of JSON are written and read.
_JSON: dict[str, Any] = {
    "json_serializer": lambda document: orjson.dumps(document).decode(),
    "json_deserializer": orjson.loads,
}
#: How long the write lock of a SQLite file is waited for, and a connection to a server that is not there yet.
LOCK_SECONDS = 5.0
#: How long a server may take to answer a statement: a frozen one must not freeze callers.
ANSWER_SECONDS = 10.0


def create_engine(
    database_url: str,
    lock_seconds: float = LOCK_SECONDS,
    location: SqliteLocation | None = None,
    answer_seconds: float | None = ANSWER_SECONDS,
) -> AnyEngine:
    """Make an engine for `sqlite:///…` or `postgresql://…`; it connects lazily.

    Args:
        lock_seconds: how long to wait for a database that others keep busy.
        location: of a SQLite file, if it is shared with other connections.
        answer_seconds: how long PostgreSQL may take for a statement; None for as long as it needs.
    """
    if database_url.startswith("sqlite:"):
        return SqliteEngine(location or sqlite_location(database_url), lock_seconds, **_JSON)
    # Imported here: a proxy on SQLite does without it.
    from proxy.stores.sql.postgres import create_postgres_engine

    return create_postgres_engine(libpq.parse(database_url), lock_seconds, answer_seconds, **_JSON)


def connect_ledger(engine: AnyEngine, timeout: ConnectionTimeout) -> LedgerConnection:
    """Make the ledger's connection to PostgreSQL, which opens others beside it where it must."""
    from proxy.stores.sql.ledger_connection import LedgerConnection

    assert not isinstance(engine, SqliteEngine)
    return LedgerConnection(engine, timeout)


def sqlite_location(database_url: str, *, is_durable: bool = False) -> SqliteLocation:
    return SqliteLocation(make_url(database_url).database or "", is_durable=is_durable)
