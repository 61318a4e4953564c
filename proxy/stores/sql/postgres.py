"""Connections to PostgreSQL: through a transaction pooler too, and away from a server that takes no more writes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import asyncpg  # type: ignore[import-untyped]
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.util.concurrency import await_

from proxy.libpq import ConnectionUrl, split_hosts
from proxy.stores.sql.connection_timeout import MOST_TIMES

#: How long a connection is waited for at the most: until one is free, answers, or is opened.
_CONNECT_SECONDS = 5.0
#: A connection that answered less than this ago is not asked again. While callers queue for connections, asking would
#: take as long as what they came for.
FRESH_SECONDS = 0.25
#: Parse each statement where it runs, and without a name: the transaction after may run on another server connection,
#: which does not know the name, or knows it from another client.
_UNPREPARED: dict[str, Any] = {
    "statement_cache_size": 0,
    "prepared_statement_cache_size": 0,
    "prepared_statement_name_func": str,
}
#: The server takes no writes any more, or no statements at all: read_only_sql_transaction, admin_shutdown,
#: crash_shutdown, cannot_connect_now. The next connection leads to the new primary once the name in the URL does.
_LEFT_BEHIND = frozenset(["25006", "57P01", "57P02", "57P03"])
#: A statement's name is not known, or was known already: only a pooler can have done that.
_NAME_LOST = frozenset(["26000", "42P05"])
#: The server is not there, silent, starting or stopping, or not of the kind that `target_session_attrs` names.
_NEXT_SERVER = (OSError, asyncpg.CannotConnectNowError, asyncpg.exceptions.TargetServerAttributeNotMatched)

registry.register("postgresql.proxied", __name__, "PostgresDialect")


class _Connection(asyncpg.Connection):  # type: ignore[misc]
    """A connection that remembers where it leads, and when the server last answered it."""

    url: str
    opened_at: float
    answered_at = float("-inf")
    #: asyncpg's own: the transaction that is open.
    _top_xact: Any

    def transaction(self, **options: Any) -> Any:
        """Begin a transaction, whatever became of the last one.

        asyncpg remembers one whose BEGIN failed, as if it were open, and every later one of the connection would fail.
        """
        if self._top_xact is not None and not self.is_in_transaction():
            self._top_xact = None
        return super().transaction(**options)


class PostgresDialect(PGDialect_asyncpg):
    """Connects by the driver's own reading of a URL: SQLAlchemy would pass libpq's parameters on as they are.

    Poolers that give a connection another server connection for every transaction (PgBouncer, Supavisor, PgCat,
    Odyssey) are recognized: they invent the process id that a server tells a new connection. Without one, prepared
    statements are kept, which saves a round trip for each.

    Attributes:
        wait_seconds: how long a connection may be waited for.
    """

    supports_statement_cache = True

    def __init__(self, connection_url: ConnectionUrl, **options: Any) -> None:
        super().__init__(**options)  # type: ignore[no-untyped-call]
        #: One for each server; the one that was connected to last is tried first, and one that is silent last.
        self._urls = split_hosts(connection_url.url)
        self.wait_seconds = max(_CONNECT_SECONDS, len(self._urls) * _server_seconds(connection_url))
        # An open connection has a share of the time too.
        self._ping_seconds = _CONNECT_SECONDS / (len(self._urls) + 1)
        # Until a connection has shown it: what a pooler can stand, any server can.
        self._is_pooled = True
        self._may_be_direct = not connection_url.is_pooled
        #: Connections that were opened before are given up.
        self._left_at = float("-inf")

    @property
    def is_pooled(self) -> bool:
        """Whether a statement can come to another server than the one before it, unless a transaction holds both."""
        return self._is_pooled

    def connect(self, *_arguments: Any, **options: Any) -> Any:
        dbapi: Any = self.loaded_dbapi
        while True:
            is_pooled = self._is_pooled
            more = _UNPREPARED if is_pooled else {}
            connection = dbapi.connect(async_creator_fn=self._open, **options, **more)
            if self._is_pooled == is_pooled:
                return connection
            self.do_terminate(connection)

    def is_disconnect(self, e: Any, connection: Any, cursor: Any) -> bool:
        """Return whether an error shows a connection to be useless; give all that are open up if it does."""
        state = getattr(e, "sqlstate", None)
        if state in _NAME_LOST:
            self._keep_nothing_prepared()
        if state in _NAME_LOST or state in _LEFT_BEHIND:
            return True
        return bool(super().is_disconnect(e, connection, cursor))  # type: ignore[no-untyped-call]

    def note_error(self, error: BaseException, dbapi_connection: Any) -> None:
        """Give up all open connections after an error that SQLAlchemy did not see, as it does after others."""
        if self.is_disconnect(error, dbapi_connection, None):
            self._left_at = time.monotonic()

    def do_ping(self, dbapi_connection: Any) -> bool:
        """Tell whether an open connection answers. If one does not in time, the pool drops all that are open."""
        connection = dbapi_connection.driver_connection
        if connection.is_closed() or connection.opened_at <= self._left_at:
            return False
        return self.is_fresh(connection) or await_(self._answers(connection))

    def is_fresh(self, connection: _Connection) -> bool:
        """Return whether an open connection answered so short a time ago that it is not asked again."""
        is_left = connection.is_closed() or connection.opened_at <= self._left_at
        return not is_left and time.monotonic() - connection.answered_at < FRESH_SECONDS

    async def _answers(self, connection: _Connection) -> bool:
        try:
            async with asyncio.timeout(self._ping_seconds):
                # One round trip, and a transaction of its own: behind a pooler too.
                await connection.execute("SELECT 1")
        except TimeoutError:
            self._urls.sort(key=connection.url.__eq__)
            return False
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
            # The last: the server has said that it ends the connection, and its end has not arrived.
            return False
        return True

    def do_commit(self, dbapi_connection: Any) -> None:
        super().do_commit(dbapi_connection)  # type: ignore[no-untyped-call]
        dbapi_connection.driver_connection.answered_at = time.monotonic()

    def do_terminate(self, dbapi_connection: Any) -> None:
        """Drop a connection. Cancel its work only if it has some: that takes seconds if the server is silent."""
        connection = dbapi_connection.driver_connection
        if connection.is_closed() or connection.is_in_transaction():
            super().do_terminate(dbapi_connection)
        else:
            connection.terminate()

    async def _open(self, **options: Any) -> Any:
        connection = await self._connect_to_one(options)
        if self._may_be_direct:
            try:
                is_direct = await _server_process(connection) == connection.get_server_pid()
            except BaseException:
                connection.terminate()
                raise
            if is_direct:
                self._is_pooled = False
            else:
                self._keep_nothing_prepared()
        return connection

    async def _connect_to_one(self, options: dict[str, Any]) -> Any:
        """Connect to the first server that answers in time and is of the wanted kind.

        Given all servers, the driver would share one timeout among them: a silent one uses it up.
        """
        *others, last = self._urls
        for url in others:
            with contextlib.suppress(*_NEXT_SERVER):
                return await self._connect_to(url, options)
        return await self._connect_to(last, options)

    async def _connect_to(self, url: str, options: dict[str, Any]) -> Any:
        try:
            connection = await asyncpg.connect(url, connection_class=_Connection, **options)
        except BaseException:
            # Also if the caller's time is over: the next one begins with another server.
            self._urls.sort(key=url.__eq__)
            raise
        connection.url, connection.opened_at = url, time.monotonic()
        self._urls.sort(key=url.__ne__)
        return connection

    def _keep_nothing_prepared(self) -> None:
        self._is_pooled, self._may_be_direct = True, False


async def _server_process(connection: Any) -> int:
    async with connection.transaction():
        statement = await connection.prepare("SELECT pg_catalog.pg_backend_pid()", name="")
        return int(await statement.fetchval())


def _server_seconds(url: ConnectionUrl) -> float:
    """Return how many seconds each server may take to open a connection."""
    return url.connect_timeout or _CONNECT_SECONDS / len(split_hosts(url.url))


def create_postgres_engine(
    url: ConnectionUrl, pool_timeout: float, answer_seconds: float | None, **options: Any
) -> AsyncEngine:
    """Make an engine that connects lazily."""
    timeouts = {"timeout": _server_seconds(url), "command_timeout": answer_seconds}
    return create_async_engine(
        "postgresql+proxied://",
        connection_url=url,
        connect_args=timeouts,
        pool_size=10,
        max_overflow=10,
        # What waits for a connection has a deadline of its own, see `ConnectionTimeout`.
        pool_timeout=MOST_TIMES * pool_timeout,
        pool_pre_ping=True,
        hide_parameters=True,
        **options,
    )
