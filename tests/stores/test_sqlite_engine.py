"""SQLAlchemy's statements on a SQLite file: in threads, in transactions, and on a bounded number of connections."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import pytest
from sqlalchemy import text

from proxy.stores.sql.sqlite import CONNECTIONS, SqliteEngine
from proxy.stores.sqlite.location import SqliteLocation
from tests.support.databases import SqliteDatabases

pytestmark = pytest.mark.anyio
MakeEngine = Callable[..., SqliteEngine]
BEGINNING = text("INSERT INTO directory_version (id, version) VALUES (7, 1)")
VERSIONS = text("SELECT version FROM directory_version WHERE id = 7")


@pytest.fixture
def path(sqlite_databases: SqliteDatabases) -> str:
    return sqlite_databases.migrated().removeprefix("sqlite:///")


@pytest.fixture
async def make_engine(path: str) -> AsyncIterator[MakeEngine]:
    made: list[SqliteEngine] = []

    def make(**options: float) -> SqliteEngine:
        made.append(SqliteEngine(SqliteLocation(path), 5, **options))
        return made[-1]

    yield make
    for engine in made:
        await engine.dispose()


def is_open(path: str) -> bool:
    """Whether this process has the file open."""
    return Path(path).resolve() in {one.resolve() for one in Path("/proc/self/fd").iterdir()}


async def lend_all(engine: SqliteEngine, stack: AsyncExitStack) -> None:
    async with asyncio.timeout(60):
        for _ in range(CONNECTIONS):
            plain = await stack.enter_async_context(engine.connect())
            connection = await plain.execution_options(read_only=True)
            assert (await connection.scalars(text("SELECT 1"))).all() == [1]


async def test_statements_run_in_a_thread(make_engine: MakeEngine) -> None:
    async with make_engine().connect() as connection:
        assert await connection.run_sync(lambda _: threading.current_thread()) is not threading.current_thread()


async def test_a_transaction_is_there_as_a_whole_or_not_at_all(make_engine: MakeEngine) -> None:
    engine = make_engine()
    with pytest.raises(ValueError, match="no more"):
        async with engine.begin() as connection:
            assert (await connection.execute(BEGINNING)).rowcount == 1
            raise ValueError("no more")
    async with engine.connect() as connection:
        assert (await connection.execute(VERSIONS)).all() == []
    async with engine.begin() as connection:
        await connection.execute(BEGINNING)
    async with engine.connect() as connection:
        assert (await connection.execute(VERSIONS)).scalar_one() == 1


async def test_a_transaction_that_only_reads_takes_no_lock(make_engine: MakeEngine, path: str) -> None:
    other = sqlite3.connect(path, isolation_level=None, timeout=0)
    async with make_engine().connect() as plain:
        connection = await plain.execution_options(read_only=True)
        async with connection.begin():
            await connection.execute(VERSIONS)
            other.execute("BEGIN IMMEDIATE")
            other.execute("ROLLBACK")
    async with make_engine().begin():
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
    other.close()


async def test_a_free_connection_is_waited_for_only_so_long(make_engine: MakeEngine) -> None:
    engine = make_engine(wait_seconds=0.01)
    async with AsyncExitStack() as stack:
        await lend_all(engine, stack)
        with pytest.raises(TimeoutError):
            async with engine.connect():
                pass
    async with AsyncExitStack() as stack:
        await lend_all(engine, stack)


async def test_callers_that_give_up_leave_their_connections_to_others(make_engine: MakeEngine, path: str) -> None:
    engine, before = make_engine(), set(threading.enumerate())
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")

    async def give_up() -> None:
        with anyio.move_on_after(0.01):
            async with engine.begin():
                raise AssertionError("another has the lock")

    await asyncio.gather(*(give_up() for _ in range(4 * CONNECTIONS)))
    holder.close()
    async with AsyncExitStack() as stack:
        await lend_all(engine, stack)
        assert len(set(threading.enumerate()) - before) == CONNECTIONS
    async with engine.begin() as connection:
        await connection.execute(BEGINNING)


async def test_the_end_waits_for_what_callers_that_gave_up_have_begun(make_engine: MakeEngine, path: str) -> None:
    engine, holder = make_engine(), sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with anyio.move_on_after(0.01):
        async with engine.begin():
            raise AssertionError("another has the lock")
    assert is_open(path)
    holder.close()
    await engine.dispose()
    assert not is_open(path)
