"""Counters of one process. Nothing here awaits, so every step is atomic."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence

from proxy.stores.base import Hit, Pool, Window

#: Between two sweeps of what nobody asks for any more.
SWEEP_EVERY = 10_000
#: Leases that were returned and still stand in a queue: most calls are over long before their lease would expire.
MOST_RETURNED = 100


class MemoryCounters:
    """Sliding windows as the times of the last hits: a window is full if its oldest kept hit is still inside it."""

    def __init__(self) -> None:
        self._hits: dict[str, tuple[deque[float], int]] = {}
        self._pools: dict[str, _Pool] = {}
        self._until_sweep = SWEEP_EVERY

    async def hit(self, windows: Sequence[Window], now: float) -> Hit:
        if len(windows) == 1:
            return self._hit_one(windows[0], now)
        kept = [self._inside(window, now) for window in windows]
        waits = [
            times[-window.limit] + window.seconds - now if len(times) >= window.limit else 0.0
            for times, window in zip(kept, windows, strict=True)
        ]
        refused = max(range(len(waits)), key=waits.__getitem__) if any(wait > 0 for wait in waits) else None
        if refused is None:
            for times in kept:
                times.append(now)
        self._sweep(now)
        pairs = list(zip(kept, windows, strict=True))
        return Hit(
            refused,
            waits[refused] if refused is not None else 0.0,
            tuple(max(0, window.limit - len(times)) for times, window in pairs),
            tuple(times[0] + window.seconds - now if times else 0.0 for times, window in pairs),
        )

    def _hit_one(self, window: Window, now: float) -> Hit:
        """As `hit`, without the lists: polls have one window, and are nine calls in ten."""
        self._sweep(now)
        times = self._inside(window, now)
        if len(times) >= window.limit:
            wait = times[-window.limit] + window.seconds - now
            return Hit(0, wait, (0,), (times[0] + window.seconds - now,))
        times.append(now)
        return Hit(None, 0.0, (window.limit - len(times),), (times[0] + window.seconds - now,))

    def _inside(self, window: Window, now: float) -> deque[float]:
        times, _ = self._hits.setdefault(window.key, (deque(), window.seconds))
        while times and times[0] <= now - window.seconds:
            times.popleft()
        return times

    def _sweep(self, now: float) -> None:
        self._until_sweep -= 1
        if self._until_sweep > 0:
            return
        self._until_sweep = SWEEP_EVERY
        ended = [key for key, (times, seconds) in self._hits.items() if not times or times[-1] <= now - seconds]
        for key in ended:
            del self._hits[key]
        for key in [key for key, pool in self._pools.items() if not pool.living(now)]:
            del self._pools[key]

    async def acquire(self, lease: str, pools: Sequence[Pool], now: float, expires_at: float) -> int | None:
        held = [self._pools.setdefault(pool.key, _Pool()) for pool in pools]
        for at, pool in enumerate(pools):
            living = held[at].living(now)
            if lease not in living and len(living) >= pool.limit:
                return at
        for one in held:
            one.put(lease, expires_at)
        return None

    async def renew(self, lease: str, keys: Sequence[str], now: float, expires_at: float) -> None:
        for key in keys:
            pool = self._pools.get(key)
            if pool is not None and lease in pool.living(now):
                pool.put(lease, expires_at)

    async def restore(self, lease: str, keys: Sequence[str], expires_at: float) -> None:
        for key in keys:
            self._pools.setdefault(key, _Pool()).put(lease, expires_at)

    async def release(self, lease: str, keys: Sequence[str]) -> None:
        for key in keys:
            if (pool := self._pools.get(key)) is not None:
                pool.leases.pop(lease, None)

    async def in_use(self, key: str, now: float) -> int:
        pool = self._pools.get(key)
        return len(pool.living(now)) if pool else 0

    async def ping(self) -> None:
        return None

    async def close(self) -> None:
        return None


class _Pool:
    """The leases of one pool. The queue finds the expired ones without looking at all of them.

    A lease stands there once, with a time at which it is to be looked at: it may have been renewed since, or returned.
    """

    def __init__(self) -> None:
        self.leases: dict[str, float] = {}
        self._queue: list[tuple[float, str]] = []

    def put(self, lease: str, expires_at: float) -> None:
        is_new = lease not in self.leases
        self.leases[lease] = expires_at
        if is_new:
            heapq.heappush(self._queue, (expires_at, lease))
            if len(self._queue) > 2 * len(self.leases) + MOST_RETURNED:
                self._queue = [(at, one) for one, at in self.leases.items()]
                heapq.heapify(self._queue)

    def living(self, now: float) -> dict[str, float]:
        while self._queue and self._queue[0][0] <= now:
            _, lease = heapq.heappop(self._queue)
            expires_at = self.leases.get(lease, now)
            if expires_at > now:
                heapq.heappush(self._queue, (expires_at, lease))
            else:
                self.leases.pop(lease, None)
        return self.leases
