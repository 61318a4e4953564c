"""Connections to a SQLite file for SQLAlchemy's statements, beside the event loop.

They do what the stores need of SQLAlchemy's extension for asyncio. The extension loads the whole object mapper, which
no store uses: six megabytes in each process. It also goes to a thread and back for each step of a statement, which goes
there as a whole here.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import sqlalchemy
from sqlalchemy import Connection, CursorResult, Dialect, Executable, ScalarResult, event

from proxy.stores.sqlite.location import SqliteLocation

#: Connections at once, each with a thread.
CONNECTIONS = 5
#: How long one of them is waited for.
WAIT_SECONDS = 30.0
T = TypeVar("T")


class SqliteEngine:
    """Opens nothing until it is used."""

    def __init__(
        self, location: SqliteLocation, lock_seconds: float, wait_seconds: float = WAIT_SECONDS, **options: Any
    ) -> None:
        """`options` are those of SQLAlchemy's `create_engine`."""
        self._engine = sqlalchemy.create_engine(
            "sqlite://",
            # It knows the file, so the URL does not say that there is one, from which the pool would follow.
            creator=partial(_open, location, lock_seconds),
            poolclass=sqlalchemy.QueuePool,
            pool_size=CONNECTIONS,
            max_overflow=0,
            hide_parameters=True,
            **options,
        )
        event.listen(self._engine, "begin", _begin)
        self._wait_seconds = wait_seconds
        self._places = asyncio.Semaphore(CONNECTIONS)
        self._free: list[ThreadPoolExecutor] = []
        self._returning: set[asyncio.Task[None]] = set()

    @property
    def dialect(self) -> Dialect:
        return self._engine.dialect

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[SqliteConnection]:
        """Lend a connection, whose transaction is taken back at the end unless it was committed.

        Raises:
            TimeoutError: all of them are in use for too long.
        """
        async with asyncio.timeout(self._wait_seconds):
            await self._places.acquire()
        thread = self._free.pop() if self._free else ThreadPoolExecutor(1, "fal-proxy-database")
        connection = SqliteConnection(self._engine, thread)
        try:
            yield connection
        finally:
            # A caller that gives up leaves at once. Its connection is lent again when its statement is over.
            returning = asyncio.create_task(self._give_back(connection, thread))
            self._returning.add(returning)
            returning.add_done_callback(self._returning.discard)
            await asyncio.shield(returning)

    async def _give_back(self, connection: SqliteConnection, thread: ThreadPoolExecutor) -> None:
        try:
            await connection.close()
        finally:
            self._free.append(thread)
            self._places.release()

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[SqliteConnection]:
        """Begin a transaction on a connection, which is committed at the end of the block."""
        async with self.connect() as connection, connection.begin():
            yield connection

    async def dispose(self) -> None:
        if self._returning:
            await asyncio.wait(self._returning)
        # The last connection of a file writes its log into it.
        await asyncio.to_thread(self._engine.dispose)
        while self._free:
            self._free.pop().shutdown(wait=False)


class SqliteConnection:
    """A connection to SQLite whose work is done in a thread, one piece after the other."""

    def __init__(self, engine: sqlalchemy.Engine, thread: ThreadPoolExecutor) -> None:
        self.dialect = engine.dialect
        self._engine = engine
        self._thread = thread
        self._options: dict[str, Any] = {}
        self._connection: Connection | None = None

    async def open(self) -> None:
        """Open it now, and not with its first piece of work."""
        await self._in_thread(self._ensure_open)

    async def execution_options(self, **options: Any) -> SqliteConnection:
        self._options.update(options)
        return self

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[None]:
        """Begin a transaction, committed at the end of the block; closing the connection rolls a failed one back."""
        await self.run_sync(Connection.begin)
        yield
        await self.run_sync(Connection.commit)

    async def execute(self, statement: Executable, parameters: Any = None) -> CursorResult[Any]:
        return await self.run_sync(_execute, statement, parameters)

    async def scalars(self, statement: Executable, parameters: Any = None) -> ScalarResult[Any]:
        return (await self.execute(statement, parameters)).scalars()

    async def run_sync(self, work: Callable[..., T], *arguments: Any) -> T:
        """Call `work` with the connection, in its thread, and return what it returns."""
        return await self._in_thread(lambda: work(self._ensure_open(), *arguments))

    async def close(self) -> None:
        await self._in_thread(self._close)

    def _ensure_open(self) -> Connection:
        if self._connection is None:
            self._connection = self._engine.connect().execution_options(**self._options)
        return self._connection

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def commit(connection: Connection, work: Callable[[Connection], T]) -> T:
    """Commit `work`, and return what it returns: a transaction that runs in the connection's thread as a whole."""
    with connection.begin():
        return work(connection)


def _execute(connection: Connection, statement: Executable, parameters: Any) -> Any:
    """Execute a statement and read all its rows."""
    result = connection.execute(statement, parameters)
    return result.freeze()() if result.returns_rows else result


def _open(location: SqliteLocation, lock_seconds: float) -> sqlite3.Connection:
    # One thread at a time uses it: each that it is lent to.
    connection = location.connect(lock_seconds, check_same_thread=False)
    try:
        _write_ahead(connection, lock_seconds)
    except BaseException:
        connection.close()
        raise
    return connection


def _write_ahead(connection: sqlite3.Connection, lock_seconds: float) -> None:
    # For this one statement SQLite does not wait for a lock: of those that open a new file at once, one succeeds.
    give_up_at = time.monotonic() + lock_seconds
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL").fetchall()
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > give_up_at:
                raise
        time.sleep(0.02)


def _begin(connection: Connection) -> None:
    # A transaction that reads and then writes would fail at once when another process writes between the two;
    # IMMEDIATE takes the write lock at the start, and waits for it.
    mode = "DEFERRED" if connection.get_execution_options().get("read_only") else "IMMEDIATE"
    connection.exec_driver_sql(f"BEGIN {mode}")
