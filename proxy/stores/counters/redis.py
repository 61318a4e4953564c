"""Counters that many processes share, in Redis or Valkey. Each step is one script: atomic, and one round trip."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import RedisError

from proxy.errors import StoreUnavailable
from proxy.stores.base import Hit, Pool, Window

PREFIX = "fal-proxy:"
ANSWER_SECONDS = 1.0
_CONNECTIONS = 64
#: Longer than any lease.
_KEPT_SECONDS = 86_400
_FOLDER = Path(__file__).parent
_log = logging.getLogger(__name__)


class RedisCounters:
    """Opens nothing until it is used. `url` is `redis://…` or `rediss://…`."""

    def __init__(self, url: str) -> None:
        # The usual pool refuses whoever comes when all connections are taken; this one lets them wait.
        pool = BlockingConnectionPool.from_url(
            url,
            socket_timeout=ANSWER_SECONDS,
            socket_connect_timeout=ANSWER_SECONDS,
            max_connections=_CONNECTIONS,
            timeout=ANSWER_SECONDS,
        )
        self._redis: Any = Redis.from_pool(pool)
        self._hit = self._redis.register_script((_FOLDER / "hit.lua").read_text())
        self._acquire = self._redis.register_script((_FOLDER / "acquire.lua").read_text())

    async def hit(self, windows: Sequence[Window], now: float) -> Hit:
        if not windows:
            return Hit(None, 0.0, (), ())
        keys = [f"{PREFIX}rate:{window.key}" for window in windows]
        limits = [number for window in windows for number in (window.limit, window.seconds)]
        async with _answering():
            answer = await self._hit(keys=keys, args=[f"{now:.6f}", secrets.token_hex(8), *limits])
        refused, wait, *rest = [float(text) for text in answer]
        return Hit(int(refused) - 1 if refused else None, wait, tuple(map(int, rest[::2])), tuple(rest[1::2]))

    async def acquire(self, lease: str, pools: Sequence[Pool], now: float, expires_at: float) -> int | None:
        keys = [f"{PREFIX}lease:{pool.key}" for pool in pools]
        limits = [pool.limit for pool in pools]
        async with _answering():
            full = await self._acquire(keys=keys, args=[f"{now:.6f}", f"{expires_at:.6f}", lease, *limits])
        return int(full) - 1 if full else None

    async def renew(self, lease: str, keys: Sequence[str], now: float, expires_at: float) -> None:
        async with _answering(), self._redis.pipeline() as pipe:
            for key in keys:
                pipe.zremrangebyscore(f"{PREFIX}lease:{key}", "-inf", f"{now:.6f}")
                pipe.zadd(f"{PREFIX}lease:{key}", {lease: expires_at}, xx=True)
                pipe.expire(f"{PREFIX}lease:{key}", _KEPT_SECONDS)
            await pipe.execute()

    async def restore(self, lease: str, keys: Sequence[str], expires_at: float) -> None:
        async with _answering(), self._redis.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.zadd(f"{PREFIX}lease:{key}", {lease: expires_at})
                pipe.expire(f"{PREFIX}lease:{key}", _KEPT_SECONDS)
            await pipe.execute()

    async def release(self, lease: str, keys: Sequence[str]) -> None:
        async with _answering(), self._redis.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.zrem(f"{PREFIX}lease:{key}", lease)
            await pipe.execute()

    async def in_use(self, key: str, now: float) -> int:
        async with _answering():
            return int(await self._redis.zcount(f"{PREFIX}lease:{key}", f"({now:.6f}", "+inf"))

    async def ping(self) -> None:
        async with _answering():
            await self._redis.ping()

    async def close(self) -> None:
        await self._redis.aclose()


@asynccontextmanager
async def _answering() -> AsyncIterator[None]:
    """Bounds the wait, and turns the driver's trouble into ours, without its text: that may name the server."""
    try:
        async with asyncio.timeout(2 * ANSWER_SECONDS):
            yield
    except (RedisError, OSError, TimeoutError) as problem:
        _log.error("the counters failed: %s", type(problem).__name__)
        raise StoreUnavailable("The proxy's counters do not answer; try again shortly.") from None
