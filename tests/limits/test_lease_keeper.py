"""Leases and the processes that hold them: what ends with a process, what outlives it, and what is restored."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from proxy.catalog import built_in
from proxy.errors import StoreUnavailable, TooManyJobs, UpstreamAmbiguous
from proxy.jobs.settlement import Settlement
from proxy.limits.dead_holders import HOLDER_SECONDS
from proxy.limits.lease_keeper import BEAT_SECONDS, LEASE_SECONDS, MOST_RETURNS, RENEW_BEATS
from proxy.limits.leases import Leases
from proxy.limits.quotas import Quotas
from proxy.stores.counters import Counters
from proxy.stores.ledger import Accept, Job, Ledger, OpenJob, Reserve, Settle
from proxy.stores.memory import MemoryCounters
from proxy.stores.redis.counters import RedisCounters
from proxy.stores.sql import SqlStores
from proxy.tenants.terms import LeaseLimits
from tests.stores.records import job
from tests.support.clock import MovableClock
from tests.support.databases import SqliteDatabases
from tests.support.redis import Redis, running_redis
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.anyio
#: A process counts as dead when two checks, one beat apart, find no sign of life.
FREE_SECONDS = HOLDER_SECONDS + 2 * BEAT_SECONDS


@dataclass
class Process:
    """The leases of one proxy, which lives as long as the test calls its keeper."""

    leases: Leases
    counters: Counters
    ledger: Ledger
    clock: MovableClock

    async def begin(self, kind: str = "run", most: int | None = 100) -> Job:
        """A call that was admitted, and is on its way to fal."""
        now = self.clock.now()
        made = job(kind=kind, submitted_at=now, checked_at=now, expires_at=now + 1200)
        await self.leases.acquire(made, LeaseLimits(most, most, None))
        await self.ledger.commit([Reserve(made)])
        return made

    async def submit(self) -> Job:
        """A job that fal has in its queue."""
        made = await self.begin("submit")
        await self.ledger.commit([Accept(made.id, f"fal-{made.id}", made.expires_at)])
        self.leases.hand_over(made)
        return made

    async def finish(self, ended: Job) -> None:
        await self.leases.release(ended)
        await self.ledger.commit([Settle(ended.id, {}, self.clock.now())])

    async def in_use(self) -> int:
        return await self.counters.in_use("tenant:acme", self.clock.now())


Starts = Callable[..., Process]


@pytest.fixture
async def stores(sqlite_databases: SqliteDatabases) -> AsyncIterator[SqlStores]:
    stores = SqlStores(sqlite_databases.migrated())
    yield stores
    await stores.close()


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture
async def starts(stores: SqlStores, clock: MovableClock, request: pytest.FixtureRequest) -> AsyncIterator[Starts]:
    """Makes processes that share a ledger, and a Redis: that of the given URL, or the test's own."""
    opened: list[RedisCounters] = []

    def start(url: str | None = None, ledger: Ledger | None = None) -> Process:
        counters = RedisCounters(url or request.getfixturevalue("redis").url, uses_server_time=False)
        opened.append(counters)
        ledger = ledger or stores.ledger
        return Process(Leases(counters, ledger, clock), counters, ledger, clock)

    yield start
    for counters in opened:
        await counters.close()


async def live(processes: Sequence[Process], seconds: float) -> None:
    """Let time pass, in which these processes give their signs of life."""
    for _ in range(round(seconds / BEAT_SECONDS)):
        processes[0].clock.advance(BEAT_SECONDS)
        for one in processes:
            await one.leases.keeper.keep()


async def is_full(process: Process, most: int) -> bool:
    try:
        extra = await process.begin(most=most)
    except TooManyJobs:
        return True
    await process.finish(extra)
    return False


# --- a process that is dead


@pytest.mark.tools
async def test_the_calls_of_a_dead_process_are_over_and_its_jobs_are_not(starts: Starts) -> None:
    dead, other = starts(), starts()
    await live([dead, other], BEAT_SECONDS)
    for kind in ("run", "stream", "submit"):
        await dead.begin(kind)
    # One was handed over in Redis too, the other only in the memory that died.
    jobs = [await dead.submit()]
    await live([dead, other], BEAT_SECONDS)
    jobs.append(await dead.submit())
    own = await other.begin()
    assert await other.in_use() == 6 and await is_full(other, 6)
    await live([other], FREE_SECONDS + 1)
    assert FREE_SECONDS + 1 < 15 and await other.in_use() == 3
    for one in [*jobs, own]:
        await other.finish(one)
    assert await other.in_use() == 0
    # The dead one is forgotten.
    assert other.clock.now() and not (await other.counters.holder.beat(other.clock.now(), other.clock.now() + 7)).dead


