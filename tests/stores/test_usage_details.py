"""Usage by hour, session and tag is that of the jobs that are kept, on every kind of database."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import combinations

import pytest
from sqlalchemy import event, text

from proxy.clock import to_iso
from proxy.errors import StoreUnavailable
from proxy.stores.ledger import Job, Reserve, Settle
from proxy.stores.removal import FormerTenant, Pseudonym
from proxy.stores.sql import SqlStores, schema
from proxy.stores.sql.database import Database
from proxy.stores.sql.ledger import SqlLedger
from proxy.stores.sql.sqlite import SqliteEngine
from proxy.stores.usage import GROUP_NAMES, UsageRow, sort_groups
from tests.stores.expired import count, expiry, removed
from tests.stores.records import job
from tests.support.query_plans import query_plans

pytestmark = pytest.mark.anyio
DAY, HOUR = 86_400, 3_600
GROUPS = [tuple(sort_groups(groups)) for size in range(4) for groups in combinations(GROUP_NAMES[1:], size)]
TAGS = ((), ("trial",), ("trial", "team:Blue"), ("Team", "_x"), ('it\'s "me"',))


@pytest.fixture
async def settled(stores: SqlStores) -> list[Job]:
    """Jobs of two tenants on two days, of which some are counted in the sums; others are open or released."""
    dice = random.Random(8)

    def make(tenant: str) -> Job:
        return job(
            tenant=tenant,
            subject=dice.choice(("alice", "bob")),
            endpoint=dice.choice(("fal-ai/llava-next", "fal-ai/any-llm")),
            submitted_at=dice.choice((dice.uniform(0, 2 * DAY), dice.randrange(48) * HOUR, 7 * HOUR - 1e-6)),
            session=dice.choice((None, "s-1", "S-2", "_3")),
            tags=dice.choice(TAGS),
        )

    jobs = [make("acme") for _ in range(120)]
    others = [make("globex") for _ in range(10)]
    await stores.ledger.commit([Reserve(one) for one in (*jobs, *others)])
    done = jobs[:100]
    await stores.ledger.commit([Settle(one.id, {"requests": 1, "tokens": 2**62}, 5000.0) for one in (*done, *others)])
    await stores.ledger.commit([Settle(one.id, None, 5000.0) for one in jobs[100:110]])
    await stores.usage_rollup.count(60)
    return done


def names_of(one: Job, groups: Sequence[str]) -> list[tuple[str, ...]]:
    """The groups that a job is in: one, but for each of its tags one."""
    found = []
    for tag in one.tags or ("",):
        moment = to_iso(one.submitted_at // HOUR * HOUR)
        facts = {"day": moment[:10], "hour": moment, "session": one.session or "", "tag": tag}
        facts |= {"endpoint": one.endpoint, "subject": one.subject}
        found.append(tuple(facts[name] for name in groups))
    return found if "tag" in groups else found[:1]


@pytest.mark.parametrize("groups", GROUPS, ids=lambda names: ",".join(names) or "nothing")
async def test_each_job_is_in_its_groups_and_pages_have_each_group_once(
    stores: SqlStores, settled: list[Job], groups: tuple[str, ...]
) -> None:
    async def read(*after: str, most: int | None = None) -> list[UsageRow]:
        asked = ("acme", None, 0.0, 2.0 * DAY, frozenset(groups))
        return list(await stores.ledger.usage_of_jobs(*asked, after=after, most=most))

    expected = Counter(names for one in settled for names in names_of(one, groups))
    rows = await read()
    assert [(row.names, row.calls) for row in rows] == sorted(expected.items())
    assert all(row.used == {"requests": row.calls, "tokens": row.calls * 2**62} for row in rows)
    for size in (3, 1000):
        pages = [await read(most=size)]
        while len(pages[-1]) == size and groups:
            pages.append(await read(*pages[-1][-1].names, most=size))
        assert [row for page in pages for row in page] == rows, size


async def test_a_report_of_a_subject_and_a_time_has_no_other_calls(stores: SqlStores, settled: list[Job]) -> None:
    async def calls(subject: str | None, since: float, until: float) -> int:
        asked = ("acme", subject, since, until, frozenset({"session"}))
        return sum(row.calls for row in await stores.ledger.usage_of_jobs(*asked))

    assert await calls("alice", 0.0, 2.0 * DAY) == sum(one.subject == "alice" for one in settled)
    assert await calls(None, float(DAY), 2.0 * DAY) == sum(one.submitted_at >= DAY for one in settled)
    assert await calls("nobody", 0.0, 2.0 * DAY) == 0


async def test_counted_jobs_stay_in_reports_and_removed_ones_do_not(stores: SqlStores, settled: list[Job]) -> None:
    asked = ("acme", None, 0.0, 2.0 * DAY)
    before = await stores.ledger.usage_of_jobs(*asked, frozenset({"tag"}))
    await stores.usage_rollup.count(1000)
    assert await stores.ledger.usage_of_jobs(*asked, frozenset({"tag"})) == before
    assert await removed(stores, "jobs", expiry(jobs=6000.0)) > 100
    assert await stores.ledger.usage_of_jobs(*asked, frozenset({"tag"})) == []
    (total,) = await stores.ledger.usage(*asked, frozenset())
    assert total.calls == len(settled), "the sums stay"


@pytest.mark.parametrize(
    ("groups", "table"),
    [
        ((), "usage_hours"),
        (("hour",), "usage_hours"),
        (("day", "endpoint", "hour"), "usage_hours"),
        (("tag",), "usage_tags"),
        (("day", "endpoint", "tag"), "usage_tags"),
    ],
    ids=lambda one: one if isinstance(one, str) else ",".join(one),
)
async def test_hours_and_tags_are_read_from_sums(
    stores: SqlStores, settled: list[Job], groups: tuple[str, ...], table: str
) -> None:
    """Of the jobs, those are read that are not counted yet: these are few, of all tenants."""
    with query_plans() as plans:
        await stores.ledger.usage_of_jobs("acme", None, 0.0, 2.0 * DAY, frozenset(groups), most=10)
    (plan,) = plans
    assert table in str(plan.steps) and "ix_jobs_state" in str(plan.steps), plan
    assert "ix_jobs_tenant" not in str(plan.steps), plan
    if "SEARCH" in str(plan.steps):
        # PostgreSQL chooses by what is in the table.
        assert f"INDEX sqlite_autoindex_{table}_1" in str(plan.steps), plan


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 4))])
async def test_sums_follow_whatever_happens_to_jobs(
    stores: SqlStores, settled: list[Job], database_url: str, seed: int
) -> None:
    """Also what an older version does, which does not know them."""
    dice, database = random.Random(seed), Database(database_url)
    older = (
        "UPDATE jobs SET state = 'counted' WHERE state = 'settled' AND session = 's-1'",
        "UPDATE jobs SET request_id = id, state = state, used = used WHERE subject = 'bob' AND state = 'counted'",
        "DELETE FROM jobs WHERE session = '_3'",
        "UPDATE jobs SET tags = NULL, session = NULL WHERE subject = 'alice' AND state IN ('settled', 'counted')",
    )
    steps: list[Callable[[], Awaitable[object]]] = [
        *(partial(_execute, database, statement) for statement in older),
        *(partial(stores.usage_rollup.count, dice.randrange(1, 30)) for _ in range(4)),
        *(partial(stores.removal.forget_some, Pseudonym("acme", name, f" {name}")) for name in ("alice", "bob")),
        partial(stores.removal.clear_some, FormerTenant("globex~0", "globex", 5000.0)),
        lambda: removed(stores, "jobs", expiry(jobs=5000.0 + dice.choice((-1, 1)))),
    ]
    dice.shuffle(steps)
    try:
        for step in steps:
            await step()
            for tenant in ("acme", "globex", "globex~0"):
                await _assert_sums_agree(stores, tenant)
        while await stores.usage_rollup.count(1000):
            pass
        await removed(stores, "jobs", expiry(jobs=6000.0))
        for table in (schema.usage_hours, schema.usage_tags):
            assert await count(database_url, table) == 0, "no tag of a removed job stays"
    finally:
        await database.close()


async def _execute(database: Database, statement: str) -> None:
    async with database.writing() as connection:
        await connection.execute(text(statement))


async def _assert_sums_agree(stores: SqlStores, tenant: str) -> None:
    """The sums are what the jobs say that are read one by one, and all groupings have the same total."""
    totals = []
    for groups in (("day", "endpoint", "hour"), ("day", "endpoint", "tag"), ("hour",), ("day",), ("endpoint",), ()):
        from_sums = await stores.ledger.usage_of_jobs(tenant, None, 0.0, 2.0 * DAY, frozenset(groups))
        read = await stores.ledger.usage_of_jobs(tenant, None, 0.0, 2.0 * DAY, frozenset({*groups, "subject"}))
        assert add_up(from_sums, groups) == add_up(read, groups), (tenant, groups)
        if "tag" not in groups:
            totals.append(add_up(from_sums, ()))
    assert all(total == totals[0] for total in totals)


def add_up(rows: Sequence[UsageRow], groups: Sequence[str]) -> Counter[tuple[object, ...]]:
    found = Counter[tuple[object, ...]]()
    for row in rows:
        names = tuple(getattr(row, group) for group in groups)
        found.update({(*names, unit): amount for unit, amount in {"calls": row.calls, **row.used}.items()})
    return found


async def test_a_report_of_too_many_jobs_is_recognised_in_an_index(stores: SqlStores, settled: list[Job]) -> None:
    asked = ("acme", None, 0.0, 2.0 * DAY)
    with query_plans() as plans:
        assert await stores.ledger.has_more_jobs(*asked, 119)
        assert not await stores.ledger.has_more_jobs(*asked, 120)
        assert not await stores.ledger.has_more_jobs("acme", "alice", 0.0, 2.0 * DAY, 119)
        assert not await stores.ledger.has_more_jobs("acme", None, 2.0 * DAY, 9.0 * DAY, 0)
    for plan in plans:
        assert not [step for step in plan.whole_tables if "anon_" not in step], plan


@pytest.mark.parametrize(("subject", "index"), [(None, "ix_jobs_tenant"), ("alice", "ix_jobs_owner")])
async def test_others_read_the_jobs_of_the_tenant_and_the_time(
    stores: SqlStores, settled: list[Job], subject: str | None, index: str
) -> None:
    for groups in (("hour", "tag"), ("subject", "hour"), ("session",), ("session", "tag")):
        after = [{"hour": "1970-01-01T00:00:00+00:00"}.get(name, "s-1") for name in groups]
        with query_plans() as plans:
            asked = ("acme", subject, 0.0, 1000.0, frozenset(groups))
            await stores.ledger.usage_of_jobs(*asked, after=after, most=10)
        (plan,) = plans
        # PostgreSQL chooses by what is in the table.
        expected = [index] if "SEARCH" in str(plan.steps) else ["ix_jobs_tenant", "ix_jobs_owner"]
        assert any(one in str(plan.steps) for one in expected), plan
        assert not [step for step in plan.whole_tables if "each_tag" not in step], plan


async def test_reports_that_read_jobs_go_one_by_one(stores: SqlStores, settled: list[Job]) -> None:
    """Each keeps a connection, and calls need some too."""
    running, most = 0, 0

    def begin(*_: object) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)

    def end(*_: object) -> None:
        nonlocal running
        running -= 1

    # Of no other stores in this process, such as those of the servers that the tests share.
    found = stores.ledger._database.engine
    engine = found._engine if isinstance(found, SqliteEngine) else found.sync_engine
    event.listen(engine, "before_cursor_execute", begin)
    event.listen(engine, "after_cursor_execute", end)
    try:
        asked = ("acme", None, 0.0, 2.0 * DAY, frozenset({"session", "tag"}))
        answers = await asyncio.gather(*(stores.ledger.usage_of_jobs(*asked) for _ in range(8)))
    finally:
        event.remove(engine, "before_cursor_execute", begin)
        event.remove(engine, "after_cursor_execute", end)
    assert most == 1 and all(answer == answers[0] for answer in answers) and answers[0]


async def test_the_wait_for_another_report_has_an_end(stores: SqlStores, settled: list[Job]) -> None:
    ledger = SqlLedger(stores.ledger._database, report_wait_seconds=0.05)
    asked = ("acme", None, 0.0, 2.0 * DAY, frozenset({"session"}))
    async with ledger._reading_jobs:
        with pytest.raises(StoreUnavailable, match="Other reports"):
            await ledger.usage_of_jobs(*asked)
        assert await ledger.usage(*asked[:4], frozenset({"day"})), "the sums are read meanwhile"
        assert await ledger.usage_of_jobs(*asked[:4], frozenset({"tag"}))
    assert await ledger.usage_of_jobs(*asked)
