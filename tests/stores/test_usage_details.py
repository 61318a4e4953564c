"""Usage by hour, session and tag is read from the jobs that are kept, on every kind of database."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from itertools import combinations

import pytest
from sqlalchemy import Engine, event

from proxy.clock import to_iso
from proxy.errors import StoreUnavailable
from proxy.stores.ledger import Job, Reserve, Settle
from proxy.stores.sql import SqlStores
from proxy.stores.sql.ledger import SqlLedger
from proxy.stores.usage import GROUP_NAMES, UsageRow, sort_groups
from tests.stores.expired import expiry, removed
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


async def test_a_subject_and_a_time_are_that_and_no_more(stores: SqlStores, settled: list[Job]) -> None:
    async def calls(subject: str | None, since: float, until: float) -> int:
        asked = ("acme", subject, since, until, frozenset({"session"}))
        return sum(row.calls for row in await stores.ledger.usage_of_jobs(*asked))

    assert await calls("alice", 0.0, 2.0 * DAY) == sum(one.subject == "alice" for one in settled)
    assert await calls(None, float(DAY), 2.0 * DAY) == sum(one.submitted_at >= DAY for one in settled)
    assert await calls("nobody", 0.0, 2.0 * DAY) == 0


async def test_what_is_counted_is_the_same_and_what_is_removed_is_left_out(
    stores: SqlStores, settled: list[Job]
) -> None:
    asked = ("acme", None, 0.0, 2.0 * DAY)
    before = await stores.ledger.usage_of_jobs(*asked, frozenset({"tag"}))
    await stores.usage_rollup.count(1000)
    assert await stores.ledger.usage_of_jobs(*asked, frozenset({"tag"})) == before
    assert await removed(stores, "jobs", expiry(jobs=6000.0)) > 100
    assert await stores.ledger.usage_of_jobs(*asked, frozenset({"tag"})) == []
    (total,) = await stores.ledger.usage(*asked, frozenset())
    assert total.calls == len(settled), "the sums stay"


@pytest.mark.parametrize(("subject", "index"), [(None, "ix_jobs_tenant"), ("alice", "ix_jobs_owner")])
async def test_it_reads_the_jobs_of_the_tenant_and_the_time(
    stores: SqlStores, settled: list[Job], subject: str | None, index: str
) -> None:
    for groups in (("hour",), ("session",), ("session", "tag")):
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

    event.listen(Engine, "before_cursor_execute", begin)
    event.listen(Engine, "after_cursor_execute", end)
    try:
        asked = ("acme", None, 0.0, 2.0 * DAY, frozenset({"session", "tag"}))
        answers = await asyncio.gather(*(stores.ledger.usage_of_jobs(*asked) for _ in range(8)))
    finally:
        event.remove(Engine, "before_cursor_execute", begin)
        event.remove(Engine, "after_cursor_execute", end)
    assert most == 1 and all(answer == answers[0] for answer in answers) and answers[0]


async def test_the_wait_for_another_report_has_an_end(stores: SqlStores, settled: list[Job]) -> None:
    ledger = SqlLedger(stores.ledger._database, report_wait_seconds=0.05)
    asked = ("acme", None, 0.0, 2.0 * DAY, frozenset({"tag"}))
    async with ledger._reading_jobs:
        with pytest.raises(StoreUnavailable, match="Other reports"):
            await ledger.usage_of_jobs(*asked)
        assert await ledger.usage(*asked[:4], frozenset({"day"})), "the sums are read meanwhile"
    assert await ledger.usage_of_jobs(*asked)