@pytest.mark.tools
async def test_a_process_that_starts_again_frees_what_died_with_it(starts: Starts) -> None:
    before = starts()
    await before.leases.keeper.keep()
    queued, _ = await before.submit(), await before.begin()
    after = starts()
    await after.leases.keeper.keep()
    assert await after.in_use() == 2
    await live([after], FREE_SECONDS + 1)
    assert await after.in_use() == 1
    await after.finish(queued)
    assert await after.in_use() == 0


@pytest.mark.tools
async def test_a_call_whose_process_died_before_it_was_written_down_is_over(starts: Starts) -> None:
    dead, other = starts(), starts()
    await live([dead, other], BEAT_SECONDS)
    names = ["alice", "guest-0123456789abcdef", 'ünï "quoted" \\ / {x} 🐈']
    for name in names:
        await dead.leases.acquire(job(subject=name), LeaseLimits(1, 3, 1))
    await live([other], FREE_SECONDS + 1)
    for name in names:
        used = await other.leases.in_use("acme", name, LeaseLimits(1, 3, 1))
        assert used.keys() >= {"subject", "tenant"}
        assert not any(pool["used"] for pool in used.values())


@pytest.mark.tools
async def test_a_clock_of_redis_that_is_set_back_hides_no_dead_process(starts: Starts) -> None:
    dead, other = starts(), starts()
    await live([dead, other], BEAT_SECONDS)
    await dead.begin()
    own = await other.begin()
    other.clock.advance(-3600)
    await live([other], FREE_SECONDS + 1)
    assert await other.in_use() == 1
    await other.finish(own)
    assert await other.in_use() == 0


@pytest.mark.tools
async def test_processes_that_live_keep_their_leases(starts: Starts) -> None:
    processes = [starts(), starts()]
    for one in processes:
        await one.begin()
    await live(processes, 3 * FREE_SECONDS)
    assert await processes[0].in_use() == 2


@pytest.mark.tools
async def test_a_process_that_comes_back_in_the_last_moment_keeps_its_leases(starts: Starts) -> None:
    late, other = starts(), starts()
    await live([late, other], BEAT_SECONDS)
    call = await late.begin()
    late.clock.advance(HOLDER_SECONDS)
    now = late.clock.now()
    (holder,) = (await other.counters.holder.beat(now, now + HOLDER_SECONDS)).dead
    leases = await other.counters.holder.held_by(holder)
    assert list(leases) == [call.id]
    await late.counters.holder.beat(now, now + HOLDER_SECONDS)
    await other.counters.holder.free(holder, leases, now, now + HOLDER_SECONDS)
    assert await other.in_use() == 1
    assert await other.counters.holder.held_by(holder) == leases


async def test_in_memory_calls_end_with_their_process(stores: SqlStores, clock: MovableClock) -> None:
    def start() -> Process:
        counters = MemoryCounters()
        return Process(Leases(counters, stores.ledger, clock), counters, stores.ledger, clock)

    before = start()
    await before.begin()
    await before.submit()
    await before.ledger.commit([Reserve(job(kind="upload", expires_at=clock.now() + 900))])
    after = start()
    await after.leases.keeper.keep()
    assert await after.in_use() == 1
    # Without a beat before, too: the first call waits until the jobs have their slots.
    last = start()
    assert await is_full(last, 1)


# --- a process that was away


@pytest.mark.tools
async def test_a_process_that_paused_takes_its_leases_again(starts: Starts) -> None:
    paused, other = starts(), starts()
    await live([paused, other], BEAT_SECONDS)
    calls = [await paused.begin(), await paused.begin()]
    job_ = await paused.submit()
    await live([other], FREE_SECONDS + 1)
    assert await other.in_use() == 1
    await live([paused, other], BEAT_SECONDS)
    assert await other.in_use() == 3 and await is_full(other, 3)
    # They are its own again: another death ends them.
    await paused.finish(calls[0])
    await live([other], FREE_SECONDS + 1)
    assert await other.in_use() == 1
    await other.finish(job_)
    assert await other.in_use() == 0


