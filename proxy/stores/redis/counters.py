"""Counters that many processes share, in Redis or Valkey. Each step is one script: atomic, and one round trip.

The time is that of the server, so a process whose clock is wrong changes nothing for the others.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Mapping, Sequence

from proxy.ids import draw_id
from proxy.stores.counters import Hit, LeaseScope, LeasesLost, Window
from proxy.stores.redis.client import PREFIX, RedisClient, Script, batches, sizes
from proxy.stores.redis.holder import EPOCH, RedisHolder
from proxy.stores.redis.pipeline import ANSWER_SECONDS

_LEASES = f"{PREFIX}lease:"
_HIT, _ACQUIRE, _EXTEND, _RELEASE, _IN_USE = map(Script.read, ("hit", "acquire", "extend", "release", "in_use"))

#: What is counted to see whether it can be; both are over within seconds, and have room for all who ask.
_PING_WINDOW, _PING_SCOPE = Window("ping", 1_000_000, 1), LeaseScope("ping", 1_000_000)


class RedisCounters:
    """Opens nothing until it is used.

    Args:
        url: `redis://…` or `rediss://…`.
        uses_server_time: date each step by the server's clock. Without, by the `now` of the caller: for tests, which
            move their clock.
    """

    is_shared = True

    def __init__(self, url: str, *, uses_server_time: bool = True) -> None:
        self._redis = RedisClient(url)
        self._uses_server_time = uses_server_time
        self.holder = RedisHolder(self._redis, self._time)

    async def hit(self, windows: Sequence[Window], now: float, *, counts: bool = True) -> Hit:
        if not windows:
            return Hit(None, 0.0, (), ())
        keys = [f"{PREFIX}rate:{window.key}" for window in windows]
        limits = [number for window in windows for number in (window.limit, window.seconds)]
        name = draw_id(16) if counts else ""
        answer = await self._redis.run(_HIT, keys, [self._time(now), name, *limits])
        refused, wait, *rest = [float(text) for text in answer]
        return Hit(int(refused) - 1 if refused else None, wait, tuple(map(int, rest[::2])), tuple(rest[1::2]))

    def hit_now(self, windows: Sequence[Window], now: float) -> None:
        """Give None: Redis is waited for."""

    async def acquire(self, lease: str, scopes: Sequence[LeaseScope], now: float, expires_at: float) -> int | None:
        if not scopes:
            return None
        keys = [EPOCH, self.holder.key, *[_LEASES + scope.key for scope in scopes]]
        limits = [scope.limit for scope in scopes]
        head = (self._time(now), expires_at - now, lease, self.holder.epoch)
        full = int(await self._redis.run(_ACQUIRE, keys, [*head, *limits]))
        if full < 0:
            raise LeasesLost
        return full - 1 if full else None

    async def renew(self, lease: str, keys: Sequence[str], now: float, expires_at: float) -> None:
        await self._let_expire_later({lease: keys}, now, expires_at)

    async def restore(
        self, leases: Mapping[str, Sequence[str]], now: float, expires_at: float, *, holds: bool = False
    ) -> None:
        await self._let_expire_later(leases, now, expires_at, takes="1", holds="1" if holds else "0")

    async def _let_expire_later(
        self, leases: Mapping[str, Sequence[str]], now: float, expires_at: float, takes: str = "0", holds: str = "0"
    ) -> None:
        for some in batches(leases):
            keys = [self.holder.key, *[_LEASES + key for keys in some.values() for key in keys]]
            args = [self._time(now), expires_at - now, takes, holds, *sizes(some)]
            await self._redis.run(_EXTEND, keys, args)

    async def release(self, lease: str, keys: Sequence[str]) -> None:
        await self._redis.run(_RELEASE, [self.holder.key, *[_LEASES + key for key in keys]], [lease])

    async def in_use(self, key: str, now: float) -> int:
        return int(await self._redis.run(_IN_USE, [_LEASES + key], [self._time(now)]))

    async def ping(self) -> None:
        """Count a hit, take a lease and return it, as calls do.

        A replica answers a mere PING too, a full server keeps what it has, and a user may lack a command of a script.
        """
        lease = f"ping-{secrets.token_hex(8)}"
        await self.hit([_PING_WINDOW], 0.0)
        with contextlib.suppress(LeasesLost):
            # Lost ones are restored with the next call: that is no reason to send it elsewhere.
            await self.acquire(lease, [_PING_SCOPE], 0.0, ANSWER_SECONDS)
        await self.release(lease, [_PING_SCOPE.key])

    async def close(self) -> None:
        await self._redis.close()

    def _time(self, now: float) -> str:
        """Write the time as the scripts take it."""
        return "" if self._uses_server_time else f"{now:.6f}"
