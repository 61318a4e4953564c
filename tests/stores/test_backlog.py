"""What has already happened at fal is written to the ledger, however long the database is away."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence

import pytest

from proxy.errors import StoreUnavailable
from proxy.stores.batching import CLOSE_SECONDS, MOST_AT_ONCE, LedgerBatcher, LedgerTimeouts
from proxy.stores.ledger import Accept, Account, Charge, Deferred, Granted, Job, Operation, Outcome, Reserve, Settle
from proxy.stores.sql import SqlStores
from proxy.stores.sql.ledger import SqlLedger
from tests.stores.conftest import OpenStores
from tests.stores.records import ALICES, REQUESTS, job
from tests.support.databases import PostgresDatabases, SqliteDatabases
from tests.support.postgres import Postgres
from tests.support.relay import relaying
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.anyio
SHORT = LedgerTimeouts(0.2, 0.2, 0.2)
#: How long a write waits for the lock of SQLite's file, where it is to give up soon.
LOCK_SECONDS = 0.05


@pytest.fixture
def url(sqlite_databases: SqliteDatabases) -> str:
    return sqlite_databases.migrated()


@contextlib.contextmanager
def locked(url: str) -> Iterator[None]:
    """Lock the file, so that no other connection writes."""
    with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        yield


@contextlib.asynccontextmanager
async def batching(stores: SqlStores, patience: LedgerTimeouts = SHORT) -> AsyncIterator[LedgerBatcher]:
    batcher = LedgerBatcher(stores.ledger, patience)
    yield batcher
    await batcher.close()


async def reserved(batcher: LedgerBatcher) -> Job:
    mine = job(Charge(REQUESTS, 5, 100))
    assert await batcher.commit(Reserve(mine)) == Granted()
    return mine


async def is_in(stores: SqlStores, job_id: str, state: str) -> bool:
    found = await stores.ledger.get(job_id)
    return found is not None and found.state == state


async def test_a_booking_is_written_when_the_store_is_back(url: str, open_stores: OpenStores) -> None:
    stores = open_stores(url, LOCK_SECONDS)
    async with batching(stores) as batcher:
        mine = await reserved(batcher)
        with locked(url):
            life = [Accept(mine.id, "fal-1", 5000.0), Settle(mine.id, {"requests": 2}, 1.0)]
            done = [batcher.commit(operation) for operation in life]
            refused = batcher.commit(Reserve(job(Charge(REQUESTS, 1, 100))))
            with pytest.raises(StoreUnavailable):
                await refused
            assert await asyncio.gather(*done) == [Deferred()] * 2
            assert await stores.ledger.find("fal-1") is None
        await wait_until_async(lambda: is_in(stores, mine.id, "settled"), "the booking did not follow")
        found = await stores.ledger.find("fal-1")
        assert found is not None and found.used == {"requests": 2}
        await wait_until_async(lambda: _is_empty(batcher), "something is still deferred")
    assert await stores.ledger.accounts([REQUESTS]) == {REQUESTS: Account(2, 0)}


async def _is_empty(batcher: LedgerBatcher) -> bool:
    return len(batcher) == 0


async def test_a_write_waits_for_a_store_that_is_back_in_time(url: str, open_stores: OpenStores) -> None:
    stores = open_stores(url, LOCK_SECONDS)
    async with batching(stores, LedgerTimeouts()) as batcher:
        mine = await reserved(batcher)
        with locked(url):
            accepted = batcher.commit(Accept(mine.id, "fal-1", 5000.0))
            await wait_until_async(lambda: _is_deferred(batcher), "it was not tried")
            assert not accepted.done()
        assert await accepted == Granted()


async def _is_deferred(batcher: LedgerBatcher) -> bool:
    return len(batcher) == 1


async def test_the_end_of_the_process_writes_what_is_deferred(url: str, open_stores: OpenStores) -> None:
    stores = open_stores(url, LOCK_SECONDS)
    async with batching(stores) as batcher:
        mine = await reserved(batcher)
        with locked(url):
            assert await batcher.commit(Settle(mine.id, None, 1.0)) == Deferred()
    assert await is_in(stores, mine.id, "released")


async def test_the_end_of_the_process_waits_for_a_store_that_is_slow(url: str, open_stores: OpenStores) -> None:
    """It waits any time in all, as long as writes make progress."""

    class SlowLedger(SqlLedger):
        async def commit(self, operations: Sequence[Operation]) -> list[Outcome]:
            await asyncio.sleep(0.4 * CLOSE_SECONDS)
            return await super().commit(operations)

    batcher = LedgerBatcher(SlowLedger(open_stores(url).ledger._database))
    mine = [job(Charge(REQUESTS, 1, 1000)) for _ in range(3 * MOST_AT_ONCE)]
    made = [batcher.commit(Reserve(one)) for one in mine]
    await asyncio.sleep(0)
    await batcher.close()
    assert all(one.result() == Granted() for one in made)


@pytest.mark.parametrize("is_cancelled", [True, False], ids=["caller gone", "patience over"])
async def test_a_reservation_whose_caller_gave_up_is_undone(
    url: str, open_stores: OpenStores, is_cancelled: bool
) -> None:
    """The reservation is written when the lock is free, but its call has been refused by then."""
    stores = open_stores(url)
    mine = job(Charge(REQUESTS, 5, 100))
    async with batching(stores, LedgerTimeouts() if is_cancelled else SHORT) as batcher:
        with locked(url):
            waiting = batcher.commit(Reserve(mine))
            if is_cancelled:
                await asyncio.sleep(0.1)
                waiting.cancel()
            else:
                with pytest.raises(StoreUnavailable):
                    await waiting
        await wait_until_async(lambda: is_in(stores, mine.id, "released"), "the reservation stands")
    assert await stores.ledger.accounts([REQUESTS]) == {REQUESTS: Account(0, 0)}


async def test_a_reservation_whose_turn_comes_too_late_is_not_made(url: str, open_stores: OpenStores) -> None:
    stores = open_stores(url)
    first, second = job(Charge(REQUESTS, 1, 100)), job(Charge(REQUESTS, 1, 100))
    async with batching(stores) as batcher:
        with locked(url):
            waiting = batcher.commit(Reserve(first))
            await asyncio.sleep(0.1)
            results = await asyncio.gather(waiting, batcher.commit(Reserve(second)), return_exceptions=True)
            assert [type(one) for one in results] == [StoreUnavailable] * 2
        await wait_until_async(lambda: is_in(stores, first.id, "released"), "the reservation stands")
    assert await stores.ledger.get(second.id) is None


@pytest.mark.tools
@pytest.mark.parametrize("is_first", [True, False], ids=["new account", "known account"])
async def test_a_reservation_whose_commit_was_not_answered_is_undone(
    postgres: Postgres, postgres_databases: PostgresDatabases, open_stores: OpenStores, is_first: bool
) -> None:
    """A new account takes a transaction, and one that the process knows a single statement, which names the job."""
    url = postgres_databases.migrated()
    direct = open_stores(url)
    with relaying(postgres.port) as relay:
        stores = open_stores(url.replace(f":{postgres.port}/", f":{relay.port}/"))
        mine, other = job(Charge(REQUESTS, 5, 100)), job(Charge(ALICES if is_first else REQUESTS, 1, 100))
        async with batching(stores, LedgerTimeouts()) as batcher:
            await batcher.commit(Reserve(other))
            relay.cut_after = b"COMMIT" if is_first else mine.id.encode()
            with pytest.raises(StoreUnavailable):
                await batcher.commit(Reserve(mine))
            relay.cut_after = None
            await wait_until_async(lambda: is_in(direct, mine.id, "released"), "the reservation stands")
        assert await direct.ledger.accounts([REQUESTS]) == {REQUESTS: Account(0, 0 if is_first else 1)}


@pytest.mark.tools
async def test_an_acceptance_whose_commit_was_not_answered_is_written_once(
    postgres: Postgres, postgres_databases: PostgresDatabases, open_stores: OpenStores
) -> None:
    url = postgres_databases.migrated()
    with relaying(postgres.port) as relay:
        stores = open_stores(url.replace(f":{postgres.port}/", f":{relay.port}/"))
        async with batching(stores, LedgerTimeouts()) as batcher:
            mine = await reserved(batcher)
            relay.cut_after = mine.id.encode()
            accepted = batcher.commit(Accept(mine.id, "fal-1", 5000.0))
            await wait_until_async(lambda: _is_deferred(batcher), "the commit was answered")
            relay.cut_after = None
            assert await accepted == Granted()
        found = await stores.ledger.find("fal-1")
        assert found is not None and found.id == mine.id


@pytest.mark.tools
async def test_a_server_that_refuses_connections_is_a_store_that_is_down(
    postgres: Postgres, postgres_databases: PostgresDatabases, open_stores: OpenStores
) -> None:
    """PostgreSQL says so with an error of its own, as it does while it starts."""
    url = postgres_databases.migrated()
    name = url.rpartition("/")[2]
    postgres.ask("postgres", f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
    stores = open_stores(url)
    with pytest.raises(StoreUnavailable):
        await stores.ping()
    async with batching(stores) as batcher:
        with pytest.raises(StoreUnavailable):
            await batcher.commit(Reserve(job()))
        assert await batcher.commit(Settle("0" * 32, None, 1.0)) == Deferred()
        postgres.ask("postgres", f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        await wait_until_async(lambda: _is_empty(batcher), "something is still deferred")