@pytest.mark.tools
async def test_after_an_outage_of_redis_no_holder_is_taken_for_dead(starts: Starts) -> None:
    first, second = starts(), starts()
    for one in (first, second):
        await one.leases.keeper.keep()
        await one.begin()
    first.clock.advance(10 * FREE_SECONDS)
    await first.leases.keeper.keep()
    assert await first.in_use() == 2
    await live([second, first], BEAT_SECONDS)
    assert await first.in_use() == 2


@pytest.mark.tools
async def test_a_process_whose_ledger_hangs_is_not_dead(starts: Starts, stores: SqlStores) -> None:
    late = LateLedger(stores.ledger)
    late.goes_on.set()
    hanging, other = starts(ledger=late), starts()
    await hanging.leases.keeper.start()
    await hanging.begin()
    late.is_read.clear()
    late.goes_on.clear()
    # It reads the ledger, as it was away for a moment.
    hanging.clock.advance(HOLDER_SECONDS)
    await late.is_read.wait()
    beats = [await signs_of(other)]
    for _ in range(2):
        hanging.clock.advance(1)
        await wait_until_async(lambda: has_changed(other, beats), "no sign of life came")
    late.goes_on.set()
    await hanging.leases.keeper.close()


async def signs_of(process: Process) -> float:
    """Until when the only process that beats is believed to live."""
    redis = process.counters
    assert isinstance(redis, RedisCounters)
    _, until_ = await redis._redis.send("ZRANGE", "{fal-proxy}:holders", "0", "-1", "WITHSCORES")
    return float(until_)


async def has_changed(process: Process, before: list[float]) -> bool:
    before.append(await signs_of(process))
    return before[-1] > before[-2]


# --- returning


@pytest.mark.tools
async def test_a_lease_that_could_not_be_returned_is_returned_later(starts: Starts, redis: Redis) -> None:
    process = starts()
    await process.leases.keeper.keep()
    calls, job_ = [await process.begin() for _ in range(45)], await process.submit()
    with redis.paused():
        await asyncio.gather(*(process.leases.release(call) for call in calls))
    await process.leases.keeper.keep()
    assert await process.in_use() == 1
    await process.leases.release(job_)
    assert await process.in_use() == 0


@pytest.mark.tools
async def test_a_return_that_was_cancelled_is_made_later(starts: Starts, redis: Redis) -> None:
    process = starts()
    call = await process.begin()
    with redis.paused():
        returning = asyncio.create_task(process.leases.release(call))
        for _ in range(20):
            await asyncio.sleep(0)
        returning.cancel()
        await asyncio.wait({returning})
    assert returning.cancelled()
    await process.leases.keeper.keep()
    assert await process.in_use() == 0


@pytest.mark.tools
async def test_a_process_that_stops_leaves_nothing_behind(starts: Starts, redis: Redis) -> None:
    stopping, other = starts(), starts()
    await other.leases.keeper.keep()
    await stopping.leases.keeper.start()
    call, _ = await stopping.begin(), await stopping.submit()
    with redis.paused():
        await stopping.leases.release(call)
    await stopping.leases.keeper.close()
    assert await other.in_use() == 1
    assert redis.ask("ZCARD {fal-proxy}:holders") == ":1"


class DownCounters(MemoryCounters):
    """Counters that take leases, and do not take them back."""

    async def release(self, lease: str, keys: Sequence[str]) -> None:
        raise StoreUnavailable("The counters do not answer.")


async def test_leases_that_wait_to_be_returned_are_bounded(stores: SqlStores, clock: MovableClock) -> None:
    leases = Leases(DownCounters(), stores.ledger, clock)
    for _ in range(MOST_RETURNS + 10):
        await leases.release(job())
    assert len(leases.keeper._returns) == MOST_RETURNS


async def test_the_limits_count_with_which_a_call_is_made(stores: SqlStores, clock: MovableClock) -> None:
    leases = Leases(MemoryCounters(), stores.ledger, clock)
    wide, narrow = LeaseLimits(3, None), LeaseLimits(1, None)
    await leases.acquire(job(), wide)
    with pytest.raises(TooManyJobs, match="This subject has 1 calls"):
        await leases.acquire(job(), narrow)
    await leases.acquire(job(), wide)
    assert await leases.in_use("acme", "alice", wide) == {
        "subject": {"used": 2, "limit": 3},
        "tenant": {"used": 2, "limit": None},
    }


