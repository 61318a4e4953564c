"""On PostgreSQL a process works transactions out from rows that it wrote, and finds the same as if it read them."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from sqlalchemy import event, text

from proxy.stores.errors import DataRefused
from proxy.stores.ledger import (
    Accept,
    Account,
    Bucket,
    Charge,
    Exhausted,
    Granted,
    Job,
    Operation,
    Reserve,
    Settle,
    Stale,
)
from proxy.stores.sql import SqlStores
from proxy.stores.sql.committer import LOCKED_AFTER_CHANGE, MOST_ROWS
from proxy.stores.sql.postgres import FRESH_SECONDS
from tests.stores.conftest import OpenStores
from tests.stores.records import ALICES, REQUESTS, job
from tests.support.databases import PostgresDatabases
from tests.support.postgres import Postgres

pytestmark = [pytest.mark.anyio, pytest.mark.tools]


class Process:
    """The stores of a process, with the statements that it sends."""

    def __init__(self, stores: SqlStores) -> None:
        self.ledger = stores.ledger
        self.database = stores.ledger._database
        self.statements: list[str] = []
        event.listen(self.database.engine.sync_engine, "connect", self._listen)

    def _listen(self, connection: Any, _record: object) -> None:
        connection.driver_connection.add_query_logger(self._note)

    def _note(self, query: Any) -> None:
        # On a busy machine the pool asks whether a connection answers.
        if query.query != "SELECT 1":
            self.statements.append(query.query)

    async def commit(self, *operations: Operation) -> list[object]:
        await asyncio.sleep(0)
        self.statements.clear()
        outcomes = await self.ledger.commit(operations)
        # The driver logs a statement in the next turn of the event loop.
        await asyncio.sleep(0)
        return [*outcomes]

    @property
    def has_locked(self) -> bool:
        """Whether its last transaction locked its rows before it changed them."""
        return self.statements[0] == "BEGIN"

    async def find(self, job_id: str) -> Job | None:
        """The job as its next transaction would find it."""
        found = await self.database.run(lambda transaction: transaction.find_jobs([job_id]))
        return next(iter(found), None)

    async def account(self, bucket: Bucket) -> Account | None:
        return (await self.database.run(lambda transaction: transaction.find_accounts([bucket]))).get(bucket)

    async def run(self, statement: str) -> None:
        """Do something past the ledger."""
        async with self.database.writing() as connection:
            await connection.execute(text(statement))


@pytest.fixture
def url(postgres_databases: PostgresDatabases) -> str:
    return postgres_databases.migrated()


@pytest.fixture
def process(url: str, open_stores: OpenStores) -> Process:
    return Process(open_stores(url))


@pytest.fixture
def other(url: str, open_stores: OpenStores) -> Process:
    return Process(open_stores(url))


async def test_a_call_takes_one_statement_a_step(process: Process) -> None:
    await process.commit(Reserve(job(Charge(REQUESTS, 1, 100))))
    assert process.has_locked
    one = job(Charge(REQUESTS, 5, 100))
    for operation in (Reserve(one), Accept(one.id, "fal-1", 5000.0), Settle(one.id, {"requests": 2}, 1010.0)):
        assert await process.commit(operation) == [Granted()]
        assert len(process.statements) == 1
    assert await process.account(REQUESTS) == Account(used=2, reserved=1)


async def test_rows_that_are_not_known_are_read_without_a_lock(process: Process, other: Process) -> None:
    one = job()
    await process.commit(Reserve(job()))
    await other.commit(Reserve(one))
    assert await process.commit(Accept(one.id, "fal-1", 5000.0)) == [Granted()]
    assert len(process.statements) == 2 and "BEGIN" not in process.statements


async def test_a_pooler_gets_transactions_only(url: str, open_stores: OpenStores) -> None:
    """Its next statement may come to another server, which does not know what the one before has prepared."""
    process = Process(open_stores(f"{url}?pgbouncer=true"))
    for _ in range(3):
        assert await process.commit(Reserve(job(Charge(REQUESTS, 1, 100)))) == [Granted()]
        assert (process.statements[0], process.statements[-1]) == ("BEGIN", "COMMIT")


async def test_a_connection_that_the_server_ended_meanwhile_is_replaced(
    process: Process, url: str, postgres: Postgres
) -> None:
    assert await process.commit(Reserve(job(Charge(REQUESTS, 1, 100)))) == [Granted()]
    name = url.rpartition("/")[2]
    ending = f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = '{name}'"
    await asyncio.to_thread(postgres.ask, "postgres", ending)
    # A connection that answered just now would not be asked.
    await asyncio.sleep(FRESH_SECONDS)
    assert await process.commit(Reserve(job(Charge(REQUESTS, 1, 100)))) == [Granted()]


async def test_transactions_at_the_same_time_have_connections_of_their_own(process: Process) -> None:
    await process.commit(Reserve(job(Charge(REQUESTS, 1, 100))))
    calls = [process.ledger.commit([Reserve(job(Charge(REQUESTS, 1, 100)))]) for _ in range(30)]
    assert await asyncio.gather(*calls) == [[Granted()]] * 30
    assert await process.account(REQUESTS) == Account(reserved=31)


async def test_what_another_process_reserved_is_not_granted_again(process: Process, other: Process) -> None:
    await process.commit(Reserve(job(Charge(REQUESTS, 1, 10))))
    await other.commit(Reserve(job(Charge(REQUESTS, 8, 10))))
    assert await process.commit(Reserve(job(Charge(REQUESTS, 2, 10)))) == [Exhausted(REQUESTS, 1)]
    assert await process.commit(Reserve(job(Charge(REQUESTS, 1, 10)))) == [Granted()]


async def test_what_another_process_freed_is_not_refused(process: Process, other: Process) -> None:
    """A refusal writes nothing, and is worked out from known rows too."""
    one = job(Charge(REQUESTS, 10, 10))
    await process.commit(Reserve(one))
    await other.commit(Settle(one.id, None, 1010.0))
    assert await process.commit(Reserve(job(Charge(REQUESTS, 10, 10)))) == [Granted()]


async def test_a_job_that_another_process_settled_is_not_settled_again(process: Process, other: Process) -> None:
    one = job()
    await process.commit(Reserve(one))
    await other.commit(Settle(one.id, {"requests": 3}, 1010.0))
    assert await process.commit(Settle(one.id, {"requests": 4}, 1020.0)) == [Stale()]
    assert await process.find(one.id) == one._replace(state="settled", used={"requests": 3}, checked_at=1010.0)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE jobs SET subject = 'pseudonym'",
        "UPDATE jobs SET tenant = 'former'",
        "UPDATE jobs SET checked_at = checked_at + 1",
        "UPDATE jobs SET expires_at = expires_at + 1",
        "UPDATE jobs SET request_id = 'fal-0'",
        "DELETE FROM jobs",
        "UPDATE quota_usage SET used = used + 1",
        "UPDATE quota_usage SET reserved = reserved + 1",
        "DELETE FROM quota_usage",
    ],
)
async def test_every_change_of_a_row_is_seen(process: Process, other: Process, change: str) -> None:
    one = job(Charge(REQUESTS, 5, 100))
    await process.commit(Reserve(one))
    await other.run(change)
    outcome = await process.commit(Settle(one.id, {"requests": 1}, 1010.0))
    assert "BEGIN" in process.statements
    assert outcome == ([Stale()] if change == "DELETE FROM jobs" else [Granted()])


async def test_after_a_change_rows_are_locked_for_a_while(process: Process, other: Process) -> None:
    await process.commit(Reserve(job(Charge(REQUESTS, 1, 100))))
    await other.commit(Reserve(job(Charge(REQUESTS, 1, 100))))
    await process.commit(Reserve(job(Charge(REQUESTS, 1, 100))))
    assert not process.has_locked and "BEGIN" in process.statements
    locked = []
    for _ in range(LOCKED_AFTER_CHANGE + 1):
        await process.commit(Reserve(job(Charge(REQUESTS, 1, 100))))
        locked.append(process.has_locked)
    assert locked == [True] * LOCKED_AFTER_CHANGE + [False]


async def test_a_transaction_that_fails_leaves_no_row_known(process: Process) -> None:
    one, two = job(Charge(REQUESTS, 5, 10)), job(Charge(REQUESTS, 1, 10))
    await process.commit(Reserve(one))
    with pytest.raises(DataRefused):
        await process.commit(Settle(one.id, None, 1010.0), Reserve(two._replace(id=one.id)))
    assert (await process.find(one.id), await process.account(REQUESTS)) == (one, Account(reserved=5))
    assert await process.commit(Reserve(two)) == [Granted()]
    assert len(process.statements) == 1


async def test_the_rows_that_are_known_have_a_bound(process: Process) -> None:
    first = job()
    await process.commit(Reserve(first))
    await process.commit(*(Reserve(job()) for _ in range(MOST_ROWS)))
    for number in (1, 2):
        # A transaction that finds too many known rows uses them, and leaves only its own.
        await process.commit(Reserve(job()))
        await process.commit(Accept(first.id, "fal-1", 5000.0 + number))
        assert len(process.statements) == (2 if number == 1 else 1)


async def test_jobs_that_are_over_are_not_kept(process: Process) -> None:
    lasting = job()
    await process.commit(Reserve(lasting))
    for _ in range(3):
        ended = [job() for _ in range(MOST_ROWS // 2)]
        await process.commit(*map(Reserve, ended))
        await process.commit(*(Settle(one.id, {}, 1010.0) for one in ended))
    await process.commit(Accept(lasting.id, "fal-1", 5000.0))
    assert len(process.statements) == 1


@pytest.mark.parametrize("seed", range(3))
async def test_random_operations_find_the_same_as_a_read(
    url: str, process: Process, other: Process, open_stores: OpenStores, seed: int
) -> None:
    dice, fresh = random.Random(seed), Process(open_stores(f"{url}?pgbouncer=true"))
    known = [job(Charge(REQUESTS, 3, 40), Charge(ALICES, 5, 60))]
    await process.commit(Reserve(known[0]))
    unlocked = 0
    for number in range(120):
        # Long turns of one, so that it comes to transactions without locks.
        writer = (process, other)[number // 30 % 2] if dice.random() < 0.97 else dice.choice([process, other])
        known.append(job(Charge(dice.choice([REQUESTS, ALICES]), dice.randrange(9), 60)))
        some = [dice.choice(known[-5:]).id for _ in range(3)]
        operations = [
            Reserve(known[-1]),
            Accept(some[0], f"fal-{number}", 5000.0),
            Settle(some[1], {"requests": dice.randrange(2), "tokens": 1}, 1010.0),
            Settle(some[2], None, 1010.0),
        ]
        await writer.commit(*dice.sample(operations, dice.randint(1, 4)))
        unlocked += "BEGIN" not in writer.statements
        for one in known[-6:]:
            assert await writer.find(one.id) == await fresh.find(one.id)
        for bucket in (REQUESTS, ALICES):
            assert await writer.account(bucket) == await fresh.account(bucket)
    assert unlocked
