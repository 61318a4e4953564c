"""Trouble with a database is `StoreUnavailable`, without values, and ends when the trouble does."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from dataclasses import replace
from pathlib import Path

import anyio
import asyncpg  # type: ignore[import-untyped]
import pytest
from sqlalchemy import event, select, text

from proxy.errors import StoreUnavailable
from proxy.stores.errors import DataRefused, OutcomeUnknown
from proxy.stores.ledger import Granted, Reserve
from proxy.stores.sql import SqlStores
from proxy.stores.sql.connection_timeout import MOST_TIMES, ConnectionTimeout
from proxy.stores.sql.database import Database
from proxy.stores.sql.postgres import FRESH_SECONDS, _Connection
from proxy.stores.sql.schema import jobs, metadata, quota_usage
from proxy.telemetry.log_limit import SECONDS, LogLimit
from tests.stores.conftest import OpenStores
from tests.stores.records import UPLOAD, job
from tests.support.databases import PostgresDatabases, SqliteDatabases
from tests.support.postgres import Postgres
from tests.support.relay import relaying

pytestmark = pytest.mark.anyio


def logged(caplog: pytest.LogCaptureFixture) -> str:
    """What the log says, with its fields."""
    return caplog.text + str([getattr(record, "log_fields", None) for record in caplog.records])


async def test_a_file_that_is_no_database(
    tmp_path: Path, open_stores: OpenStores, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("canary " * 1000)
    stores = open_stores(f"sqlite:///{path}")
    for work in (stores.prepare, stores.ping, stores.directory.load, stores.migrate):
        with pytest.raises(StoreUnavailable) as caught:
            await work()
        assert "is not a SQLite database: restore a backup" in caught.value.message
        assert caught.value.__cause__ is None
    log = logged(caplog)
    assert "DatabaseError" in log and "restore a backup" in log and "canary" not in log and str(tmp_path) not in log


@pytest.mark.parametrize("table", metadata.tables)
async def test_a_table_that_is_missing(stores: SqlStores, table: str) -> None:
    """Calls need it, so the database is not ready."""
    database = stores.ledger._database
    await stores.ping()
    async with database.writing() as connection:
        await connection.execute(text(f"ALTER TABLE {table} RENAME TO elsewhere"))
    with pytest.raises(StoreUnavailable):
        await stores.ping()
    async with database.writing() as connection:
        await connection.execute(text(f"ALTER TABLE elsewhere RENAME TO {table}"))
    await stores.ping()


async def test_accounts_that_cannot_be_written(sqlite_databases: SqliteDatabases, open_stores: OpenStores) -> None:
    stores = open_stores(sqlite_databases.migrated())
    async with stores.ledger._database.writing() as connection:
        refuse = "BEGIN SELECT RAISE(ABORT, 'the disk says no'); END"
        await connection.execute(text(f"CREATE TRIGGER refuse BEFORE UPDATE ON quota_usage {refuse}"))
    with pytest.raises(StoreUnavailable):
        await stores.ping()


async def test_a_ping_leaves_nothing_behind(stores: SqlStores) -> None:
    await asyncio.gather(*(stores.ping() for _ in range(5)))
    async with stores.ledger._database.reading() as connection:
        for table in (jobs, quota_usage):
            assert (await connection.execute(select(table))).all() == []


async def test_a_missing_folder(tmp_path: Path, open_stores: OpenStores) -> None:
    stores = open_stores(f"sqlite:///{tmp_path}/gone/proxy.db")
    with pytest.raises(StoreUnavailable):
        await stores.prepare()


async def test_a_database_that_stays_away_is_logged_once_a_minute(
    sqlite_databases: SqliteDatabases, caplog: pytest.LogCaptureFixture
) -> None:
    """Each call fails meanwhile: one line for each kind of problem, with the number of failures since the last one."""
    now = 0.0
    url = sqlite_databases.migrated()
    database = Database(url, log_limit=LogLimit(timer=lambda: now))
    moved = _put_a_folder_in_the_place_of(url)

    async def fail(times: int) -> None:
        for _ in range(times):
            with pytest.raises(StoreUnavailable):
                async with database.reading() as connection:
                    await connection.execute(select(jobs.c.id))

    def lines() -> list[dict[str, object]]:
        return [record.log_fields for record in caplog.records if record.message == "database failed"]  # type: ignore[attr-defined]

    await fail(40)
    (first,) = lines()
    assert first["failures"] == 1 and first["problem"] and first["code"] is None
    now = SECONDS + 1
    await fail(2)
    assert lines()[1:] == [{**first, "failures": 40}]
    _put_back(url, moved)
    await database.try_out(lambda _: None)
    # Another kind of problem has a line of its own.
    with pytest.raises(DataRefused):
        await database.run(_refuse)
    reason = "The proxy's database does not take that."
    assert lines()[2:] == [{"problem": "IntegrityError", "code": None, "reason": reason, "failures": 1}]
    await database.close()


def _put_a_folder_in_the_place_of(url: str) -> Path:
    path = Path(url.removeprefix("sqlite:///"))
    moved = path.rename(path.with_suffix(".moved"))
    path.mkdir()
    return moved


def _put_back(url: str, moved: Path) -> None:
    path = Path(url.removeprefix("sqlite:///"))
    path.rmdir()
    moved.rename(path)


def _refuse(_: object) -> None:
    raise sqlite3.IntegrityError("canary")


async def test_a_write_that_fails_shows_none_of_its_values(stores: SqlStores, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "proxy")
    slot = replace(UPLOAD, id="canary-hash", upstream_url="https://v3.fal.media/canary?signature=canary")
    await stores.uploads.add(slot)
    with pytest.raises(StoreUnavailable) as caught:
        await stores.uploads.add(slot)
    assert "canary" not in str(caught.value) and caught.value.__cause__ is None
    assert "IntegrityError" in logged(caplog) and "canary" not in logged(caplog)
    (line,) = [record.log_fields for record in caplog.records if record.message == "database failed"]  # type: ignore[attr-defined]
    assert line["code"] in ("SQLITE_CONSTRAINT_PRIMARYKEY", "23505")
    assert "canary" not in repr(slot)


async def test_giving_up_on_a_locked_database_leaves_nothing_behind(
    sqlite_databases: SqliteDatabases, open_stores: OpenStores
) -> None:
    """The write that was given up ends when the lock is free: a connection left open would hang the program."""
    url = sqlite_databases.migrated()
    stores = open_stores(url)
    await stores.ping()
    holder = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    before = asyncio.all_tasks()
    holder.execute("BEGIN IMMEDIATE")
    with anyio.move_on_after(0.1):
        await stores.uploads.add(UPLOAD)
    holder.close()
    if left := asyncio.all_tasks() - before:
        _, pending = await asyncio.wait(left, timeout=60)
        assert not pending
    # The write that was given up may have been done once the lock was free.
    await stores.uploads.add(replace(UPLOAD, id="another"))


async def test_a_locked_database(sqlite_databases: SqliteDatabases, open_stores: OpenStores) -> None:
    """A write lock that is held for longer than a write waits makes writes fail; reads go on."""
    url = sqlite_databases.migrated()
    holder = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    # Five seconds is what production waits; a test need not.
    impatient = open_stores(url, 0.05)
    wanted = job()
    with pytest.raises(StoreUnavailable, match="locked by another process"):
        await impatient.ledger.commit([Reserve(wanted)])
    assert await impatient.ledger.get(wanted.id) is None
    holder.execute("ROLLBACK")
    assert await impatient.ledger.commit([Reserve(wanted)]) == [Granted()]
    assert await open_stores(url).ledger.get(wanted.id) == wanted
    holder.close()


@pytest.mark.tools
async def test_a_database_that_goes_away_and_comes_back(
    postgres: Postgres, postgres_databases: PostgresDatabases, open_stores: OpenStores, caplog: pytest.LogCaptureFixture
) -> None:
    url = postgres_databases.migrated()
    stores, before, after = open_stores(url), job(), job()
    assert await stores.ledger.commit([Reserve(before)]) == [Granted()]
    with postgres.stopped():
        for work in (stores.ping, stores.directory.load, lambda: stores.ledger.commit([Reserve(after)])):
            with pytest.raises(StoreUnavailable) as caught:
                await work()
            assert caught.value.__cause__ is None
    assert url not in logged(caplog) and "127.0.0.1" not in logged(caplog)
    assert await stores.ledger.commit([Reserve(after)]) == [Granted()]
    assert {one.id for one in await stores.ledger.open_jobs()} == {before.id, after.id}


@pytest.mark.tools
async def test_a_slow_database_is_waited_for(
    postgres: Postgres, postgres_databases: PostgresDatabases, open_stores: OpenStores
) -> None:
    url = postgres_databases.migrated()
    with relaying(postgres.port) as relay:
        stores = open_stores(url.replace(f":{postgres.port}/", f":{relay.port}/"))
        await stores.ping()
        relay.delay_seconds = 0.2
        wanted = job()
        assert await stores.ledger.commit([Reserve(wanted)]) == [Granted()]
        relay.delay_seconds = 0.0
        assert await stores.ledger.get(wanted.id) == wanted


@pytest.mark.tools
async def test_a_frozen_database_does_not_block_other_work(
    postgres: Postgres, postgres_databases: PostgresDatabases, open_stores: OpenStores
) -> None:
    stores, wanted = open_stores(postgres_databases.migrated()), job()
    usual: list[dict[str, object]] = []

    def hurry(_dialect: object, _record: object, _arguments: object, options: dict[str, object]) -> None:
        """Seconds are what production waits; a test need not."""
        usual.append({**options})
        options.update(timeout=3, command_timeout=3)

    event.listen(stores.ledger._database.engine.sync_engine, "do_connect", hurry)
    await stores.ping()
    assert (usual[0]["timeout"], usual[0]["command_timeout"]) == (5, 10)
    # It may do what it was asked for once it goes on.
    with postgres.paused(), pytest.raises(OutcomeUnknown), anyio.fail_after(60):
        await stores.ledger.commit([Reserve(wanted)])
    assert await stores.ledger.commit([Reserve(job())]) == [Granted()]


@pytest.mark.tools
async def test_a_frozen_database_is_waited_for_by_one_deadline(
    postgres: Postgres, postgres_databases: PostgresDatabases, open_stores: OpenStores
) -> None:
    """For a free connection, its answer and a new connection together, by however many callers."""
    stores = open_stores(postgres_databases.migrated())
    await asyncio.gather(*(stores.directory.load() for _ in range(20)))
    # A connection that answered just now would not be asked.
    await asyncio.sleep(FRESH_SECONDS)
    loop = asyncio.get_running_loop()
    with postgres.paused():
        for callers in (1, 40):
            began = loop.time()
            answers = await asyncio.gather(*(stores.directory.load() for _ in range(callers)), return_exceptions=True)
            assert [type(answer) for answer in answers] == [StoreUnavailable] * callers
            assert 4 < loop.time() - began < 9.5
    await stores.ping()


@pytest.mark.tools
async def test_callers_wait_for_their_turn_while_the_database_answers(
    postgres_databases: PostgresDatabases, open_stores: OpenStores
) -> None:
    """Also for longer than for one that is silent."""
    database, loop = open_stores(postgres_databases.migrated()).ledger._database, asyncio.get_running_loop()

    async def work() -> None:
        async with database.reading() as connection:
            await connection.execute(text("SELECT pg_sleep(1.2)"))

    began = loop.time()
    # Five rounds of all connections.
    await asyncio.gather(*(work() for _ in range(100)))
    assert loop.time() - began > 5


@pytest.mark.parametrize("answers", [False, True])
async def test_no_wait_is_endless(answers: bool) -> None:
    wait, loop = ConnectionTimeout(0.05), asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(TimeoutError):
        async with wait.bound():
            while True:
                await asyncio.sleep(0.001)
                if answers:
                    wait.note_answer()
    assert loop.time() - began >= (0.05 * MOST_TIMES if answers else 0.05)


@pytest.mark.tools
async def test_a_connection_that_was_closed_just_now_is_made_again(
    postgres: Postgres, postgres_databases: PostgresDatabases, open_stores: OpenStores
) -> None:
    url = postgres_databases.migrated()
    stores, name = open_stores(url), url.rpartition("/")[2]
    for _ in range(5):
        await stores.ledger.open_jobs()
        closing = f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = '{name}'"
        await asyncio.to_thread(postgres.ask, "postgres", closing)
        await stores.ledger.open_jobs()


async def test_more_pings_at_once_than_there_are_connections(stores: SqlStores) -> None:
    """Each takes one connection: one that waited for a second while it held the first would stop all the others."""
    async with asyncio.timeout(60):
        await asyncio.gather(*(stores.ping() for _ in range(50)))


@pytest.mark.tools
async def test_a_transaction_that_did_not_begin_spoils_no_connection(postgres_databases: PostgresDatabases) -> None:
    """As when an operator cancels the BEGIN: the connection is lent to other callers afterwards."""
    connection = await asyncpg.connect(postgres_databases.empty(), connection_class=_Connection)
    try:
        running = asyncio.create_task(connection.execute("SELECT pg_sleep(0.2)"))
        await asyncio.sleep(0)
        with pytest.raises(asyncpg.InterfaceError, match="another operation"):
            await connection.transaction().start()
        await running
        for isolation in ("repeatable_read", None):
            async with connection.transaction(isolation=isolation):
                assert connection.is_in_transaction() and await connection.fetchval("SELECT 1") == 1
                # One inside another still works.
                async with connection.transaction():
                    assert await connection.fetchval("SELECT 2") == 2
    finally:
        await connection.close()
