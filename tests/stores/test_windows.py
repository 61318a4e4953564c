"""Sliding windows, counted in memory and in Redis."""

from __future__ import annotations

import inspect
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import anyio
import pytest

from proxy.errors import StoreUnavailable
from proxy.stores.counters import Counters, Hit, LeaseScope, Window
from proxy.stores.memory.windows import SWEEP_EVERY, SlidingWindows
from proxy.stores.redis.counters import RedisCounters
from tests.limits.troubles import redis_out_of_memory
from tests.support.redis import Redis
from tests.support.relay import relaying

pytestmark = pytest.mark.anyio
#: A time of day as the proxy gives it; quarters of a second stay exact beside it.
NOW = 1_795_000_000.25
TWO = Window("subject:alice", 2, 60)
THREE = Window("tenant:acme", 3, 3600)


@contextmanager
def lines_counted(file: str) -> Iterator[Counter[int]]:
    """Count how often each line of a file runs."""
    counted: Counter[int] = Counter()

    def trace(frame: FrameType, event: str, _: object) -> object:
        if frame.f_code.co_filename != file:
            return None
        if event == "line":
            counted[frame.f_lineno] += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield counted
    finally:
        sys.settrace(before)


async def test_a_hit_on_no_window_is_granted(counters: Counters) -> None:
    assert await counters.hit([], NOW) == Hit(None, 0.0, (), ())


async def test_a_hit_takes_one_from_each_window(counters: Counters) -> None:
    assert await counters.hit([TWO, THREE], NOW) == Hit(None, 0.0, (1, 2), (60.0, 3600.0))
    assert await counters.hit([TWO, THREE], NOW + 15) == Hit(None, 0.0, (0, 1), (45.0, 3585.0))


async def test_a_full_window_refuses_and_says_exactly_when_it_has_room(counters: Counters) -> None:
    await counters.hit([TWO], NOW)
    await counters.hit([TWO], NOW + 10)
    assert await counters.hit([TWO], NOW + 59.75) == Hit(0, 0.25, (0,), (0.25,))
    assert await counters.hit([TWO], NOW + 60) == Hit(None, 0.0, (0,), (10.0,))
    assert await counters.hit([TWO], NOW + 60.5) == Hit(0, 9.5, (0,), (9.5,))


async def test_a_refusal_spends_nothing_anywhere(counters: Counters) -> None:
    for second in range(2):
        await counters.hit([TWO, THREE], NOW + second)
    for _ in range(5):
        assert await counters.hit([TWO, THREE], NOW + 2) == Hit(0, 58.0, (0, 1), (58.0, 3598.0))
    assert await counters.hit([THREE], NOW + 3) == Hit(None, 0.0, (0,), (3597.0,))


async def test_of_two_full_windows_the_one_that_frees_latest_is_named(counters: Counters) -> None:
    one_a_minute, one_an_hour = Window("a", 1, 60), Window("b", 1, 3600)
    await counters.hit([one_a_minute, one_an_hour], NOW)
    assert (await counters.hit([one_a_minute, one_an_hour], NOW + 1)).refused == 1
    assert (await counters.hit([one_an_hour, one_a_minute], NOW + 1)).refused == 0
    await counters.hit([one_a_minute], NOW + 3590)
    assert await counters.hit([one_a_minute, one_an_hour], NOW + 3595) == Hit(0, 55.0, (0, 0), (55.0, 5.0))


async def test_hits_of_one_moment_all_count(counters: Counters) -> None:
    many = Window("many", 50, 1)
    hits = [await counters.hit([many], NOW) for _ in range(51)]
    assert [hit.remaining[0] for hit in hits] == [*range(49, -1, -1), 0]
    assert [hit.refused for hit in hits] == [None] * 50 + [0]
    assert (await counters.hit([many], NOW + 1)).remaining == (49,)


async def test_a_limit_that_was_lowered_holds_for_what_was_counted_before(counters: Counters) -> None:
    for second in range(5):
        await counters.hit([Window("k", 10, 60)], NOW + second)
    lowered = Window("k", 2, 60)
    # Room is there when only one of the five is left.
    assert await counters.hit([lowered], NOW + 10) == Hit(0, 53.0, (0,), (50.0,))
    assert (await counters.hit([lowered], NOW + 62.75)).refused == 0
    assert await counters.hit([lowered], NOW + 63) == Hit(None, 0.0, (0,), (1.0,))