# --- for as long as a call runs


@pytest.mark.parametrize("kind", ["memory", pytest.param("redis", marks=pytest.mark.tools)])
async def test_a_call_that_outlasts_its_lease_has_it_renewed(
    kind: str, starts: Starts, stores: SqlStores, clock: MovableClock
) -> None:
    memory = MemoryCounters()
    process = (
        starts() if kind == "redis" else Process(Leases(memory, stores.ledger, clock), memory, stores.ledger, clock)
    )
    call, queued = await process.begin("stream"), await process.submit()
    seconds = 1.2 * LEASE_SECONDS
    for _ in range(2 * RENEW_BEATS + 2):
        clock.advance(seconds / (2 * RENEW_BEATS))
        await process.leases.keeper.keep()
    # The lease of an accepted job is extended by its statuses, and by nothing else.
    assert await process.in_use() == 1
    await process.finish(call)
    await process.finish(queued)
    assert await process.in_use() == 0


@pytest.mark.parametrize("end", ["accepted", "refused", "lost"])
async def test_a_submits_lease_is_this_processs_only_until_fal_has_the_job(
    end: str, stores: SqlStores, clock: MovableClock
) -> None:
    counters = MemoryCounters()
    process = Process(Leases(counters, stores.ledger, clock), counters, stores.ledger, clock)
    quotas = Quotas(stores.ledger, clock)
    settlement = Settlement(quotas, process.leases, built_in(), clock)
    submit = await process.begin("submit")
    assert await process.in_use() == 1
    if end == "refused":
        await settlement.free(submit)
    elif end == "lost":
        await settlement.charge_failed_submit(submit, UpstreamAmbiguous("fal's answer was lost."))
    else:
        settlement.hand_over(submit)
    assert await process.in_use() == (0 if end == "refused" else 1)
    # From now on it is not this process that keeps it.
    for _ in range(RENEW_BEATS + 1):
        await process.leases.keeper.keep()
        clock.advance(LEASE_SECONDS / RENEW_BEATS)
    assert await process.in_use() == 0
    await quotas.close()


# --- Redis without its data


