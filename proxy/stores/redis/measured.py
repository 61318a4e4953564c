"""Redis with a measure of how long a call waits for it."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

from proxy.stores.counters import Hit, LeaseScope, Window
from proxy.stores.redis.counters import RedisCounters
from proxy.telemetry.instruments import Distributions


class MeasuredRedisCounters(RedisCounters):
    """Measures the steps that calls wait for; those of timers are not among them."""

    def __init__(self, url: str, seconds: Distributions) -> None:
        super().__init__(url)
        self._hit_seconds = seconds.of("counters", "hit")
        self._acquire_seconds = seconds.of("counters", "acquire")
        self._release_seconds = seconds.of("counters", "release")

    async def hit(self, windows: Sequence[Window], now: float, *, counts: bool = True) -> Hit:
        started = perf_counter()
        try:
            return await super().hit(windows, now, counts=counts)
        finally:
            self._hit_seconds.observe(perf_counter() - started)

    async def acquire(self, lease: str, scopes: Sequence[LeaseScope], now: float, expires_at: float) -> int | None:
        started = perf_counter()
        try:
            return await super().acquire(lease, scopes, now, expires_at)
        finally:
            self._acquire_seconds.observe(perf_counter() - started)

    async def release(self, lease: str, keys: Sequence[str]) -> None:
        started = perf_counter()
        try:
            await super().release(lease, keys)
        finally:
            self._release_seconds.observe(perf_counter() - started)
