"""Who asks fal about a job: the reconciler, unless this process follows it anyway."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import httpx
import pytest

from proxy.catalog import built_in
from proxy.jobs.fal_queue import FalQueue
from proxy.jobs.reconciler import (
    EVERY_SECONDS,
    MOST_AT_ONCE,
    PAUSE_SECONDS,
    QUIET_SECONDS,
    SIDE_BY_SIDE,
    SPACING_SECONDS,
    Reconciler,
)
from proxy.jobs.settlement import Settlement
from proxy.limits.leases import Leases
from proxy.limits.quotas import Quotas
from proxy.stores.ledger import Accept, Job, Reserve
from proxy.stores.memory import MemoryCounters
from proxy.stores.sql import SqlStores
from proxy.upstream.client import Upstream
from tests.jobs.hubs import JOB, settings
from tests.support.clock import MovableClock
from tests.support.databases import SqliteDatabases
from tests.support.scripted import ID, ScriptedFal, whole_life

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("is_followed", [True, False])
async def test_a_job_that_is_followed_is_not_asked_about(sqlite_databases: SqliteDatabases, is_followed: bool) -> None:
    fal, clock, counters = ScriptedFal(whole_life()[:1]), MovableClock(), MemoryCounters()
    stores = SqlStores(sqlite_databases.migrated())
    leases = Leases(counters, stores.ledger, clock)
    settlement = Settlement(Quotas(stores.ledger, clock), leases, built_in(), clock)
    upstream = Upstream(settings().fal, fal)
    reconciler = Reconciler(
        stores.ledger, upstream, FalQueue(upstream, settlement), settlement, leases, clock, lambda _: is_followed
    )
    expires_at = clock.now() + QUIET_SECONDS + 1
    job = JOB._replace(request_id=None, state="reserved", checked_at=clock.now(), expires_at=expires_at)
    await stores.ledger.commit([Reserve(job)])
    await stores.ledger.commit([Accept(job.id, ID, expires_at)])
    assert await reconciler.run_once() == 0
    clock.advance(QUIET_SECONDS + 0.5)
    assert await reconciler.run_once() == 1 and fal.calls == ([] if is_followed else ["status"])
    # Either way its lease is renewed, as its status was just read.
    found = await stores.ledger.get(job.id)
    assert found and found.state == "accepted" and found.checked_at == clock.now() and found.expires_at > expires_at
    assert await counters.in_use("subject:acme:alice", clock.now()) == 1
    assert await reconciler.run_once() == 0
    await stores.close()


ABANDONED = 450


class SlowFal(httpx.AsyncBaseTransport):
    """Answers once the most requests are open: a third of the jobs has ended, a third waits, the rest fails."""

    def __init__(self) -> None:
        self.asked: Counter[int] = Counter()
        self.now = self.most = 0
        self._are_all_there = asyncio.Event()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        number = int(request.extensions["target"].decode().split("/requests/")[1].partition("/")[0].rpartition("-")[2])
        self.asked[number] += 1
        self.now += 1
        self.most = max(self.most, self.now)
        if self.now == SIDE_BY_SIDE:
            self._are_all_there.set()
        async with asyncio.timeout(60):
            await self._are_all_there.wait()
        await asyncio.sleep(0)
        self.now -= 1
        if number % 3 == 0:
            return httpx.Response(200, json={"status": "COMPLETED", "metrics": {"inference_time": 1.0}})
        if number % 3 == 1:
            return httpx.Response(202, json={"status": "IN_QUEUE"})
        match number % 4:
            case 0:
                raise httpx.ConnectError("connection refused")
            case 1:
                raise RuntimeError("a mistake in the program")
            case 2:
                return httpx.Response(500, content=b"not even JSON")
        return httpx.Response(404, json={"detail": "Request not found"})


async def abandoned_jobs(stores: SqlStores, leases: Leases, now: float) -> list[Job]:
    """Many jobs of one user that fal has in its queue, and that are watched by no process."""
    jobs = [
        JOB._replace(id=f"{number:04}", request_id=None, state="reserved", checked_at=now, expires_at=now + 1e6)
        for number in range(ABANDONED)
    ]
    await stores.ledger.commit([Reserve(job) for job in jobs])
    await stores.ledger.commit([Accept(job.id, f"fal-{job.id}", job.expires_at) for job in jobs])
    await leases.keeper.keep()
    return jobs


@pytest.mark.slow
async def test_many_abandoned_jobs_are_looked_after_side_by_side(sqlite_databases: SqliteDatabases) -> None:
    fal, clock, counters = SlowFal(), MovableClock(), MemoryCounters()
    stores = SqlStores(sqlite_databases.migrated())
    leases = Leases(counters, stores.ledger, clock)
    settlement = Settlement(Quotas(stores.ledger, clock), leases, built_in(), clock)
    upstream = Upstream(settings().fal, fal)
    reconciler = Reconciler(stores.ledger, upstream, FalQueue(upstream, settlement), settlement, leases, clock)
    await abandoned_jobs(stores, leases, clock.now())
    assert await counters.in_use("subject:acme:alice", clock.now()) == ABANDONED
    clock.advance(QUIET_SECONDS + 1)
    looked_after, waits, began = [], [], time.monotonic()
    while not looked_after or looked_after[-1]:
        looked_after.append(await reconciler.run_once())
        waits.append(reconciler.wait_seconds)
    full = ABANDONED // MOST_AT_ONCE
    assert looked_after == [MOST_AT_ONCE] * full + [ABANDONED % MOST_AT_ONCE, 0]
    # Calls have the processor between two jobs, and between two rounds.
    assert time.monotonic() - began > 0.9 * SPACING_SECONDS * ABANDONED
    assert waits == [PAUSE_SECONDS] * full + [EVERY_SECONDS] * 2
    assert fal.most == SIDE_BY_SIDE and fal.asked == Counter(range(ABANDONED))
    # Jobs that ended, and those that fal does not know, have given their slots back; the others keep theirs.
    ended = [number for number in range(ABANDONED) if number % 3 == 0 or number % 12 == 11]
    assert await counters.in_use("subject:acme:alice", clock.now()) == ABANDONED - len(ended)
    states = [found.state for number in ended if (found := await stores.ledger.get(f"{number:04}"))]
    assert states == ["settled"] * len(ended)
    await stores.close()
