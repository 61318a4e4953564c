"""Lists of jobs, reports and accounts are read by an index that leads to them, on every kind of database."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import pytest
from sqlalchemy import text

from proxy.stores.ledger import Account, Charge, JobFilter, Reserve, Settle
from proxy.stores.sql import SqlStores
from proxy.stores.sql.database import Database
from proxy.stores.usage import sort_groups
from tests.stores.records import ALICES, REQUESTS, job
from tests.support.query_plans import Plan, query_plans

pytestmark = pytest.mark.anyio
DAY = 86_400.0
TENANTS, SUBJECTS, JOBS = 5, 20, 2_000


@pytest.fixture
async def filled(stores: SqlStores, database_url: str) -> SqlStores:
    """Jobs of many callers, of which few are open; the database knows its tables."""
    jobs = [
        job(
            tenant=f"tenant-{one % TENANTS}",
            subject=f"user-{one // TENANTS % SUBJECTS}",
            submitted_at=1000.0 + one,
            request_id=f"r-{one}",
        )
        for one in range(JOBS)
    ]
    for start in range(0, JOBS, 500):
        some = jobs[start : start + 500]
        await stores.ledger.commit([Reserve(one) for one in some])
        await stores.ledger.commit([Settle(one.id, {"requests": 1}, 5000.0) for one in some[10:]])
    await stores.usage_rollup.count(JOBS // 2)
    database = Database(database_url)
    try:
        if database.dialect.name == "postgresql":
            async with database.writing() as connection:
                await connection.execute(text("ANALYZE"))
    finally:
        await database.close()
    return stores


WHOSE = {"owner": JobFilter("tenant-1", "user-7"), "tenant": JobFilter("tenant-1")}
PAGES = [
    {"endpoints": endpoints, "since": since, "after": after}
    for endpoints, since, after in product((None, ["fal-ai/llava-next"]), (None, 1500.0), (None, (2500.0, "a")))
]


@pytest.mark.parametrize("whose", WHOSE)
async def test_a_list_reads_the_index_of_its_owner(filled: SqlStores, whose: str) -> None:
    for page, is_over in product(PAGES, (None, True)):
        wanted = replace(WHOSE[whose], **page, is_queued=bool(is_over), is_over=is_over)
        plan = await plan_of_list(filled, wanted, "bitmapscan", "sort")
        assert f"ix_jobs_{whose}" in str(plan.steps), (wanted, plan)
        # Jobs of the same moment may be sorted, but not all of them.
        assert not re.search("USE TEMP B-TREE FOR ORDER BY|-> +Sort ", str(plan.steps)), (wanted, plan)


@pytest.mark.parametrize("whose", WHOSE)
async def test_a_list_of_open_jobs_reads_the_index_of_states(filled: SqlStores, whose: str) -> None:
    """The caller may have a million jobs that are over."""
    for page in PAGES:
        wanted = replace(WHOSE[whose], **page, is_queued=True, is_over=False)
        plan = await plan_of_list(filled, wanted)
        assert "ix_jobs_state" in str(plan.steps), (wanted, plan)


async def plan_of_list(stores: SqlStores, wanted: JobFilter, *avoided: str) -> Plan:
    with query_plans(*avoided) as plans:
        await stores.ledger.list_jobs(wanted, 10)
    (plan,) = plans
    assert not plan.whole_tables
    return plan


TOTALS, BY_SUBJECT = "INDEX sqlite_autoindex_usage_totals_1", "INDEX sqlite_autoindex_usage_days_1"


@pytest.mark.parametrize(
    ("subject", "groups", "index"),
    [
        (None, (), TOTALS),
        (None, ("day",), TOTALS),
        (None, ("endpoint",), TOTALS),
        (None, ("day", "endpoint"), TOTALS),
        (None, ("subject",), BY_SUBJECT),
        (None, ("day", "subject"), "INDEX ix_usage_days_day"),
        (None, ("day", "endpoint", "subject"), "INDEX ix_usage_days_day"),
        (None, ("endpoint", "subject"), BY_SUBJECT),
        ("user-7", (), BY_SUBJECT),
        ("user-7", ("day",), BY_SUBJECT),
    ],
)
async def test_a_report_reads_no_job_that_is_counted(
    filled: SqlStores, subject: str | None, groups: Sequence[str], index: str
) -> None:
    names = {"day": "1970-01-01", "endpoint": "fal-ai/any-llm", "subject": "user-3"}
    for after in ([], [names[name] for name in sort_groups(groups)]):
        with query_plans() as plans:
            await filled.ledger.usage("tenant-1", subject, 0.0, DAY, frozenset(groups), after=after, most=10)
        (plan,) = plans
        assert "ix_jobs_state" in str(plan.steps), plan
        assert [step for step in plan.whole_tables if "anon_" not in step] == []
        if "SEARCH" in str(plan.steps):
            # PostgreSQL chooses by what is in the table.
            assert index in str(plan.steps), plan


@pytest.mark.parametrize("groups", [("tenant",), ("tenant", "day"), ("tenant", "day", "endpoint")])
async def test_a_report_of_all_tenants_reads_the_sums_in_their_order(filled: SqlStores, groups: Sequence[str]) -> None:
    names = {"tenant": "tenant-1", "day": "1970-01-01", "endpoint": "fal-ai/any-llm"}
    for after in ([], [names[name] for name in groups]):
        with query_plans() as plans:
            await filled.ledger.usage(None, None, 0.0, DAY, frozenset(groups), after=after, most=10)
        (plan,) = plans
        assert "ix_jobs_state" in str(plan.steps), plan
        assert "usage_totals" in str(plan.steps) and "usage_days" not in str(plan.steps), plan


async def test_a_statement_reads_few_jobs(filled: SqlStores) -> None:
    """The tenant may have a million jobs in the month, which are counted; open and uncounted ones are few."""
    with query_plans() as plans:
        assert await filled.statements.has_open_jobs("tenant-1", 0.0, DAY)
        assert not await filled.statements.sum_grants("tenant-1", 0.0, DAY)
    is_open, granted = plans
    for plan in (is_open, granted):
        assert "ix_jobs_state" in str(plan.steps), plan
        assert [step for step in plan.whole_tables if "grant_days" not in step] == [], plan
    if "SEARCH" in str(granted.steps):
        # PostgreSQL chooses by what is in the table.
        assert "sqlite_autoindex_grant_days_1" in str(granted.steps), granted


async def test_accounts_are_read_by_their_keys(stores: SqlStores) -> None:
    """A session asks for its own, and the table has those of all users and windows."""
    await stores.ledger.commit([Reserve(job(Charge(REQUESTS, 1, 10), Charge(ALICES, 1, 10)))])
    other = REQUESTS._replace(window_start=86_400)
    with query_plans() as plans:
        found = await stores.ledger.accounts([ALICES, other, REQUESTS])
    assert found == {REQUESTS: Account(0, 1), ALICES: Account(0, 1)}
    (plan,) = plans
    assert not plan.whole_tables, plan


async def test_jobs_that_are_named_are_found_by_their_names(filled: SqlStores) -> None:
    """And not among all that are open, of which there may be a hundred thousand."""
    names = [f"job-{one}" for one in range(100)]
    with query_plans() as plans:
        await filled.ledger.queued_among(names)
        await filled.ledger.renew_jobs(names, 6000.0, 7000.0)
        await filled.ledger.take_due(6000.0, 6000.0, 40)
    queued, renewed, due, noted = plans
    for plan in (queued, renewed, noted):
        assert re.search("sqlite_autoindex_jobs_1|jobs_pkey", str(plan.steps)), plan
    assert "ix_jobs_state" in str(due.steps), due
