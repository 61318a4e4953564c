"""The ledger used by many at once: by connections of several engines, and by several processes."""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter
from collections.abc import Awaitable, Callable

import anyio
import pytest

from proxy.limits.accounts import ALL_GUESTS, Payer
from proxy.limits.quotas import MILLION, new_job
from proxy.stores.ledger import Accept, Account, Charge, Exhausted, Granted, Job, Operation, Outcome, Reserve, Settle
from proxy.stores.sql import SqlStores
from proxy.tenants.plans import Plan
from proxy.tenants.terms import guest_terms, user_terms
from tests.stores.conftest import OpenStores
from tests.stores.records import REQUESTS, job
from tests.stores.test_ledger_model import BUCKETS
from tests.support.audit import read_report
from tests.support.databases import PostgresDatabases
from tests.support.postgres import Postgres

pytestmark = pytest.mark.anyio


@pytest.fixture
def hands(open_stores: OpenStores, database_url: str) -> list[SqlStores]:
    # On a busy machine a connection may be waited for longer than callers would.
    return [open_stores(database_url, 30.0) for _ in range(4)]


async def test_no_more_is_granted_than_there_is(hands: list[SqlStores], database_url: str) -> None:
    outcomes: Counter[type] = Counter()

    async def ask(number: int) -> None:
        batch = [Reserve(job(Charge(REQUESTS, 1, 70))) for _ in range(1 + number % 3)]
        outcomes.update(type(outcome) for outcome in await hands[number % 4].ledger.commit(batch))

    await _all_at_once(ask, 60)
    assert outcomes == {Granted: 70, Exhausted: 50}
    report = await read_report(database_url)
    report.check()
    assert report.accounts == {REQUESTS: Account(0, 70)}


async def test_a_job_is_settled_once_by_the_first_to_settle_it(hands: list[SqlStores], database_url: str) -> None:
    jobs = [job(Charge(REQUESTS, 10, 1000)) for _ in range(12)]
    await hands[0].ledger.commit([Reserve(one) for one in jobs])
    first: dict[str, list[int]] = {one.id: [] for one in jobs}

    async def settle(number: int) -> None:
        order = random.Random(number).sample(jobs, len(jobs))
        batch = [Settle(one.id, {"requests": number} if number % 3 else None, 1010.0) for one in order]
        for one, outcome in zip(order, await hands[number % 4].ledger.commit(batch), strict=True):
            if outcome == Granted():
                first[one.id].append(number)

    await _all_at_once(settle, 24)
    assert all(len(numbers) == 1 for numbers in first.values())
    booked = sum(number for (number,) in first.values() if number % 3)
    report = await read_report(database_url)
    report.check()
    assert report.accounts == {REQUESTS: Account(booked, 0)}


async def test_due_jobs_are_taken_by_one_of_many(hands: list[SqlStores]) -> None:
    jobs = [job(checked_at=float(number)) for number in range(60)]
    await hands[0].ledger.commit([Reserve(one) for one in jobs])
    taken: list[str] = []

    async def take(number: int) -> None:
        # While another connection holds the remaining jobs this one may find none, and looks again.
        while len(taken) < len(jobs):
            taken.extend(one.id for one in await hands[number].ledger.take_due(100.0, 200.0, 7))

    await _all_at_once(take, 4)
    assert sorted(taken) == sorted(one.id for one in jobs)


@pytest.mark.tools
async def test_no_deadlock_whatever_the_order(
    postgres: Postgres, postgres_databases: PostgresDatabases, open_stores: OpenStores
) -> None:
    """Hundreds of mixed batches on the same few accounts and jobs, each in another order, with new accounts all the
    while, and with reconcilers that take jobs without watchers."""
    url = postgres_databases.migrated()
    hands = [open_stores(url) for _ in range(4)]
    known: list[Job] = [job() for _ in range(10)]
    await hands[0].ledger.commit([Reserve(one) for one in known])

    async def work(number: int) -> None:
        order, ledger = random.Random(number), hands[number % 4].ledger
        batch = [_random_operation(order, known, number) for _ in range(order.randint(2, 8))]
        outcomes: list[Outcome] = await ledger.commit(batch)
        done = [one for one, outcome in zip(batch, outcomes, strict=True) if outcome == Granted()]
        known.extend(one.job for one in done if isinstance(one, Reserve))
        if number % 10 == 0:
            for one in await ledger.take_due(2000.0, 1000.0 + number, 20):
                await ledger.renew_jobs([one.id], 1500.0, 9000.0)

    # Fewer at once than there are connections, and so few that on a busy machine none waits ten seconds for its turn.
    limits = [anyio.CapacityLimiter(6) for _ in hands]

    async def bounded(number: int) -> None:
        async with limits[number % 4]:
            await work(number)

    await _all_at_once(bounded, 300)
    (await read_report(url)).check()
    name = url.rpartition("/")[2]
    assert postgres.ask(name, f"SELECT deadlocks FROM pg_stat_database WHERE datname = '{name}'") == "0"


