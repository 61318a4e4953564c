"""Operations that share a transaction do not share its failure."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from sqlalchemy import TextClause, delete, text

from proxy.errors import StoreUnavailable
from proxy.stores.batching import MOST_AT_ONCE, LedgerBatcher, LedgerTimeouts
from proxy.stores.errors import DataRefused, TransactionAborted
from proxy.stores.ledger import Accept, Account, Bucket, Charge, Granted, Operation, Outcome, Reserve, Settle
from proxy.stores.sql import SqlStores
from proxy.stores.sql.database import Database
from proxy.stores.sql.ledger import SqlLedger
from proxy.stores.sql.schema import quota_usage
from tests.stores.conftest import OpenStores
from tests.stores.records import ALICES, REQUESTS, job
from tests.support.audit import read_report
from tests.support.databases import PostgresDatabases, SqliteDatabases
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.anyio
STRANGERS = 99
LIMIT = 10_000


class CountingLedger(SqlLedger):
    """The real one, with the sizes of its transactions."""

    def __init__(self, stores: SqlStores, before: Callable[[int], None] = lambda _: None) -> None:
        super().__init__(stores.ledger._database)
        self.sizes: list[int] = []
        self._before = before

    async def commit(self, operations: Sequence[Operation]) -> list[Outcome]:
        self.sizes.append(len(operations))
        self._before(len(self.sizes))
        return await super().commit(operations)


class HeldLedger(SqlLedger):
    """The real one, whose transactions begin when they may."""

    def __init__(self, stores: SqlStores) -> None:
        super().__init__(stores.ledger._database)
        self.may_begin = asyncio.Event()
        self.may_begin.set()

    async def commit(self, operations: Sequence[Operation]) -> list[Outcome]:
        await self.may_begin.wait()
        return await super().commit(operations)


def strangers() -> list[Reserve]:
    """Calls of other users: each has an account of its own beside the one that all of them share."""
    own = [Bucket("acme", f"user-{number}", "requests", "day", 0) for number in range(STRANGERS)]
    return [Reserve(job(Charge(REQUESTS, 1, LIMIT), Charge(bucket, 1, 1))) for bucket in own]


async def committed(
    batcher: LedgerBatcher, operations: Sequence[Operation]
) -> tuple[list[Outcome], list[BaseException]]:
    done = await asyncio.gather(*map(batcher.commit, operations), return_exceptions=True)
    outcomes = [one for one in done if not isinstance(one, BaseException)]
    return outcomes, [one for one in done if isinstance(one, BaseException)]


def among(strangers: Sequence[Operation], *bad: Operation) -> list[Operation]:
    """The operations at fault, between those of others."""
    return [*strangers[:50], *bad, *strangers[50:]]


async def test_an_id_that_is_known_already_fails_alone(stores: SqlStores, database_url: str) -> None:
    batcher = LedgerBatcher(stores.ledger)
    first, second = job(Charge(REQUESTS, 1, LIMIT)), job(Charge(REQUESTS, 1, LIMIT))
    others = strangers()
    await committed(batcher, [Reserve(first), Reserve(second), *others, Accept(first.id, "taken", 9000.0)])
    accepted = [Accept(other.job.id, f"id-{number}", 9000.0) for number, other in enumerate(others)]
    outcomes, failures = await committed(batcher, among(accepted, Accept(second.id, "taken", 9000.0)))
    assert outcomes == [Granted()] * STRANGERS and [type(one) for one in failures] == [DataRefused]
    found = await stores.ledger.find("taken")
    assert found is not None and found.id == first.id
    entries = {entry.id: entry for entry in (await read_report(database_url)).entries}
    assert [entries[one.job_id].request_id for one in accepted] == [one.request_id for one in accepted]


@pytest.mark.parametrize(
    "bad",
    [
        job(Charge(REQUESTS, 2**63, 2**64)),
        job(Charge(ALICES._replace(window_start=2**63), 1, 9)),
        job(Charge(REQUESTS, 1, LIMIT), subject="alice\ud800"),
        job(Charge(REQUESTS, 1, LIMIT), submitted_at=None),
    ],
    ids=["amount out of range", "window out of range", "text without bytes", "value that is missing"],
)
async def test_data_that_cannot_be_written_fails_alone(stores: SqlStores, database_url: str, bad: object) -> None:
    reserve = Reserve(bad)  # type: ignore[arg-type]
    ledger = CountingLedger(stores)
    outcomes, failures = await committed(LedgerBatcher(ledger), among(strangers(), reserve))
    assert outcomes == [Granted()] * STRANGERS
    assert len(failures) == 1 and isinstance(failures[0], StoreUnavailable)
    # Halves of halves, and not one by one.
    assert len(ledger.sizes) < 20
    report = await read_report(database_url)
    report.check()
    assert report.accounts[REQUESTS].reserved == STRANGERS


async def test_several_at_fault_fail_alone(stores: SqlStores) -> None:
    bad = [Reserve(job(Charge(REQUESTS, 2**63, 2**64))) for _ in range(3)]
    others = strangers()
    operations = [bad[0], *others[:40], bad[1], *others[40:], bad[2]]
    outcomes, failures = await committed(LedgerBatcher(stores.ledger), operations)
    assert outcomes == [Granted()] * STRANGERS and len(failures) == 3


async def test_operations_keep_their_order_when_they_are_split(stores: SqlStores) -> None:
    """A reservation and its settlement stand on both sides of the middle."""
    mine = job(Charge(REQUESTS, 3, LIMIT))
    bad = Reserve(job(Charge(REQUESTS, 2**63, 2**64)))
    operations = [bad, Reserve(mine), Accept(mine.id, "mine", 9000.0), Settle(mine.id, {"requests": 2}, 1010.0)]
    outcomes, failures = await committed(LedgerBatcher(stores.ledger), operations)
    assert outcomes == [Granted()] * 3 and len(failures) == 1
    assert (await stores.ledger.accounts([REQUESTS]))[REQUESTS] == Account(used=2, reserved=0)


async def test_accounts_that_were_deleted_are_made_again(stores: SqlStores, open_stores: OpenStores) -> None:
    """As by an operator, or by a restore: no call fails for it, and what was reserved before is not given twice."""
    batcher = LedgerBatcher(stores.ledger)
    before = strangers()
    await committed(batcher, before)
    async with stores.ledger._database.writing() as connection:
        await connection.execute(delete(quota_usage))
    after = [replace(one, job=one.job._replace(id=job().id)) for one in before]
    outcomes, failures = await committed(batcher, after)
    assert outcomes == [Granted()] * STRANGERS and not failures
    assert (await stores.ledger.accounts([REQUESTS]))[REQUESTS] == Account(reserved=STRANGERS)
    settled = [Settle(one.job.id, {"requests": 1}, 1010.0) for one in (*before, *after)]
    outcomes, failures = await committed(batcher, settled)
    assert outcomes == [Granted()] * (2 * STRANGERS) and not failures
    assert (await stores.ledger.accounts([REQUESTS]))[REQUESTS] == Account(used=2 * STRANGERS, reserved=0)


async def test_a_store_that_is_down_is_asked_once(sqlite_databases: SqliteDatabases, open_stores: OpenStores) -> None:
    url = sqlite_databases.migrated()
    holder = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    ledger = CountingLedger(open_stores(url, 0.05))
    operations = strangers()[:MOST_AT_ONCE]
    outcomes, failures = await committed(LedgerBatcher(ledger), operations)
    holder.execute("ROLLBACK")
    holder.close()
    assert ledger.sizes == [MOST_AT_ONCE] and not outcomes
    assert {type(one) for one in failures} == {StoreUnavailable}


async def test_a_store_that_goes_down_while_a_batch_is_split_is_not_asked_for_the_rest(
    sqlite_databases: SqliteDatabases, open_stores: OpenStores
) -> None:
    url = sqlite_databases.migrated()
    holder = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)

    def lock_after_two(commits: int) -> None:
        if commits == 3:
            holder.execute("BEGIN EXCLUSIVE")

    ledger = CountingLedger(open_stores(url, 0.05), lock_after_two)
    operations = [*strangers()[:40], Reserve(job(Charge(REQUESTS, 2**63, 2**64)))]
    outcomes, failures = await committed(LedgerBatcher(ledger), operations)
    holder.execute("ROLLBACK")
    holder.close()
    # The whole, the first half, and the second half, which meets the lock.
    assert ledger.sizes == [41, 20, 21]
    assert len(outcomes) == 20 and len(failures) == 21


@pytest.mark.tools
@pytest.mark.parametrize("size", [2, 1], ids=["two calls", "one call"])
async def test_a_transaction_that_the_database_undoes_is_tried_in_halves(
    postgres_databases: PostgresDatabases, open_stores: OpenStores, size: int
) -> None:
    """Another connection locks accounts in another order: the deadlock fails only the calls that meet it again."""
    stores = open_stores(postgres_databases.migrated())
    first, middle, last = (Bucket("acme", subject, "requests", "day", 0) for subject in ("a", "m", "z"))
    charges = [Charge(bucket, 1, 9) for bucket in (first, middle, last)]
    ledger = HeldLedger(stores)
    # The deadlock ends this, and not its time.
    batcher = LedgerBatcher(ledger, LedgerTimeouts(reserve=120.0))
    await committed(batcher, [Reserve(job(*charges))])
    calls = [Reserve(job(*charges)) for _ in range(size)]
    one, other = (open_stores(stores.ledger._database._url)._database for _ in range(2))
    async with other.writing() as connection:
        # It does not look for a deadlock itself: the calls are the side to be undone.
        await connection.execute(text("SET LOCAL deadlock_timeout = '5min'"))
        await connection.execute(_locking("z"))
        # PostgreSQL looks for a deadlock once, a second after a wait has begun. So the calls wait for the last account
        # only when the other connection waits for the first one already.
        async with one.writing() as between:
            await between.execute(_locking("m"))
            committing = asyncio.create_task(committed(batcher, calls))
            await wait_until_async(lambda: _waiting_for_locks(one, 1), "the calls do not wait for the account")
            # Halves that came before the other connection has what it waits for would meet the deadlock again.
            ledger.may_begin.clear()
            locking = asyncio.create_task(connection.execute(_locking("a")))
            await wait_until_async(lambda: _waiting_for_locks(one, 2), "nothing waits for the calls")
        await locking
    ledger.may_begin.set()
    outcomes, failures = await committing
    if size == 1:
        # Alone, it is refused.
        assert [type(one) for one in failures] == [TransactionAborted]
    else:
        assert outcomes == [Granted()] * size
    assert (await stores.ledger.accounts([first]))[first] == Account(reserved=1 + len(outcomes))


def _locking(subject: str) -> TextClause:
    return text(f"SELECT * FROM quota_usage WHERE subject = '{subject}' FOR UPDATE")


async def _waiting_for_locks(database: Database, number: int) -> bool:
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    async with database.reading() as connection:
        return bool((await connection.execute(text(waiting))).scalar_one() == number)
