"""What is written beside the ledger, keys of calls and uploads, holds up no call, however slow it is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Event

import asyncpg
import pytest

from proxy.stores.ledger import Granted, Outcome, Reserve
from proxy.stores.sql import SqlStores
from proxy.stores.sql.database import MOST_BESIDE
from proxy.stores.uploads import WHOLE, Part
from tests.stores.conftest import OpenStores
from tests.stores.records import CLAIM, UPLOAD, job
from tests.support.databases import PostgresDatabases, SqliteDatabases
from tests.support.waiting import DEFAULT_SECONDS, wait_until_async

pytestmark = pytest.mark.anyio
PART = Part(UPLOAD.id, WHOLE, "attempt", 3)
#: How long other processes wait for the file, and how long one turn of a busy event loop takes.
LOCK_SECONDS, TURN_SECONDS = 1.7, 0.9
WRITES: dict[str, Callable[[SqlStores], Awaitable[object]]] = {
    "claim": lambda stores: stores.idempotency.claim(CLAIM, 0.0),
    "take over": lambda stores: stores.idempotency.take_over(replace(CLAIM, job_id="j-2"), CLAIM.job_id),
    "finish": lambda stores: stores.idempotency.finish(CLAIM, {"status": 200}),
    "forget": lambda stores: stores.idempotency.forget(CLAIM),
    "add": lambda stores: stores.uploads.add(UPLOAD),
    "begin": lambda stores: stores.uploads.begin(PART),
    "land": lambda stores: stores.uploads.land(PART, "etag"),
    "drop": lambda stores: stores.uploads.drop(PART),
    "finish file": lambda stores: stores.uploads.finish(UPLOAD.id, 3),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITES)
async def test_a_busy_event_loop_keeps_no_file_locked(
    sqlite_databases: SqliteDatabases, open_stores: OpenStores, name: str
) -> None:
    url = sqlite_databases.migrated()
    stores = open_stores(url)
    if name in ("begin", "land", "drop"):
        await stores.uploads.add(UPLOAD)
    is_over = Event()
    with ThreadPoolExecutor(1) as other:
        reserving = other.submit(lambda: asyncio.run(_reserve_until(is_over, url)))
        writing = asyncio.ensure_future(WRITES[name](stores))
        while not writing.done():
            await asyncio.sleep(0)
            _be_busy()
        is_over.set()
        await writing
        assert reserving.result() == {Granted()}


def _be_busy() -> None:
    time.sleep(TURN_SECONDS)


async def _reserve_until(is_over: Event, url: str) -> set[Outcome]:
    """Make reservations in another process, whose event loop is its own."""
    stores, outcomes = SqlStores(url, LOCK_SECONDS), set[Outcome]()
    try:
        while not is_over.is_set():
            outcomes.update(await stores.ledger.commit([Reserve(job())]))
            await asyncio.sleep(0.05)
    finally:
        await stores.close()
    return outcomes


@pytest.mark.tools
async def test_a_table_that_is_locked_leaves_connections_to_the_ledger(
    postgres_databases: PostgresDatabases, open_stores: OpenStores
) -> None:
    url = postgres_databases.migrated()
    # Those that wait for a place wait as long as a busy machine takes for the rest.
    stores = open_stores(url, DEFAULT_SECONDS)
    await stores.ledger.commit([Reserve(job())])
    other = await asyncpg.connect(url)

    async def is_waited_for() -> bool:
        # On the connection that has the lock: to start a process takes longer than a statement may wait.
        query = "SELECT count(*) FROM pg_locks WHERE relation = 'idempotency'::regclass AND NOT granted"
        return bool(await other.fetchval(query) >= MOST_BESIDE)

    try:
        async with other.transaction():
            await other.execute("LOCK TABLE idempotency")
            claims = [
                asyncio.create_task(stores.idempotency.claim(replace(CLAIM, key_hash=f"k-{number}"), 0.0))
                for number in range(60)
            ]
            await wait_until_async(is_waited_for, "nothing waits for the table")
            await asyncio.sleep(0.1)
            assert await stores.ledger.commit([Reserve(job())]) == [Granted()]
            assert not any(claim.done() for claim in claims)
        assert await asyncio.gather(*claims) == [None] * 60
    finally:
        await other.close()
