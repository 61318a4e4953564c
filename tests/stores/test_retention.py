"""What is past its time is removed, and what it used stays, on every kind of database."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace

import anyio
import pytest
from sqlalchemy import Table, func, select, text

from proxy.errors import StoreUnavailable
from proxy.stores.base import (
    UNITS,
    Accept,
    Account,
    Bucket,
    Charge,
    Granted,
    Job,
    Part,
    Reserve,
    Revocation,
    Settle,
    Stale,
    UsageRow,
)
from proxy.stores.retention import KINDS, Expiry
from proxy.stores.sql import SqlStores, schema
from proxy.stores.sql.database import Database
from tests.stores.conftest import OpenStores
from tests.stores.records import ALICES, CLAIM, REQUESTS, UPLOAD, job
from tests.support.databases import Databases

pytestmark = pytest.mark.anyio
DAY = 86_400
GROUPS = [frozenset(some) for size in range(4) for some in itertools.combinations(("day", "endpoint", "subject"), size)]
FOR_EVER = 9e9


def expiry(**moments: float) -> Expiry:
    """Nothing is past its time but what is named."""
    facts = {**dict.fromkeys(("jobs", "idempotency", "uploads", "revocations"), 0.0), **moments}
    return Expiry(accounts={}, **facts)


async def removed(stores: SqlStores, kind: str, past: Expiry, most: int = 50) -> int:
    """Remove all that is past its time, a batch after the other."""
    total = 0
    while found := await stores.retention.find(kind, past, most):
        rows = await stores.retention.remove(kind, found)
        assert rows == len(found)
        total += rows
    return total


async def count(url: str, table: Table) -> int:
    database = Database(url)
    try:
        async with database.reading() as connection:
            return int((await connection.execute(select(func.count()).select_from(table))).scalar_one())
    finally:
        await database.close()


# What jobs used


class Population:
    """Jobs of two tenants over ten days: most are settled, some released, some open."""

    def __init__(self, dice: random.Random, size: int) -> None:
        self.jobs = [self._job(dice) for _ in range(size)]
        self.settled = [one for one in self.jobs if dice.random() < 0.8]
        self._is_released = {one.id: dice.random() < 0.2 for one in self.settled}
        self._dice = dice

    @staticmethod
    def _job(dice: random.Random) -> Job:
        return job(
            tenant=dice.choice(("acme", "globex")),
            subject=dice.choice(("alice", "bob", "")),
            endpoint=dice.choice(("fal-ai/llava-next", "fal-ai/any-llm")),
            submitted_at=dice.choice(
                (dice.uniform(0, 10 * DAY), dice.randrange(10) * DAY, dice.randrange(1, 9) * DAY - 1e-9)
            ),
        )

    async def write(self, stores: SqlStores) -> None:
        await stores.ledger.commit([Reserve(one) for one in self.jobs])
        await stores.ledger.commit([Settle(one.id, self._used(one), one.submitted_at + 60) for one in self.settled])

    def _used(self, one: Job) -> dict[str, int] | None:
        if self._is_released[one.id]:
            return None
        units = self._dice.sample(UNITS, self._dice.randrange(len(UNITS) + 1))
        return {
            unit: self._dice.choice((0, 1, 999_999, 10**6, self._dice.randrange(2**40), 2**62 + 7)) for unit in units
        }


async def answers(stores: SqlStores) -> list[Sequence[UsageRow]]:
    """All that usage is asked, with ends at days."""
    found = []
    for tenant, subject in (("acme", None), ("acme", "alice"), ("acme", "nobody"), ("globex", None)):
        for since, until in ((0, 1), (2, 7), (5, 5), (-719_000, 2_930_000)):
            for groups in GROUPS:
                asked = stores.ledger.usage(tenant, subject, float(since * DAY), float(until * DAY), groups)
                found.append(await asked)
    return found


@pytest.mark.parametrize("seed", range(2))
async def test_usage_is_the_same_before_and_after(stores: SqlStores, database_url: str, seed: int) -> None:
    population = Population(random.Random(seed), 150)
    await population.write(stores)
    before = await answers(stores)
    assert any(before)
    total = 0
    for moment in (2.5 * DAY, 6 * DAY, 20 * DAY):
        total += await removed(stores, "jobs", expiry(jobs=moment), most=17)
        assert await answers(stores) == before, moment
    assert total == len(population.settled)
    assert await count(database_url, schema.jobs) == len(population.jobs) - total


async def test_sums_beyond_64_bits_stay(stores: SqlStores) -> None:
    most, jobs = 2**62 + 7, [job() for _ in range(6)]
    await stores.ledger.commit([Reserve(one) for one in jobs])
    await stores.ledger.commit([Settle(one.id, {"upload_bytes": most}, 5000.0) for one in jobs])
    for _ in range(2):
        found = await stores.retention.find("jobs", expiry(jobs=6000.0), 3)
        assert await stores.retention.remove("jobs", found) == 3
        (row,) = await stores.ledger.usage("acme", None, 0.0, 2.0 * DAY, frozenset(["day"]))
        assert (row.calls, row.used) == (6, {"upload_bytes": 6 * most})


async def test_a_day_whose_jobs_were_removed_counts_if_it_begins_in_the_time(stores: SqlStores) -> None:
    one = job(submitted_at=1.5 * DAY)
    await stores.ledger.commit([Reserve(one), Settle(one.id, {"requests": 1}, 5000.0)])
    await removed(stores, "jobs", expiry(jobs=6000.0))

    async def calls(since: float, until: float) -> int:
        return sum(row.calls for row in await stores.ledger.usage("acme", None, since, until, frozenset()))

    assert await calls(1.0 * DAY, 1.1 * DAY) == 1
    assert await calls(1.1 * DAY, 2.0 * DAY) == 0
    assert await calls(0.0, 1.0 * DAY) == 0


async def test_jobs_that_are_not_over_stay_however_old(stores: SqlStores) -> None:
    reserved, accepted, settled, fresh = (job() for _ in range(4))
    await stores.ledger.commit([Reserve(one) for one in (reserved, accepted, settled, fresh)])
    await stores.ledger.commit([Accept(accepted.id, "r-1", 2000.0), Settle(settled.id, {"requests": 1}, 1010.0)])
    await stores.ledger.commit([Settle(fresh.id, {"requests": 1}, 9000.0)])
    assert await removed(stores, "jobs", expiry(jobs=9000.0)) == 1
    assert await stores.ledger.get(settled.id) is None
    for one in (reserved, accepted, fresh):
        assert await stores.ledger.get(one.id) is not None


async def test_a_removed_job_is_never_booked_again(stores: SqlStores) -> None:
    """Another process, or another version of the program, may hear of it late."""
    one = job(Charge(REQUESTS, 1, 10))
    await stores.ledger.commit([Reserve(one), Settle(one.id, {"requests": 1}, 1010.0)])
    await removed(stores, "jobs", expiry(jobs=2000.0))
    late = [Settle(one.id, {"requests": 5}, 3000.0), Accept(one.id, "r-1", 4000.0)]
    assert await stores.ledger.commit(late) == [Stale(), Stale()]
    assert await stores.ledger.accounts([REQUESTS]) == {REQUESTS: Account(1, 0)}
    (row,) = await stores.ledger.usage("acme", None, 0.0, 2.0 * DAY, frozenset())
    assert (row.calls, row.used) == (1, {"requests": 1})


async def test_a_batch_that_fails_loses_no_sum(stores: SqlStores, database_url: str) -> None:
    jobs = [job() for _ in range(3)]
    await stores.ledger.commit([Reserve(one) for one in jobs])
    await stores.ledger.commit([Settle(one.id, {"requests": 1}, 1010.0) for one in jobs])
    found, database = await stores.retention.find("jobs", expiry(jobs=2000.0), 9), Database(database_url)
    try:
        async with database.writing() as connection:
            for statement in _REFUSING[database.dialect.name]:
                await connection.execute(text(statement))
    finally:
        await database.close()
    with pytest.raises(StoreUnavailable):
        await stores.retention.remove("jobs", found)
    assert await count(database_url, schema.usage_days) == 0
    assert await count(database_url, schema.jobs) == 3


#: No job can be deleted: what came before in the transaction is undone.
_REFUSING = {
    "sqlite": ["CREATE TRIGGER refuse BEFORE DELETE ON jobs BEGIN SELECT RAISE(ABORT, 'no'); END"],
    "postgresql": [
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$",
        "CREATE TRIGGER refuse BEFORE DELETE ON jobs FOR EACH ROW EXECUTE FUNCTION refuse()",
    ],
}


# Several at once


async def test_two_processes_remove_each_job_once(
    stores: SqlStores, open_stores: OpenStores, database_url: str
) -> None:
    population = Population(random.Random(7), 200)
    await population.write(stores)
    before, totals = await answers(stores), list[int]()
    everything = expiry(jobs=20.0 * DAY)

    async def remove(one: SqlStores) -> None:
        total = 0
        while found := await one.retention.find("jobs", everything, 20):
            total += await one.retention.remove("jobs", found) or 0
        totals.append(total)

    async with anyio.create_task_group() as group:
        for one in (stores, open_stores(database_url), open_stores(database_url)):
            group.start_soon(remove, one)
    assert sum(totals) == len(population.settled)
    assert await answers(stores) == before


@pytest.mark.tools
async def test_one_process_at_a_time_removes(postgres_databases: Databases, open_stores: OpenStores) -> None:
    url = postgres_databases.migrated()
    stores, other, one = open_stores(url), Database(url), job()
    await stores.ledger.commit([Reserve(one), Settle(one.id, {"requests": 1}, 1010.0)])
    found = await stores.retention.find("jobs", expiry(jobs=2000.0), 9)
    try:
        async with other.writing() as connection:
            await connection.execute(text("SELECT pg_advisory_xact_lock(7287870002)"))
            assert await stores.retention.remove("jobs", found) is None
    finally:
        await other.close()
    assert await stores.retention.remove("jobs", found) == 1


async def test_calls_go_on_beside_it(stores: SqlStores, open_stores: OpenStores, database_url: str) -> None:
    population = Population(random.Random(3), 300)
    await population.write(stores)
    calls, other = [job(Charge(REQUESTS, 1, 10**6)) for _ in range(200)], open_stores(database_url)

    async def call() -> None:
        for one in calls:
            outcomes = await other.ledger.commit([Reserve(one), Settle(one.id, {"requests": 1}, FOR_EVER)])
            assert outcomes == [Granted(), Granted()]

    async with anyio.create_task_group() as group:
        group.start_soon(call)
        assert await removed(stores, "jobs", expiry(jobs=20.0 * DAY), most=10) == len(population.settled)
    assert await stores.ledger.accounts([REQUESTS]) == {REQUESTS: Account(200, 0)}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_batch_touches_no_more_than_it_was_given(stores: SqlStores, database_url: str, kind: str) -> None:
    table = schema.metadata.tables["quota_usage" if kind == "accounts" else kind]
    await _fill(stores, 12)
    if kind == "uploads":
        await removed(stores, "upload_parts", _EVERYTHING)
    before = await count(database_url, table)
    found = await stores.retention.find(kind, _EVERYTHING, 5)
    assert len(found) == 5
    assert await stores.retention.remove(kind, found) == 5
    assert await count(database_url, table) == before - 5
    # Found by several, removed by one.
    assert await stores.retention.remove(kind, found) == 0


_EVERYTHING = Expiry(5000.0, {"day": FOR_EVER}, 5000.0, 5000.0, 5000.0)


async def _fill(stores: SqlStores, size: int) -> None:
    """As many rows of every kind, all of them old."""
    for number in range(size):
        one = job(Charge(REQUESTS._replace(window_start=number), 1, 10))
        await stores.ledger.commit([Reserve(one), Settle(one.id, {"requests": 1}, 1010.0)])
        await stores.idempotency.claim(replace(CLAIM, key_hash=f"{number}"), 0.0)
        await stores.uploads.add(replace(UPLOAD, id=f"u-{number}", in_parts=True))
        await stores.uploads.begin(Part(f"u-{number}", 1, "first", 1))
        await stores.directory.revoke(Revocation("acme", f"s-{number}", None, 1.0, 9.0))


# Rows with a time of their own


async def test_uploads_go_after_their_parts(stores: SqlStores, database_url: str) -> None:
    for id_, expires_at in (("old", 900.0), ("new", 2000.0)):
        await stores.uploads.add(replace(UPLOAD, id=id_, in_parts=True, expires_at=expires_at))
        for number in range(1, 8):
            await stores.uploads.begin(Part(id_, number, "first", 1))
    past = expiry(uploads=1000.0)
    assert await stores.retention.find("uploads", past, 9) == []
    assert await removed(stores, "upload_parts", past, most=3) == 7
    assert await removed(stores, "uploads", past) == 1
    assert await stores.uploads.get("old") is None and await stores.uploads.get("new") is not None
    assert await count(database_url, schema.upload_parts) == 7


async def test_a_key_that_was_taken_again_stays(stores: SqlStores) -> None:
    await stores.idempotency.claim(CLAIM, 0.0)
    found = await stores.retention.find("idempotency", expiry(idempotency=200.0), 9)
    again = replace(CLAIM, created_at=300.0, job_id="j-2")
    assert await stores.idempotency.claim(again, 200.0) is None
    assert await stores.retention.remove("idempotency", found) == 0
    assert await stores.idempotency.find(CLAIM) == again


async def test_a_caller_removes_no_key_but_its_own(stores: SqlStores) -> None:
    for number in range(3):
        await stores.idempotency.claim(replace(CLAIM, key_hash=f"{number}"), 0.0)
    assert await stores.idempotency.claim(replace(CLAIM, key_hash="0", job_id="j-2", created_at=900.0), 500.0) is None
    assert await removed(stores, "idempotency", expiry(idempotency=500.0)) == 2


async def test_the_newest_revocation_stays(stores: SqlStores) -> None:
    """A process reads what is behind the last number that it knows, and SQLite would give that number again."""
    for number in range(3):
        await stores.directory.revoke(Revocation("acme", f"s-{number}", None, 1.0, 9.0))
    newest = (await stores.directory.load()).newest_revocation
    assert await removed(stores, "revocations", expiry(revocations=100.0)) == 2
    await stores.directory.revoke(Revocation("acme", "s-9", None, 200.0, 300.0))
    (new,) = (await stores.directory.revocations_after(newest)).revocations
    assert new.session_id == "s-9"
    # The one before is no longer the newest.
    assert await removed(stores, "revocations", expiry(revocations=100.0)) == 1


# Accounts


def days_before(start: float) -> Expiry:
    return replace(expiry(), accounts={"day": start})


async def _account(stores: SqlStores, bucket: Bucket, *, settles: bool = True) -> Job:
    one = job(Charge(bucket, 1, 10))
    await stores.ledger.commit([Reserve(one)])
    if settles:
        await stores.ledger.commit([Settle(one.id, {bucket.unit: 1}, 1010.0)])
    return one


async def test_accounts_of_old_windows_go_unless_something_is_reserved(stores: SqlStores) -> None:
    old, busy, young = (
        REQUESTS._replace(window_start=start * DAY, subject=name) for start, name in ((1, ""), (1, "bob"), (5, ""))
    )
    month = ALICES
    for bucket in (old, young, month):
        await _account(stores, bucket)
    await _account(stores, busy, settles=False)
    assert await removed(stores, "accounts", days_before(5.0 * DAY)) == 1
    assert set(await stores.ledger.accounts([old, busy, young, month])) == {busy, young, month}


async def test_an_account_that_is_used_again_stays(stores: SqlStores) -> None:
    await _account(stores, REQUESTS)
    found = await stores.retention.find("accounts", days_before(FOR_EVER), 9)
    await _account(stores, REQUESTS, settles=False)
    assert await stores.retention.remove("accounts", found) == 0
    assert await stores.ledger.accounts([REQUESTS]) == {REQUESTS: Account(1, 1)}


async def test_an_account_that_was_removed_fails_no_call(stores: SqlStores) -> None:
    """The process has it in mind, and finds it gone."""
    await _account(stores, REQUESTS)
    assert await removed(stores, "accounts", days_before(FOR_EVER)) == 1
    one, two = job(Charge(REQUESTS, 4, 10)), job(Charge(ALICES, 4, 10))
    assert await stores.ledger.commit([Reserve(one), Reserve(two)]) == [Granted(), Granted()]
    assert await stores.ledger.commit([Settle(one.id, {"requests": 2}, 1020.0)]) == [Granted()]
    assert await stores.ledger.accounts([REQUESTS]) == {REQUESTS: Account(2, 0)}


async def test_the_oldest_job_that_is_not_over(stores: SqlStores) -> None:
    assert await stores.retention.oldest_open() is None
    jobs = [job(submitted_at=float(moment)) for moment in (10, 20, 30)]
    await stores.ledger.commit([Reserve(one) for one in jobs])
    await stores.ledger.commit([Accept(jobs[1].id, "r-1", 99.0), Settle(jobs[0].id, None, 40.0)])
    assert await stores.retention.oldest_open() == 20.0