async def forty_in_flight(processes: Sequence[Process]) -> list[Job]:
    """Runs, streams and jobs of all these processes."""
    for one in processes:
        await one.leases.keeper.keep()
    found = []
    for number in range(40):
        process = processes[number % len(processes)]
        kind = ("run", "stream", "job", "job")[number // 10]
        found.append(await (process.submit() if kind == "job" else process.begin(kind)))
    return found


@pytest.mark.tools
@pytest.mark.parametrize("is_restarted", [False, True])
async def test_no_more_calls_are_in_flight_after_redis_lost_its_data(
    is_restarted: bool, starts: Starts, redis: Redis
) -> None:
    processes = [starts(), starts(), starts()]
    calls = await forty_in_flight(processes)
    if is_restarted:
        with redis.stopped():
            pass
    else:
        redis.forget()
    # The very next call finds all slots taken, those of other processes included, in whichever process it comes.
    results = await asyncio.gather(*(is_full(processes[number % 3], 40) for number in range(30)))
    assert results == [True] * 30
    assert await processes[0].in_use() == 40
    await live(processes, 3 * FREE_SECONDS)
    assert await processes[0].in_use() == 40
    for number, call in enumerate(calls):
        await processes[number % 3].finish(call)
    assert await processes[0].in_use() == 0
    await live(processes, BEAT_SECONDS)
    assert await processes[0].in_use() == 0


@pytest.mark.tools
async def test_lost_data_is_noticed_without_a_call(starts: Starts, redis: Redis) -> None:
    processes = [starts(), starts()]
    await forty_in_flight(processes)
    redis.forget()
    await processes[0].leases.keeper.keep()
    assert await processes[0].in_use() == 40


@pytest.mark.tools
async def test_calls_that_died_before_redis_lost_its_data_are_over_soon(starts: Starts, redis: Redis) -> None:
    dead, other = starts(), starts()
    await forty_in_flight([dead, other])
    redis.forget()
    await live([other], HOLDER_SECONDS + 2 * BEAT_SECONDS)
    # Of its twenty, ten were jobs.
    assert await other.in_use() == 30


@pytest.mark.tools
async def test_an_older_state_of_redis_is_noticed(starts: Starts) -> None:
    with running_redis() as server:
        processes = [starts(server.url), starts(server.url)]
        for one in processes:
            await one.leases.keeper.keep()
        first = await processes[0].begin()
        assert server.ask("SAVE") == "+OK"
        await live(processes, BEAT_SECONDS)
        for one in processes:
            await one.begin()
            await one.submit()
        await processes[0].finish(first)
        with server.stopped():
            pass
        assert await processes[0].in_use() == 1
        await live(processes, BEAT_SECONDS)
        assert await processes[0].in_use() == 5
        # What ended in the time that Redis forgot ends with its process, or with its time.
        await live(processes[1:], FREE_SECONDS + 1)
        assert await processes[1].in_use() == 3


class LateLedger:
    """A ledger that lists its open jobs late: the list misses what happens in the meantime."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.is_read, self.goes_on = asyncio.Event(), asyncio.Event()

    def __getattr__(self, name: str) -> object:
        return getattr(self._ledger, name)

    async def open_jobs(self) -> Sequence[OpenJob]:
        found = await self._ledger.open_jobs()
        self.is_read.set()
        await self.goes_on.wait()
        return found


@pytest.mark.tools
async def test_jobs_that_end_during_a_restore_stay_ended(starts: Starts, stores: SqlStores, redis: Redis) -> None:
    late = LateLedger(stores.ledger)
    late.goes_on.set()
    process, other = starts(ledger=late), starts()
    for one in (process, other):
        await one.leases.keeper.keep()
    own, own_job, others_job = await process.begin(), await process.submit(), await other.submit()
    becomes_job = await process.begin("submit")
    late.is_read.clear()
    late.goes_on.clear()
    redis.forget()
    recovery = asyncio.create_task(process.leases.keeper.keep())
    await late.is_read.wait()
    await process.finish(own)
    await process.finish(own_job)
    tidying = asyncio.create_task(process.leases.keeper.tidy())
    await asyncio.sleep(0.1)
    # Another process returns it at once, and writes that down later.
    await other.leases.release(others_job)
    await stores.ledger.commit([Accept(becomes_job.id, "fal-1", becomes_job.expires_at)])
    process.leases.hand_over(becomes_job)
    late.goes_on.set()
    await asyncio.gather(recovery, tidying)
    await live([process, other], BEAT_SECONDS)
    await other.ledger.commit([Settle(others_job.id, {}, process.clock.now())])
    await live([process, other], BEAT_SECONDS)
    assert await process.in_use() == 1
    await process.finish(becomes_job)
    assert await process.in_use() == 0


async def test_a_job_that_ended_while_fal_was_asked_about_it_gets_no_lease(
    stores: SqlStores, clock: MovableClock
) -> None:
    counters = MemoryCounters()
    process = Process(Leases(counters, stores.ledger, clock), counters, stores.ledger, clock)
    ended, queued = await process.submit(), await process.submit()
    await process.finish(ended)
    # fal's answer that both are queued is older, and is heard after that.
    for one in (ended, queued):
        await process.leases.restore(one)
    await live([process], 3 * BEAT_SECONDS)
    assert await process.in_use() == 1


# --- a start


@pytest.mark.tools
async def test_a_start_without_redis_restores_leases_when_it_is_there(starts: Starts) -> None:
    with running_redis() as server:
        before = starts(server.url)
        await before.submit()
        after = starts(server.url)
        with server.stopped():
            await after.leases.keeper.start()
            with pytest.raises(StoreUnavailable):
                await after.begin()
        assert await is_full(after, 1)
        await after.leases.keeper.close()


async def test_a_start_without_the_ledger_takes_no_call(
    stores: SqlStores, clock: MovableClock, sqlite_databases: SqliteDatabases, tmp_path: Path
) -> None:
    nowhere = SqlStores("postgresql://nobody@127.0.0.1:1/nothing")
    counters = MemoryCounters()
    process = Process(Leases(counters, nowhere.ledger, clock), counters, nowhere.ledger, clock)
    await process.leases.keeper.start()
    with pytest.raises(StoreUnavailable):
        await process.leases.acquire(job()._replace(id="x"), LeaseLimits(1, 1, None))
    assert await process.in_use() == 0
    await process.leases.keeper.close()
    await nowhere.close()
