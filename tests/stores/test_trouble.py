"""Trouble with a database is `StoreUnavailable`, without values, and ends when the trouble does."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from sqlalchemy import event

from proxy.errors import StoreUnavailable
from proxy.stores.ledger import Granted, Reserve
from proxy.stores.sql import SqlStores
from tests.stores.conftest import OpenStores
from tests.stores.records import UPLOAD, job
from tests.support.databases import PostgresDatabases, SqliteDatabases
from tests.support.postgres import Postgres
from tests.support.relay import relaying

pytestmark = pytest.mark.anyio


async def test_a_file_that_is_no_database(
    tmp_path: Path, open_stores: OpenStores, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("canary " * 1000)
    stores = open_stores(f"sqlite:///{path}")
    for work in (stores.prepare, stores.ping, stores.directory.load, stores.migrate):
        with pytest.raises(StoreUnavailable) as caught:
            await work()
        assert caught.value.message == "The proxy's database does not answer; try again shortly."
        assert caught.value.__cause__ is None
    assert "DatabaseError" in caplog.text and "canary" not in caplog.text and str(tmp_path) not in caplog.text


async def test_a_folder_that_is_not_there(tmp_path: Path, open_stores: OpenStores) -> None:
    stores = open_stores(f"sqlite:///{tmp_path}/gone/proxy.db")
    with pytest.raises(StoreUnavailable):
        await stores.prepare()


async def test_a_write_that_fails_shows_none_of_its_values(stores: SqlStores, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "proxy")
    slot = replace(UPLOAD, id="canary-hash", upstream_url="https://v3.fal.media/canary?signature=canary")
    await stores.uploads.add(slot)
    with pytest.raises(StoreUnavailable) as caught:
        await stores.uploads.add(slot)
    assert "canary" not in str(caught.value) and caught.value.__cause__ is None
    assert "IntegrityError" in caplog.text and "canary" not in caplog.text
    assert "canary" not in repr(slot)


async def test_giving_up_on_a_locked_database_leaves_nothing_behind(
    sqlite_databases: SqliteDatabases, open_stores: OpenStores
) -> None:
    """Whoever stops waiting for the lock ends with the lock: a connection that never closed would hang the program."""
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
        _, pending = await asyncio.wait(left, timeout=10)
        assert not pending
    await stores.uploads.add(UPLOAD)


async def test_a_locked_database(sqlite_databases: SqliteDatabases, open_stores: OpenStores) -> None:
    """Whoever holds the write lock for longer than a write waits makes writing fail; reading goes on."""
    url = sqlite_databases.migrated()
    holder = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    # Five seconds is what production waits; a test need not.
    impatient = open_stores(url, 0.05)
    wanted = job()
    with pytest.raises(StoreUnavailable):
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
    assert url not in caplog.text and "127.0.0.1" not in caplog.text
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
        options.update(timeout=0.5, command_timeout=0.5)

    event.listen(stores.ledger._database.engine.sync_engine, "do_connect", hurry)
    await stores.ping()
    assert (usual[0]["timeout"], usual[0]["command_timeout"]) == (5, 10)
    with postgres.paused(), pytest.raises(StoreUnavailable), anyio.fail_after(60):
        await stores.ledger.commit([Reserve(wanted)])
    assert await stores.ledger.commit([Reserve(wanted)]) == [Granted()]


async def test_more_looks_at_once_than_there_are_connections(stores: SqlStores) -> None:
    """Each takes one connection: one that waited for a second while it held the first would stop all the others."""
    async with asyncio.timeout(20):
        await asyncio.gather(*(stores.ping() for _ in range(50)))