@pytest.mark.parametrize("seed", range(3))
async def test_random_hits_are_decided_as_plain_counting_does(counters: Counters, seed: int) -> None:
    """No window ever holds more than its limit, and what a hit reports is what plain counting finds."""
    order, now = random.Random(seed), NOW
    windows = [Window("a", 3, 10), Window("b", 5, 30), Window("c", 8, 60)]
    times: dict[str, list[float]] = defaultdict(list)
    refusals = 0
    for _ in range(300):
        now += order.choice([0, 0, 0.25, 1, 2.5, 7])
        asked = order.sample(windows, order.randint(1, 3))
        hit = await counters.hit(asked, now)
        inside = [(one, [at for at in times[one.key] if at > now - one.seconds]) for one in asked]
        waits = [at[-one.limit] + one.seconds - now if len(at) >= one.limit else 0.0 for one, at in inside]
        assert hit.retry_after == max(waits)
        assert (waits[hit.refused] if hit.refused is not None else 0.0) == max(waits)
        refusals += hit.refused is not None
        for one, at in inside if hit.refused is None else ():
            at.append(now)
            times[one.key].append(now)
        assert hit.remaining == tuple(one.limit - len(at) for one, at in inside)
        assert hit.reset_after == tuple(at[0] + one.seconds - now if at else 0.0 for one, at in inside)
    assert 50 < refusals < 250


