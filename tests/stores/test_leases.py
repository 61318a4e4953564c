"""In-flight slots, counted in memory and in Redis."""

from __future__ import annotations

import anyio
import pytest

from proxy.stores.counters import Counters, LeaseScope
from proxy.stores.memory.counters import MOST_RETURNED, SWEEP_EVERY, MemoryCounters
from proxy.stores.redis.counters import RedisCounters
from tests.support.redis import Redis

pytestmark = pytest.mark.anyio
NOW = 1_795_000_000.25
LATER = NOW + 600
TWO, THREE = LeaseScope("subject:alice", 2), LeaseScope("tenant:acme", 3)
KEYS = (TWO.key, THREE.key)


async def in_use(counters: Counters, now: float = NOW) -> tuple[int, int]:
    return await counters.in_use(TWO.key, now), await counters.in_use(THREE.key, now)


async def test_leases_are_granted_until_one_of_the_limits_is_reached(counters: Counters) -> None:
    assert await in_use(counters) == (0, 0)
    assert await counters.acquire("a", [TWO, THREE], NOW, LATER) is None
    assert await counters.acquire("b", [TWO, THREE], NOW, LATER) is None
    assert await counters.acquire("c", [TWO, THREE], NOW, LATER) == 0
    assert await in_use(counters) == (2, 2)
    assert await counters.acquire("d", [THREE], NOW, LATER) is None
    assert await counters.acquire("e", [LeaseScope("subject:bob", 2), THREE], NOW, LATER) == 1
    assert await counters.in_use("subject:bob", NOW) == 0


async def test_a_lease_that_is_taken_twice_counts_once(counters: Counters) -> None:
    for moment in (NOW, NOW + 300):
        assert await counters.acquire("a", [LeaseScope("one", 1)], moment, moment + 600) is None
    assert await counters.in_use("one", NOW + 899) == 1
    assert await counters.in_use("one", NOW + 900) == 0


async def test_an_expired_lease_no_longer_counts(counters: Counters) -> None:
    one = [LeaseScope("one", 1)]
    await counters.acquire("a", one, NOW, LATER)
    assert await counters.acquire("b", one, LATER - 0.25, LATER + 600) == 0
    assert await counters.acquire("b", one, LATER, LATER + 600) is None
    assert await counters.in_use("one", LATER) == 1


async def test_a_clock_that_is_set_back_makes_no_lease_longer(counters: Counters) -> None:
    one = [LeaseScope("one", 1)]
    assert await counters.acquire("a", one, NOW, LATER) is None
    early = NOW - 3600
    assert await counters.acquire("b", one, early, early + 600) == 0
    assert await counters.in_use("one", early + 599.75) == 1
    assert await counters.acquire("b", one, early + 600, early + 1200) is None
    await counters.renew("b", ["one"], early + 700, early + 1300)
    await counters.restore({"c": ["one"]}, early + 700, early + 1300)
    assert await counters.in_use("one", early + 1299.75) == 2
    assert await counters.in_use("one", early + 1300) == 0


async def test_returning_a_lease_ends_that_one_only(counters: Counters) -> None:
    await counters.acquire("a", [TWO, THREE], NOW, LATER)
    await counters.acquire("b", [TWO, THREE], NOW, LATER)
    for _ in range(2):
        await counters.release("a", KEYS)
    await counters.release("nobody", [*KEYS, "nothing"])
    assert await in_use(counters) == (1, 1)


async def test_a_renewed_lease_lasts_longer(counters: Counters) -> None:
    await counters.acquire("a", [TWO, THREE], NOW, LATER)
    await counters.renew("a", KEYS, NOW + 500, NOW + 1100)
    assert await in_use(counters, NOW + 1099.75) == (1, 1)
    assert await in_use(counters, NOW + 1100) == (0, 0)


async def test_renewing_does_not_bring_back_a_lease_that_ended(counters: Counters) -> None:
    for lease, moment in (("returned", NOW + 1), ("expired", LATER), ("never taken", NOW)):
        if lease != "never taken":
            await counters.acquire(lease, [TWO], NOW, LATER)
        if lease == "returned":
            await counters.release(lease, KEYS)
        await counters.renew(lease, KEYS, moment, moment + 600)
        assert await in_use(counters, moment) == (0, 0), lease