def _random_operation(order: random.Random, known: list[Job], number: int) -> Operation:
    """A reservation on accounts some of which are new, or the next step of a job that others may be at too."""
    if order.random() < 0.5:
        new = {bucket._replace(window_start=1 + number // 20) for bucket in order.sample(BUCKETS, 2)}
        buckets = order.sample([*order.sample(BUCKETS, 5), *sorted(new)], 5 + len(new))
        return Reserve(job(*(Charge(bucket, 1, 10**9) for bucket in buckets)))
    one = order.choice(known[-40:])
    if order.random() < 0.3:
        return Accept(one.id, f"fal-{number}-{order.random()}", 5000.0)
    return Settle(one.id, {"requests": 1} if order.random() < 0.7 else None, 1010.0)


_PROCESS = """
import asyncio, sys
from proxy.stores.ledger import Charge, Granted, Reserve, Settle
from proxy.stores.sql import SqlStores
from tests.stores.records import REQUESTS, job

async def main(url, name):
    # On a busy machine a turn at the file may take longer than a caller would wait.
    stores, granted = SqlStores(url, lock_seconds=60), []
    for number in range(30):
        one = job(Charge(REQUESTS, 1, 60), id=f"{name}-{number}")
        if await stores.ledger.commit([Reserve(one)]) == [Granted()]:
            granted.append(one.id)
    everybodys = [Settle(f"{who}-{number}", {"requests": 1}, 1010.0) for number in range(30) for who in "abc"]
    settled = await stores.ledger.commit(everybodys)
    await stores.close()
    print(len(granted), settled.count(Granted()))

asyncio.run(main(*sys.argv[1:]))
"""


async def test_processes_share_one_ledger(database_url: str) -> None:
    """Three processes ask for 90 of 60, and each settles whatever jobs of all three it finds."""

    async def run(name: str) -> tuple[int, int]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _PROCESS, database_url, name, stdout=asyncio.subprocess.PIPE
        )
        stdout, _ = await process.communicate()
        assert process.returncode == 0, name
        granted, settled = stdout.split()
        return int(granted), int(settled)

    granted, settled = map(sum, zip(*await asyncio.gather(*map(run, "abc")), strict=True))
    report = await read_report(database_url)
    report.check()
    assert granted == len(report.entries) == 60
    assert settled == report.by_state()["settled"]
    assert report.accounts == {REQUESTS: Account(settled, 60 - settled)}


async def _all_at_once(work: Callable[[int], Awaitable[None]], number: int) -> None:
    async with anyio.create_task_group() as group:
        for one in range(number):
            group.start_soon(work, one)


GUESTS_AND_USERS = {
    "host": {"quotas": [{"per": "tenant", "unit": "requests", "limit": 40, "window": "day"}]},
    "visitors": {
        "quotas": [
            {"per": "subject", "unit": "requests", "limit": 3, "window": "day"},
            {"per": "tenant", "unit": "requests", "limit": 25, "window": "day"},
        ]
    },
}


async def test_guests_and_users_at_once_exceed_no_account(hands: list[SqlStores], database_url: str) -> None:
    """Each guest's account, that of all guests and the tenant's are booked together."""
    host, visitors = (Plan(endpoints=frozenset(), **GUESTS_AND_USERS[name]) for name in ("host", "visitors"))
    own, theirs = user_terms(host), guest_terms(visitors, host, 0.25)
    granted: Counter[str] = Counter()

    async def ask(number: int) -> None:
        name = f"guest-{number % 12:016x}" if number % 3 else "alice"
        terms = theirs if number % 3 else own
        call = new_job(terms, Payer("acme", name), "run", "fal-ai/llava-next", {"requests": MILLION}, 90_000.0)
        (outcome,) = await hands[number % 4].ledger.commit([Reserve(call)])
        granted[name] += isinstance(outcome, Granted)

    await _all_at_once(ask, 120)
    report = await read_report(database_url)
    report.check()
    standing = {bucket.subject: account.reserved // MILLION for bucket, account in report.accounts.items()}
    guests = {name: calls for name, calls in granted.items() if name != "alice"}
    assert standing.pop("") == sum(granted.values()) == 40
    assert standing.pop(ALL_GUESTS) == sum(guests.values()) <= 25
    assert standing == guests and max(guests.values()) <= 3
