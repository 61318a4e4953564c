"""The benchmark of old calls fills a database as it says, and finds what is too slow."""

from __future__ import annotations

import sqlite3
import time

import pytest

from proxy.stores.sql import SqlStores, schema
from tests.bench.million import find_excesses
from tests.bench.old_calls import DAY, DAYS, JOB, TENANT, OldCalls, fill_postgresql, fill_sqlite, job_id, user
from tests.stores.conftest import OpenStores
from tests.stores.expired import count, expiry, removed
from tests.stores.test_usage_details import add_up

pytestmark = pytest.mark.anyio
CALLS = OldCalls(jobs=2_000, rows=3_000)


@pytest.fixture
async def filled(open_stores: OpenStores, database_url: str) -> SqlStores:
    if database_url.startswith("sqlite"):
        fill_sqlite(database_url.removeprefix("sqlite:///"), CALLS)
    else:
        await fill_postgresql(database_url, CALLS)
    return open_stores(database_url)


async def test_the_filled_database_has_the_stated_calls(filled: SqlStores) -> None:
    until = time.time() // DAY * DAY
    asked = (TENANT, None, until - DAYS * DAY, until)
    by_user = await filled.ledger.usage(*asked, frozenset({"subject"}))
    (total,) = await filled.ledger.usage(*asked, frozenset())
    assert total.calls == sum(row.calls for row in by_user) == CALLS.rows
    assert [row.subject for row in by_user] == [user(number) for number in range(len(by_user))]
    job = await filled.ledger.get(job_id(JOB))
    assert job is not None and (job.tenant, job.state, job.tags) == (TENANT, "counted", ("web", f"team:{JOB}"))
    by_session = await filled.ledger.usage_of_jobs(*asked, frozenset({"session"}))
    assert sum(row.calls for row in by_session) == CALLS.jobs * 9 // 10
    for groups in (("hour", "endpoint"), ("tag", "day", "endpoint")):
        from_sums = await filled.ledger.usage_of_jobs(*asked, frozenset(groups))
        read = await filled.ledger.usage_of_jobs(*asked, frozenset({*groups, "subject"}))
        assert add_up(from_sums, groups) == add_up(read, groups) != {}


async def test_the_filled_database_keeps_its_triggers_and_its_mode(filled: SqlStores, database_url: str) -> None:
    """What triggers keep follows later changes too."""
    assert await removed(filled, "jobs", expiry(jobs=time.time())) == CALLS.jobs
    if database_url.startswith("sqlite"):
        with sqlite3.connect(database_url.removeprefix("sqlite:///")) as connection:
            connection.execute("DELETE FROM usage_days")
            assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
            assert connection.execute("SELECT sum(calls) FROM usage_totals").fetchone() == (0,)
    for table in (schema.usage_hours, schema.usage_tags):
        assert await count(database_url, table) == 0


async def test_pages_that_are_too_slow_are_found() -> None:
    pages = {"/console": 299.9, "/console/jobs": 300.1}
    turns = {"empty": [{"per_second": 1000.0}], "full": [{"per_second": 910.0}]}
    slow = {"empty": [{"per_second": 1000.0}] * 3, "full": [{"per_second": rate} for rate in (1000.0, 890.0, 880.0)]}
    assert find_excesses("sqlite", pages, {"status": turns, "submit": slow}) == [
        "sqlite: /console/jobs: 300.1 ms",
        "sqlite: submit: 0.89 of the rate on an empty database",
    ]
