"""Counters that many processes share, in Redis or Valkey. Each step is one script: atomic, and one round trip.

The time is that of the server, so a process whose clock is wrong changes nothing for the others.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, MasterDownError, ReadOnlyError, RedisError

from proxy.errors import StoreUnavailable
from proxy.stores.base import Hit, Pool, Window

#: The hash tag puts all keys in one slot of a Redis Cluster: a step needs several keys at once.
PREFIX = "{fal-proxy}:"
ANSWER_SECONDS = 1.0
_CONNECTIONS = 64
#: What a server answers that is not the primary, or not yet: it has done nothing. The step is sent again, over a new
#: connection, which leads to the primary once the name in the URL does.
_NO_PRIMARY = (ReadOnlyError, BusyLoadingError, MasterDownError)
_FOLDER = Path(__file__).parent
_log = logging.getLogger(__name__)


class RedisCounters:
    """Opens nothing until it is used.

    Args:
        url: `redis://…` or `rediss://…`.
        uses_server_time: date each step by the server's clock. Without, by the `now` of the caller: for tests, which
            move their clock.
    """

    def __init__(self, url: str, *, uses_server_time: bool = True) -> None:
        # The usual pool refuses whoever comes when all connections are taken; this one lets them wait.
        pool = BlockingConnectionPool.from_url(
            url,
            socket_timeout=ANSWER_SECONDS,
            socket_connect_timeout=ANSWER_SECONDS,
            max_connections=_CONNECTIONS,
            timeout=ANSWER_SECONDS,
            retry=Retry(NoBackoff(), 1, _NO_PRIMARY),
            # No handshake: it takes longer than a step, and a burst of calls opens all connections at once.
            protocol=2,
            driver_info=None,
        )
        self._redis: Any = Redis.from_pool(pool)
        self._uses_server_time = uses_server_time
        self._hit, self._acquire, self._extend, self._in_use = (
            self._redis.register_script((_FOLDER / f"{name}.lua").read_text())
            for name in ("hit", "acquire", "extend", "in_use")
        )

    async def hit(self, windows: Sequence[Window], now: float, *, counts: bool = True) -> Hit:
        if not windows:
            return Hit(None, 0.0, (), ())
        keys = [f"{PREFIX}rate:{window.key}" for window in windows]
        limits = [number for window in windows for number in (window.limit, window.seconds)]
        async with _answering():
            answer = await self._hit(keys=keys, args=[self._time(now), secrets.token_hex(8) if counts else "", *limits])
        refused, wait, *rest = [float(text) for text in answer]
        return Hit(int(refused) - 1 if refused else None, wait, tuple(map(int, rest[::2])), tuple(rest[1::2]))

    async def acquire(self, lease: str, pools: Sequence[Pool], now: float, expires_at: float) -> int | None:
        keys = [f"{PREFIX}lease:{pool.key}" for pool in pools]
        limits = [pool.limit for pool in pools]
        async with _answering():
            full = await self._acquire(keys=keys, args=[self._time(now), expires_at - now, lease, *limits])
        return int(full) - 1 if full else None

    async def renew(self, lease: str, keys: Sequence[str], now: float, expires_at: float) -> None:
        await self._let_expire_later(lease, keys, now, expires_at, "0")

    async def restore(self, lease: str, keys: Sequence[str], now: float, expires_at: float) -> None:
        await self._let_expire_later(lease, keys, now, expires_at, "1")

    async def _let_expire_later(
        self, lease: str, keys: Sequence[str], now: float, expires_at: float, takes: str
    ) -> None:
        async with _answering():
            await self._extend(
                keys=[f"{PREFIX}lease:{key}" for key in keys], args=[self._time(now), expires_at - now, lease, takes]
            )

    async def release(self, lease: str, keys: Sequence[str]) -> None:
        async with _answering(), self._redis.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.zrem(f"{PREFIX}lease:{key}", lease)
            await pipe.execute()

    async def in_use(self, key: str, now: float) -> int:
        async with _answering():
            return int(await self._in_use(keys=[f"{PREFIX}lease:{key}"], args=[self._time(now)]))

    async def ping(self) -> None:
        """Write, as calls do: a replica answers a mere PING too."""
        await self._let_expire_later("ping", ["ping"], 0.0, ANSWER_SECONDS, "1")

    async def close(self) -> None:
        await self._redis.aclose()

    def _time(self, now: float) -> str:
        """The time as the scripts take it."""
        return "" if self._uses_server_time else f"{now:.6f}"


@asynccontextmanager
async def _answering() -> AsyncIterator[None]:
    """Bounds the wait, and turns the driver's trouble into ours, without its text: that may name the server."""
    try:
        async with asyncio.timeout(2 * ANSWER_SECONDS):
            yield
    except (RedisError, OSError, TimeoutError) as problem:
        _log.error("the counters failed: %s", type(problem).__name__)
        raise StoreUnavailable("The proxy's counters do not answer; try again shortly.") from None
