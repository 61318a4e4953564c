"""What is past its time is removed, and what it used stays, on every kind of database."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import anyio
import pytest
from sqlalchemy import text

from proxy.errors import StoreUnavailable
from proxy.stores.ledger import UNITS, Accept, Account, Charge, Granted, Job, Reserve, Settle, Stale
from proxy.stores.sql import SqlStores, schema
from proxy.stores.sql.database import Database
from proxy.stores.usage import UsageRow
from tests.stores.conftest import OpenStores
from tests.stores.expired import count, expiry, remove, removed
from tests.stores.records import REQUESTS, job
from tests.support.databases import Databases

pytestmark = pytest.mark.anyio
DAY = 86_400
GROUPS = [frozenset(some) for size in range(4) for some in itertools.combinations(("day", "endpoint", "subject"), size)]
FOR_EVER = 9e9


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
        await stores.ledger.commit([Settle(one.id, self._amounts(one), one.submitted_at + 60) for one in self.settled])

    def _amounts(self, one: Job) -> dict[str, int] | None:
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
        assert await remove(stores, "jobs", found) == 3
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
        await remove(stores, "jobs", found)
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

    async def remove_all(one: SqlStores) -> None:
        total = 0
        while found := await one.retention.find("jobs", everything, 20):
            removal = await one.retention.remove("jobs", found, 60.0)
            total += removal.removed if removal else 0
        totals.append(total)

    async with anyio.create_task_group() as group:
        for one in (stores, open_stores(database_url), open_stores(database_url)):
            group.start_soon(remove_all, one)
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
            assert await stores.retention.remove("jobs", found, 1.0) is None
    finally:
        await other.close()
    assert await remove(stores, "jobs", found) == 1


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
