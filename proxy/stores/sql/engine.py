"""The database engine, and the border where its errors become ours."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import aiosqlite
import orjson
from sqlalchemy import URL, Connection, Engine, Table, event
from sqlalchemy import create_engine as create_sync_engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from proxy.errors import StoreUnavailable

#: How columns of JSON are written and read.
_JSON: dict[str, Any] = {
    "json_serializer": lambda document: orjson.dumps(document).decode(),
    "json_deserializer": orjson.loads,
}
T = TypeVar("T")
_log = logging.getLogger(__name__)
_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}
_SQLITE_PRAGMAS = "PRAGMA synchronous=NORMAL; PRAGMA foreign_keys=ON;"
_LOCK_SECONDS = 5
#: How long a server may take to open a connection, and to answer a statement: a frozen one must not freeze callers.
_CONNECT_SECONDS, _ANSWER_SECONDS = 5, 10


def create_engine(database_url: str) -> AsyncEngine:
    """An engine for `sqlite:///…` or `postgresql://…`; connects lazily."""
    url = make_url(database_url)
    url = url.set(drivername=_DRIVERS[url.drivername])
    if url.get_backend_name() == "sqlite":
        engine = create_async_engine(
            url,
            connect_args={"timeout": _LOCK_SECONDS, "async_creator_fn": _open_sqlite},
            pool_size=5,
            max_overflow=0,
            **_JSON,
        )
        event.listen(engine.sync_engine, "begin", _begin_sqlite)
        return engine
    return create_async_engine(
        url,
        connect_args={"timeout": _CONNECT_SECONDS, "command_timeout": _ANSWER_SECONDS},
        pool_size=10,
        max_overflow=10,
        pool_timeout=_LOCK_SECONDS,
        pool_pre_ping=True,
        hide_parameters=True,
        **_JSON,
    )


class _SqliteConnection(aiosqlite.Connection):
    """One whose worker may be told twice to stop: by a close, and by the cancellation that overtakes it.

    The second word would be put in a queue that nobody reads any more, and whoever waits for it would wait for ever.
    """

    _stopped: asyncio.Future[Any] | None = None

    def stop(self) -> asyncio.Future[Any] | None:
        if self._running:
            self._stopped = super().stop()
        return self._stopped


async def _open_sqlite(database: str, **options: Any) -> aiosqlite.Connection:
    """A connection that is ready for use, or gone before its failure is told."""
    # The driver must not open transactions by itself: `_begin_sqlite` does, in the mode that cannot deadlock.
    connection = _SqliteConnection(lambda: sqlite3.connect(database, isolation_level=None, **options), 64)
    # No end of the program waits for this thread (SQLAlchemy's own way to connect says the same).
    connection._thread.daemon = True
    try:
        await connection
        await _write_ahead(connection)
        await connection.executescript(_SQLITE_PRAGMAS)
    except BaseException:
        connection.stop()
        # The thread has a last word for the event loop, which a command closes next: that would be a traceback.
        await asyncio.to_thread(connection._thread.join)
        raise
    return connection


async def _write_ahead(connection: aiosqlite.Connection) -> None:
    # For this one statement SQLite does not wait for a lock: of those that open a new file at once, one succeeds.
    patience = asyncio.get_running_loop().time() + _LOCK_SECONDS
    while True:
        try:
            await connection.execute_fetchall("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or asyncio.get_running_loop().time() > patience:
                raise
        await asyncio.sleep(0.02)


def _begin_sqlite(connection: Any) -> None:
    # A transaction that reads and then writes would fail at once when another process writes between the two;
    # IMMEDIATE takes the write lock at the start, and waits for it.
    mode = "DEFERRED" if connection.get_execution_options().get("read_only") else "IMMEDIATE"
    connection.exec_driver_sql(f"BEGIN {mode}")


@asynccontextmanager
async def writing(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """One transaction, committed at the end of the block.

    Raises:
        StoreUnavailable: the database did not do it.
    """
    with _translated():
        async with engine.begin() as connection:
            yield connection


@asynccontextmanager
async def reading(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """One consistent reading.

    Raises:
        StoreUnavailable: the database did not answer.
    """
    # Left to itself PostgreSQL would let each statement see another moment.
    level = {"isolation_level": "REPEATABLE READ"} if engine.dialect.name == "postgresql" else {}
    with _translated():
        async with engine.connect() as plain:
            connection = await plain.execution_options(read_only=True, **level)
            async with connection.begin():
                yield connection


class Transactions:
    """Runs functions of a connection, each as a transaction whose statements follow one another without a pause.

    For a transaction that every call waits for: on SQLite, going back to the event loop after each statement, as
    `writing` does, takes longer than the statements. One thread does the writing there, as only one can.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._file: Engine | None = None
        self._thread = ThreadPoolExecutor(1, "fal-proxy-ledger")
        if engine.dialect.name == "sqlite":
            self._file = _one_connection(engine.url)

    async def run(self, work: Callable[[Connection], T]) -> T:
        """What `work` returns, once it is committed.

        Raises:
            StoreUnavailable: the database did not do it.
        """
        if self._file is not None:
            with _translated():
                return await asyncio.get_running_loop().run_in_executor(self._thread, _transact, self._file, work)
        async with writing(self._engine) as connection:
            return await connection.run_sync(work)

    async def close(self) -> None:
        if self._file is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._file.dispose)
        self._thread.shutdown(wait=False)


def _one_connection(url: URL) -> Engine:
    """An engine for one thread that writes. The file's own setting, the write-ahead log, is made by `_open_sqlite`."""
    engine = create_sync_engine(
        url.set(drivername="sqlite+pysqlite"),
        connect_args={"timeout": _LOCK_SECONDS, "isolation_level": None},
        pool_size=1,
        max_overflow=0,
        hide_parameters=True,
        **_JSON,
    )
    event.listen(engine, "connect", lambda connection, _record: connection.executescript(_SQLITE_PRAGMAS))
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _transact(engine: Engine, work: Callable[[Connection], T]) -> T:
    with engine.begin() as connection:
        return work(connection)


def insert_missing(connection: AsyncConnection | Connection, table: Table) -> Any:
    """The statement that inserts those rows whose key is not there yet, in the order given."""
    # Imported here: the dialect that is not used is best not loaded.
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects.postgresql import insert as insert_postgresql

        return insert_postgresql(table).on_conflict_do_nothing()
    from sqlalchemy.dialects.sqlite import insert as insert_sqlite

    return insert_sqlite(table).on_conflict_do_nothing()


class _translated:
    """Turns the driver's trouble into `StoreUnavailable`, without its text: that may quote values."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, (SQLAlchemyError, OSError, TimeoutError)):
            _log.error("the database failed: %s", _cause(error))
            raise StoreUnavailable("The proxy's database does not answer; try again shortly.") from None


def _cause(error: BaseException) -> str:
    original = getattr(error, "orig", None)
    return f"{type(error).__name__} ({type(original).__name__})" if original is not None else type(error).__name__