async def test_restored_leases_may_exceed_the_limit(counters: Counters) -> None:
    for lease in "abcd":
        await counters.restore({lease: KEYS}, NOW, LATER)
        await counters.restore({lease: KEYS}, NOW, LATER)
    assert await in_use(counters) == (4, 4)
    assert await counters.acquire("e", [THREE], NOW, LATER) == 0
    # A job that is in flight already keeps its lease.
    assert await counters.acquire("a", [TWO, THREE], NOW, LATER) is None
    for lease in "abc":
        await counters.release(lease, KEYS)
    assert await counters.acquire("e", [THREE], NOW, LATER) is None


async def test_many_at_once_get_no_more_than_there_are(counters: Counters) -> None:
    full: list[int | None] = []

    async def acquire(number: int) -> None:
        full.append(await counters.acquire(f"job-{number}", [LeaseScope("a", 30), LeaseScope("b", 40)], NOW, LATER))

    async with anyio.create_task_group() as group:
        for number in range(100):
            group.start_soon(acquire, number)
    assert (full.count(None), full.count(0)) == (30, 70)
    assert (await counters.in_use("a", NOW), await counters.in_use("b", NOW)) == (30, 30)


async def test_a_lease_that_was_returned_and_taken_again_ends_at_the_later_time(counters: Counters) -> None:
    one = [LeaseScope("one", 1)]
    await counters.acquire("a", one, NOW, NOW + 600)
    await counters.release("a", ["one"])
    await counters.acquire("a", one, NOW + 100, NOW + 700)
    for moment, used in ((NOW + 600, 1), (NOW + 699.75, 1), (NOW + 700, 0)):
        assert await counters.in_use("one", moment) == used


async def test_memory_holds_each_lease_once_however_often_it_is_renewed_or_returned() -> None:
    counters = MemoryCounters()
    for number in range(5_000):
        moment = NOW + number / 100
        await counters.acquire("kept", [LeaseScope("one", 9)], moment, moment + 600)
        await counters.renew("kept", ["one"], moment, moment + 600)
        await counters.restore({"kept": ["one"]}, moment, moment + 600)
        await counters.acquire(f"short {number}", [LeaseScope("one", 9)], moment, moment + 600)
        await counters.release(f"short {number}", ["one"])
    assert len(counters._scopes["one"]._queue) <= MOST_RETURNED + 10
    assert await counters.in_use("one", NOW + 600) == 1
    assert await counters.in_use("one", NOW + 650) == 0


async def test_memory_forgets_a_holder_with_its_last_lease() -> None:
    counters = MemoryCounters()
    scopes = [LeaseScope("subject", 1), LeaseScope("tenant", 1)]
    assert await counters.acquire("a", scopes, NOW, NOW + 600) is None
    assert await counters.acquire("b", [LeaseScope("other", 1), *scopes], NOW, NOW + 600) == 1
    await counters.renew("b", ["other"], NOW, NOW + 600)
    assert set(counters._scopes) == {"subject", "tenant"}
    await counters.release("a", ["subject", "tenant"])
    assert not counters._scopes
    await counters.acquire("a", scopes, NOW, NOW + 600)
    assert await counters.in_use("subject", NOW + 600) == 0
    assert set(counters._scopes) == {"tenant"}


async def test_memory_forgets_scopes_whose_leases_expired() -> None:
    counters = MemoryCounters()
    for number in range(3 * SWEEP_EVERY):
        await counters.acquire(f"lost {number}", [LeaseScope(f"subject {number}", 1)], NOW + number, NOW + number + 600)
    assert len(counters._scopes) <= SWEEP_EVERY + 600


@pytest.mark.tools
async def test_a_process_whose_clock_is_wrong_frees_and_keeps_nothing_in_redis(redis: Redis) -> None:
    right, wrong, one = RedisCounters(redis.url), RedisCounters(redis.url), [LeaseScope("one", 1)]
    assert await right.acquire("a", one, NOW, NOW + 600) is None
    ahead, behind = NOW + 100_000, NOW - 100_000
    for now in (ahead, behind):
        assert await wrong.acquire("b", one, now, now + 600) == 0
        await wrong.renew("a", ["one"], now, now + 600)
        assert await wrong.in_use("one", now) == 1
        # Its own leases end when they should: they last as long as it says, from the server's time on.
        await wrong.restore({"short": ["other"]}, now, now + 0.001)
        await anyio.sleep(0.01)
        assert await right.in_use("other", NOW) == 0
    for counters in (right, wrong):
        await counters.close()