@pytest.mark.parametrize("hits", [10, 60, 400])
@pytest.mark.parametrize("others", [[], [Window("other", 1000, 3600)]], ids=["alone", "beside another"])
async def test_after_a_pause_the_hits_that_have_ended_count_no_longer(
    counters: Counters, hits: int, others: list[Window]
) -> None:
    """Of hits that are a quarter of a second apart: the first one, some, all but one, and all of them."""
    window = Window("window", 1000, hits)
    for number in range(hits):
        await counters.hit([window], NOW + number / 4)
    for gone in (1, hits // 4, hits - 1, hits):
        now, left = NOW + (gone - 1) / 4 + hits, hits - gone
        found = await counters.hit([window, *others], now, counts=False)
        assert (found.refused, found.remaining[0]) == (None, 1000 - left), gone
        assert found.reset_after[0] == (0.25 if left else 0.0)


@pytest.mark.parametrize("pause", [30, 90])
async def test_a_hundred_thousand_hits_that_have_ended_are_dropped_in_a_few_steps(pause: float) -> None:
    """One by one, they would hold up all other calls of the process."""
    windows, minute = SlidingWindows(), Window("minute", 10**6, 60)
    for number in range(100_000):
        windows.hit_one(minute, NOW + number / 2_000)
    with lines_counted(inspect.getfile(SlidingWindows)) as lines:
        found = windows.hit_one(minute, NOW + 50 + pause)
    assert found.remaining[0] >= 10**6 - 60_000
    assert 0 < lines.total() < 100, lines


async def test_many_at_once_get_no_more_than_there_is(counters: Counters) -> None:
    refused: list[int | None] = []

    async def hit() -> None:
        refused.append((await counters.hit([Window("a", 30, 60), Window("b", 40, 60)], NOW)).refused)

    async with anyio.create_task_group() as group:
        for _ in range(100):
            group.start_soon(hit)
    assert (refused.count(None), refused.count(0)) == (30, 70)


@pytest.mark.parametrize("step", [0.001, 1.0])
async def test_memory_holds_a_bounded_number_of_windows(step: float) -> None:
    windows = SlidingWindows(generation=100, most_busy=200)
    for number in range(20_000):
        for _ in range(1 + number % 3):
            windows.hit_one(Window(f"name-{number}", 5, 60), NOW + number * step)
        assert len(windows) <= 400


async def test_when_more_names_come_than_are_kept_full_windows_stay_full() -> None:
    windows, full = SlidingWindows(generation=100, most_busy=200), Window("full", 3, 3600)
    single = Window("single", 1, 3600)
    for _ in range(3):
        windows.hit_one(full, NOW)
    windows.hit_one(single, NOW)
    for number in range(2_000):
        for _ in range(1 + number % 4):
            windows.hit([Window(f"other-{number}", 60, 3600)], NOW + 1)
    assert windows.hit_one(full, NOW + 2).refused == 0
    assert windows.hit_one(single, NOW + 2).refused == 0


async def test_windows_that_have_ended_are_forgotten_while_others_come() -> None:
    windows = SlidingWindows()
    for number in range(4 * SWEEP_EVERY):
        for _ in range(2):
            windows.hit_one(Window(f"twice-{number}", 5, 1), NOW + number)
    assert len(windows) <= SWEEP_EVERY + 1


@pytest.mark.parametrize("many", [5, 200])
async def test_a_clock_that_steps_back_makes_no_window_longer(counters: Counters, many: int) -> None:
    window, other = Window("five", many, 60), Window("other", 1000, 60)
    for asked in ([window], [window, other]):
        await counters.hit(asked, NOW + 300)
    for _ in range(many - 2):
        await counters.hit([window], NOW + 300)
    refused = await counters.hit([window], NOW)
    assert (refused.refused, refused.retry_after, refused.reset_after) == (0, 60.0, (60.0,))
    assert (await counters.hit([other, window], NOW + 30)).retry_after == 30.0
    assert (await counters.hit([window, other], NOW + 60)).refused is None
    assert (await counters.hit([window], NOW + 60)).remaining == (many - 2,)


@pytest.mark.tools
async def test_redis_forgets_what_no_longer_counts(redis: Redis) -> None:
    counters = RedisCounters(redis.url)
    await counters.hit([TWO], NOW)
    await counters.acquire("job", [], NOW, NOW + 1)
    await counters.restore({"job": ["subject:alice"]}, NOW, NOW + 600)
    assert redis.ask("DBSIZE") == ":2"
    assert 60 <= int(redis.ask("TTL {fal-proxy}:rate:subject:alice")[1:]) <= 180
    assert 600 <= int(redis.ask("TTL {fal-proxy}:lease:subject:alice")[1:]) <= 86_400
    await counters.close()


@pytest.mark.tools
async def test_processes_share_the_windows_of_redis(redis: Redis) -> None:
    one, other = RedisCounters(redis.url), RedisCounters(redis.url)
    assert (await one.hit([TWO], NOW)).remaining == (1,)
    assert (await other.hit([TWO], NOW)).remaining == (0,)
    assert (await one.hit([TWO], NOW)).refused == 0
    for counters in (one, other):
        await counters.close()


@pytest.mark.tools
async def test_a_process_whose_clock_is_wrong_changes_no_window_in_redis(redis: Redis) -> None:
    ahead, right = RedisCounters(redis.url), RedisCounters(redis.url)
    for _ in range(2):
        assert (await ahead.hit([TWO], NOW + 300)).refused is None
    for now in (NOW, NOW + 100_000, NOW - 100_000):
        hit = await right.hit([TWO], now)
        assert hit.refused == 0 and 50 < hit.retry_after <= 60 and 50 < hit.reset_after[0] <= 60
    for counters in (ahead, right):
        await counters.close()


@pytest.mark.tools
async def test_a_redis_that_is_gone_frozen_or_slow_is_an_error_until_it_is_back(redis: Redis) -> None:
    with relaying(redis.port) as relay:
        counters = RedisCounters(f"redis://127.0.0.1:{relay.port}/0")
        for trouble in ("stopped", "paused", "slow"):
            assert (await counters.hit([Window(trouble, 9, 60)], NOW)).remaining == (8,)
            relay.delay_seconds = 2.0 if trouble == "slow" else 0.0
            with {"stopped": redis.stopped, "paused": redis.paused}.get(trouble, anyio.CancelScope)():
                for work in (counters.hit([TWO], NOW), counters.in_use("k", NOW), counters.ping()):
                    with pytest.raises(StoreUnavailable) as caught:
                        await work
                    assert caught.value.__cause__ is None
            relay.delay_seconds = 0.0
            await counters.ping()
        await counters.close()


@pytest.mark.tools
async def test_a_hit_whose_answer_was_lost_counts_once_also_where_it_was_the_last(redis: Redis) -> None:
    with relaying(redis.port) as relay:
        counters = RedisCounters(f"redis://127.0.0.1:{relay.port}/0", uses_server_time=False)
        assert await counters.hit([TWO, THREE], NOW) == Hit(None, 0.0, (1, 2), (60.0, 3600.0))
        for second, left in ((1, (0, 1)), (2, (0, 1))):
            relay.cut_after, relay.cuts_once = b"EVALSHA", True
            found = await counters.hit([TWO, THREE], NOW + second)
            # It was repeated, by the driver.
            assert relay.cut_after is None
            assert (found.refused, found.remaining) == (None if second == 1 else 0, left)
        await counters.close()


@pytest.mark.tools
async def test_a_redis_without_memory_refuses_counts_until_it_has_some(redis: Redis) -> None:
    counters = RedisCounters(redis.url, uses_server_time=False)
    await counters.ping()
    one, keys = [LeaseScope("one", 1)], ["one"]
    assert await counters.acquire("a", one, NOW, NOW + 600) is None
    assert (await counters.hit([TWO], NOW)).remaining == (1,)
    with redis_out_of_memory(redis):
        for work in (
            counters.hit([TWO], NOW + 1),
            counters.hit([THREE], NOW + 1),
            # Also where something has expired, and is removed.
            counters.hit([TWO], NOW + 61),
            counters.acquire("b", [LeaseScope("other", 1)], NOW + 1, NOW + 601),
            counters.acquire("b", one, NOW + 601, NOW + 1201),
            counters.restore({"c": keys}, NOW + 601, NOW + 1201),
            counters.ping(),
        ):
            with pytest.raises(StoreUnavailable):
                await work
        # What is held is kept, and is returned.
        assert await counters.acquire("b", one, NOW + 1, NOW + 601) == 0
        await counters.renew("a", keys, NOW + 1, NOW + 700)
        assert await counters.in_use("one", NOW + 699) == 1
        await counters.release("a", keys)
        assert await counters.in_use("one", NOW + 1) == 0
    assert await counters.acquire("b", one, NOW + 2, NOW + 602) is None
    assert (await counters.hit([TWO], NOW + 2)).remaining == (0,)
    await counters.ping()
    await counters.close()
