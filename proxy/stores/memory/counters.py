"""Counters of one process. Nothing here awaits, so every step is atomic."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

from proxy.stores.counters import Beat, Hit, LeaseScope, Window
from proxy.stores.memory.windows import SlidingWindows

#: New scopes between two sweeps of those with expired leases, at least.
SWEEP_EVERY = 10_000
#: Leases that were returned and still stand in a queue: most calls are over long before their lease would expire.
MOST_RETURNED = 100
_NO_LEASES: Mapping[str, float] = {}


class MemoryCounters:
    """Rate windows and leases of one process.

    A clock that is set back makes no lease longer: leases expire by a time that only goes forward.
    """

    is_shared = False

    def __init__(self) -> None:
        self._latest = self._set_back = 0.0
        self.windows = SlidingWindows()
        self._scopes: dict[str, _Scope] = {}
        self._until_sweep = SWEEP_EVERY
        self.holder = LoneHolder()

    async def hit(self, windows: Sequence[Window], now: float, *, counts: bool = True) -> Hit:
        return self.hit_now(windows, now) if counts else self.windows.hit(windows, now, counts=False)

    def hit_now(self, windows: Sequence[Window], now: float) -> Hit:
        return self.windows.hit_one(windows[0], now) if len(windows) == 1 else self.windows.hit(windows, now)

    async def acquire(self, lease: str, scopes: Sequence[LeaseScope], now: float, expires_at: float) -> int | None:
        moment = self._moment(now)
        for at, scope in enumerate(scopes):
            living = self._living_leases(scope.key, moment)
            if lease not in living and len(living) >= scope.limit:
                return at
        for scope in scopes:
            self._put(scope.key, lease, moment + (expires_at - now))
        self._sweep(moment)
        return None

    async def renew(self, lease: str, keys: Sequence[str], now: float, expires_at: float) -> None:
        moment = self._moment(now)
        for key in keys:
            if lease in self._living_leases(key, moment):
                self._put(key, lease, moment + (expires_at - now))

    async def restore(
        self, leases: Mapping[str, Sequence[str]], now: float, expires_at: float, *, holds: bool = False
    ) -> None:
        moment = self._moment(now)
        for lease, keys in leases.items():
            for key in keys:
                self._put(
                    key, lease, max(moment + (expires_at - now), self._living_leases(key, moment).get(lease, 0.0))
                )

    async def release(self, lease: str, keys: Sequence[str]) -> None:
        for key in keys:
            if (scope := self._scopes.get(key)) is not None:
                scope.leases.pop(lease, None)
                if not scope.leases:
                    del self._scopes[key]

    async def in_use(self, key: str, now: float) -> int:
        return len(self._living_leases(key, self._moment(now)))

    async def ping(self) -> None:
        return None

    async def close(self) -> None:
        return None

    def _moment(self, now: float) -> float:
        """Return the time by which leases expire: the caller's, without the steps back that it took."""
        if now < self._latest:
            self._set_back += self._latest - now
        self._latest = now
        return now + self._set_back

    def _living_leases(self, key: str, now: float) -> Mapping[str, float]:
        """Return the leases of a scope that have not expired; a scope without any is forgotten."""
        scope = self._scopes.get(key)
        if scope is None:
            return _NO_LEASES
        living = scope.drop_expired(now)
        if not living:
            del self._scopes[key]
        return living

    def _put(self, key: str, lease: str, expires_at: float) -> None:
        scope = self._scopes.get(key)
        if scope is None:
            scope = self._scopes[key] = _Scope()
            self._until_sweep -= 1
        scope.put(lease, expires_at)

    def _sweep(self, now: float) -> None:
        """Forget scopes whose leases expired unreturned, once as many new scopes came as there are."""
        if self._until_sweep <= 0:
            for key in list(self._scopes):
                self._living_leases(key, now)
            self._until_sweep = max(SWEEP_EVERY, len(self._scopes))


class LoneHolder:
    """The only process that holds leases here: they end with it."""

    async def beat(self, now: float, expires_at: float) -> Beat:
        return Beat(epoch="", is_empty=False, was_away=False)

    def adopt(self, epoch: str) -> None:
        return None

    async def hand_over(self, leases: Sequence[str]) -> None:
        return None

    async def held_by(self, holder: str) -> Mapping[str, Sequence[str]]:
        return {}

    async def free(self, holder: str, leases: Mapping[str, Sequence[str]], now: float, expires_at: float) -> None:
        return None

    async def leave(self) -> None:
        return None


class _Scope:
    """The leases of one scope. The queue finds the expired ones without looking at all of them.

    A lease stands there once, with a time at which it is to be looked at: it may have been renewed since, or returned.
    """

    __slots__ = ("_queue", "leases")

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

    def drop_expired(self, now: float) -> dict[str, float]:
        while self._queue and self._queue[0][0] <= now:
            _, lease = heapq.heappop(self._queue)
            expires_at = self.leases.get(lease, now)
            if expires_at > now:
                heapq.heappush(self._queue, (expires_at, lease))
            else:
                self.leases.pop(lease, None)
        return self.leases
