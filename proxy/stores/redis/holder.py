"""The holders of leases in Redis: processes that give a sign of life every few seconds, or are taken for dead.

A hash for each holder names its leases with their scopes, so that another process can end them when it is dead. A key
with a random value, the epoch, tells that the data is still there: a server that lost its data has lost it too.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence

import orjson

from proxy.stores.counters import Beat
from proxy.stores.redis.client import PREFIX, RedisClient, Script, batches, sizes

EPOCH = f"{PREFIX}epoch"
_HOLDERS = f"{PREFIX}holders"
_BEAT, _FREE = map(Script.read, ("beat", "free"))


class RedisHolder:
    """One process among those that hold leases.

    Args:
        time: the time as the scripts take it, from the caller's.
    """

    def __init__(self, redis: RedisClient, time: Callable[[float], str]) -> None:
        #: Of this incarnation: a process that starts again is another holder.
        self.id = secrets.token_hex(8)
        #: Under which leases are taken; '' before the first `adopt`: then it is not checked.
        self.epoch = ""
        self._redis = redis
        self._time = time
        self._last_beat = ""

    @property
    def key(self) -> str:
        """The hash of its leases."""
        return _held_key(self.id)

    async def beat(self, now: float, expires_at: float) -> Beat:
        args = (self._time(now), expires_at - now, self.id, secrets.token_hex(8))
        answer = await self._redis.run(_BEAT, [_HOLDERS, EPOCH, self.key], args)
        epoch, is_fresh, was_living, before, beat, *dead = [item.decode() for item in answer]
        is_empty = bool(is_fresh) or (self.epoch != "" and epoch != self.epoch)
        # Another time than it left there: Redis went back to an older state, or others took this process for dead.
        was_away = not was_living or before != self._last_beat
        self._last_beat = beat
        return Beat(epoch, is_empty, was_away, tuple(dead))

    def adopt(self, epoch: str) -> None:
        self.epoch = epoch

    async def hand_over(self, leases: Sequence[str]) -> None:
        for some in batches(dict.fromkeys(leases, ())):
            await self._redis.send("HDEL", self.key, *some)

    async def held_by(self, holder: str) -> Mapping[str, Sequence[str]]:
        found = await self._redis.send("HGETALL", _held_key(holder))
        return {lease.decode(): orjson.loads(keys) for lease, keys in zip(found[::2], found[1::2], strict=True)}

    async def free(self, holder: str, leases: Mapping[str, Sequence[str]], now: float, expires_at: float) -> None:
        # At least one step, which forgets a holder without leases.
        for some in batches(leases) if leases else [leases]:
            keys = [_HOLDERS, _held_key(holder), *[key for keys in some.values() for key in keys]]
            await self._redis.run(_FREE, keys, [self._time(now), expires_at - now, holder, *sizes(some)])

    async def leave(self) -> None:
        await self._redis.send("ZREM", _HOLDERS, self.id)


def _held_key(holder: str) -> str:
    return f"{PREFIX}held:{holder}"
