"""Usage is reported from sums: each settled job is counted once, and reports are the same before and after."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest
from sqlalchemy import select, text

from proxy.stores.grants import SUBJECT_GRANT, TENANT_GRANT
from proxy.stores.ledger import Accept, Bucket, Charge, Granted, Job, Reserve, Settle
from proxy.stores.sql import SqlStores, schema
from proxy.stores.sql.database import Database
from tests.stores.conftest import OpenStores
from tests.stores.expired import count, expiry, remove
from tests.stores.records import job
from tests.stores.test_retention import DAY, Population, answers
from tests.support.databases import Databases, SqliteDatabases

pytestmark = pytest.mark.anyio


async def settled_jobs(stores: SqlStores) -> int:
    """How many jobs are still to be counted."""
    async with stores.ledger._database.reading() as connection:
        return list(await connection.scalars(select(schema.jobs.c.state))).count("settled")


@pytest.mark.parametrize("seed", range(3))
async def test_reports_are_the_same_however_jobs_are_counted_and_removed(
    stores: SqlStores, database_url: str, seed: int
) -> None:
    dice = random.Random(seed)
    population = Population(dice, 150)
    await population.write(stores)
    expected = await answers(stores)
    assert any(expected)
    while True:
        found = await stores.retention.find("jobs", expiry(jobs=20.0 * DAY), dice.randrange(1, 20))
        # Some of those that were found are counted before they are removed.
        await stores.usage_rollup.count(dice.randrange(1, 20))
        if dice.random() < 0.5:
            await remove(stores, "jobs", found)
        if dice.random() < 0.2:
            assert await answers(stores) == expected
        if not found:
            break
    assert await answers(stores) == expected
    assert await count(database_url, schema.jobs) == len(population.jobs) - len(population.settled)


async def test_open_and_released_jobs_are_not_counted(stores: SqlStores) -> None:
    kept, released, settled = (job() for _ in range(3))
    await stores.ledger.commit([Reserve(one) for one in (kept, released, settled)])
    await stores.ledger.commit([Settle(released.id, None, 1010.0), Settle(settled.id, {"requests": 3}, 1010.0)])
    assert [await stores.usage_rollup.count(10) for _ in range(2)] == [1, 0]
    for one, state in ((kept, "reserved"), (released, "released"), (settled, "counted")):
        found = await stores.ledger.get(one.id)
        assert found is not None and found.state == state
    assert found.is_over and found.is_booked


async def test_a_job_whose_id_comes_late_is_counted_once(stores: SqlStores) -> None:
    one = job()
    await stores.ledger.commit([Reserve(one), Settle(one.id, {"requests": 3}, 1010.0)])
    assert await stores.usage_rollup.count(10) == 1
    assert await stores.ledger.commit([Accept(one.id, "late", 5000.0)]) == [Granted()]
    found = await stores.ledger.find("late")
    assert found is not None and found.id == one.id
    assert await stores.usage_rollup.count(10) == 0
    (row,) = await stores.ledger.usage("acme", None, 0.0, DAY, frozenset())
    assert (row.calls, row.used) == (1, {"requests": 3})


async def sums_of(url: str) -> dict[str, list[tuple[object, ...]]]:
    """The sums of days and hours, and of what grants paid, by table; whole units and their rest are one amount."""
    database, found = Database(url), {}
    try:
        async with database.reading() as connection:
            for table in (schema.usage_days, schema.grant_days, schema.spend_hours):
                keys, figures = list(table.primary_key), [one for one in table.c if not one.primary_key]
                wholes = {one.name.removesuffix("_whole") for one in figures if one.name.endswith("_whole")}
                rows = (await connection.execute(select(table).order_by(*keys))).mappings().all()
                found[table.name] = [
                    (
                        *(row[key.name] for key in keys),
                        *(row[f"{unit}_whole"] * 10**6 + row[f"{unit}_rest"] for unit in sorted(wholes)),
                        *(f"{row[one.name]:.9g}" for one in figures if not one.name.endswith(("_whole", "_rest"))),
                    )
                    for row in rows
                ]
    finally:
        await database.close()
    return found


def paid_job(dice: random.Random, at: float) -> Job:
    """A call that one of two grants pays for, beside a quota."""
    subject, window = dice.choice((("", TENANT_GRANT), ("alice", SUBJECT_GRANT)))
    own, grant = Bucket("acme", subject, "usd", "day", 0), Bucket("acme", " grant a", "usd", window, 9000)
    return job(Charge(own, 10**6, 10**15), Charge(grant, 3 * 10**6, 10**15), submitted_at=at)


@pytest.mark.parametrize("most", [1, 7, 1000])
async def test_counting_adds_what_removing_adds(
    sqlite_databases: SqliteDatabases, open_stores: OpenStores, most: int
) -> None:
    """On SQLite, statements of its own count jobs; what is removed before it was counted is added up here."""
    urls = [sqlite_databases.migrated() for _ in range(2)]
    counting, removing = (open_stores(url) for url in urls)
    paid, vast = [paid_job(random.Random(number), number * 700.0) for number in range(150)], [job(), job()]
    for stores in (counting, removing):
        await Population(random.Random(7), 150).write(stores)
        for one in paid:
            await stores.ledger.commit([Reserve(one)])
            await stores.ledger.commit([Settle(one.id, {"usd": 3_000_001}, one.submitted_at)])
        await stores.ledger.commit([Reserve(one) for one in vast])
        await stores.ledger.commit([Settle(one.id, {"usd": 2**62 + 7}, 1010.0) for one in vast])
    while await counting.usage_rollup.count(most):
        pass
    while found := await removing.retention.find("jobs", expiry(jobs=20.0 * DAY), 50):
        await remove(removing, "jobs", found)
    counted = await sums_of(urls[0])
    assert counted == await sums_of(urls[1])
    assert all(counted.values())
    assert await settled_jobs(counting) == 0


async def test_processes_that_count_at_once_count_each_job_once(
    stores: SqlStores, open_stores: OpenStores, database_url: str
) -> None:
    population = Population(random.Random(5), 200)
    await population.write(stores)
    expected, to_count = await answers(stores), await settled_jobs(stores)

    async def count_all(one: SqlStores) -> int:
        total = 0
        while await settled_jobs(one):
            total += await one.usage_rollup.count(7) or 0
        return total

    processes = [stores, open_stores(database_url), open_stores(database_url)]
    totals = await asyncio.gather(*map(count_all, processes))
    assert sum(totals) == to_count > 100
    assert await answers(stores) == expected


@pytest.mark.tools
async def test_one_process_at_a_time_counts(postgres_databases: Databases, open_stores: OpenStores) -> None:
    """Also not while another one removes: both change sums."""
    url = postgres_databases.migrated()
    stores, other, one = open_stores(url), Database(url), job()
    await stores.ledger.commit([Reserve(one), Settle(one.id, {"requests": 1}, 1010.0)])
    try:
        async with other.writing() as connection:
            await connection.execute(text("SELECT pg_advisory_xact_lock(7287870002)"))
            assert await stores.usage_rollup.count(10) is None
    finally:
        await other.close()
    assert await stores.usage_rollup.count(10) == 1


async def test_the_totals_follow_every_change_of_the_sums(stores: SqlStores, database_url: str) -> None:
    """An older version that runs beside this one knows the sums of subjects only."""
    population = Population(random.Random(6), 60)
    await population.write(stores)
    await stores.usage_rollup.count(60)
    database = Database(database_url)
    changes = (
        "UPDATE usage_days SET calls = calls + 3, tokens_whole = tokens_whole + 7 WHERE day % 2 = 0",
        "UPDATE usage_days SET endpoint = endpoint || '/more' WHERE day % 3 = 0",
        "DELETE FROM usage_days WHERE day % 5 = 0",
    )
    try:
        for change in changes:
            before = await _sum_by_endpoint(stores, with_subjects=True)
            async with database.writing() as connection:
                await connection.execute(text(change))
            after = await _sum_by_endpoint(stores, with_subjects=True)
            assert after != before
            assert await _sum_by_endpoint(stores, with_subjects=False) == after
    finally:
        await database.close()


async def _sum_by_endpoint(stores: SqlStores, *, with_subjects: bool) -> Counter[tuple[str | None, str]]:
    """What a tenant used, by endpoint and unit, added up from the sums of its subjects or from the totals."""
    groups = frozenset({"endpoint", "subject"} if with_subjects else {"endpoint"})
    found = Counter[tuple[str | None, str]]()
    for row in await stores.ledger.usage("acme", None, 0.0, 100.0 * DAY, groups):
        found.update({(row.endpoint, unit): amount for unit, amount in {"calls": row.calls, **row.used}.items()})
    return found
