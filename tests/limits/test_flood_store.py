"""Where slowapi's flood guard counts."""

from __future__ import annotations

import limits
import pytest
from limits.strategies import STRATEGIES

from proxy.limits.flood_store import GENERATION, MOST_BUSY, BoundedStorage
from proxy.limits.rates import flood_guard
from tests.support.clock import MovableClock

TWO = limits.parse("2/hour")


def test_slowapi_counts_in_this_store_by_the_clock_of_the_proxy() -> None:
    clock = MovableClock()
    storage = flood_guard(clock)._storage
    assert isinstance(storage, BoundedStorage)
    assert [storage.acquire_entry("door", 1, 60) for _ in range(2)] == [True, False]
    clock.advance(60)
    assert storage.acquire_entry("door", 1, 60)


def test_a_full_window_refuses_and_knows_its_reset_time() -> None:
    strategy = STRATEGIES["moving-window"](BoundedStorage())
    assert [strategy.hit(TWO, "door", "203.0.113.1") for _ in range(3)] == [True, True, False]
    assert strategy.hit(TWO, "door", "203.0.113.2")
    stats = strategy.get_window_stats(TWO, "door", "203.0.113.1")
    assert stats.remaining == 0 and not strategy.test(TWO, "door", "203.0.113.1")
    assert strategy.get_window_stats(TWO, "door", "203.0.113.3").remaining == 2


def test_a_hit_may_count_only_once() -> None:
    with pytest.raises(ValueError, match="counts once"):
        BoundedStorage().acquire_entry("door", 5, 60, amount=2)


def test_the_store_is_bounded_however_many_addresses_come() -> None:
    storage = BoundedStorage()
    for number in range(100_000):
        storage.acquire_entry(f"LIMITER/2001:db8:0:{number:x}::/64/door/60/1/minute", 60, 60)
        if number % 2:
            storage.acquire_entry(f"LIMITER/2001:db8:0:{number:x}::/64/door/60/1/minute", 60, 60)
    assert len(storage) <= 2 * GENERATION + MOST_BUSY
