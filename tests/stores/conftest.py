"""The stores on every kind of database, and the counters of every kind."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from proxy.stores.counters import Counters
from proxy.stores.memory import MemoryCounters
from proxy.stores.redis.counters import RedisCounters
from proxy.stores.sql import SqlStores
from tests.support.redis import Redis

#: Opens stores on a database as another process would: with connections of their own.
OpenStores = Callable[..., SqlStores]


@pytest.fixture
async def open_stores() -> AsyncIterator[OpenStores]:
    """Whatever it opens is closed at the end."""
    opened: list[SqlStores] = []

    def open_(url: str, *more: float) -> SqlStores:
        opened.append(SqlStores(url, *more))
        return opened[-1]

    yield open_
    for stores in opened:
        await stores.close()


@pytest.fixture
async def stores(database_url: str, open_stores: OpenStores) -> SqlStores:
    stores = open_stores(database_url)
    await stores.prepare()
    return stores


@pytest.fixture(
    params=["memory", *(pytest.param(kind, marks=pytest.mark.tools) for kind in ("redis", "redis_cluster"))]
)
async def counters(request: pytest.FixtureRequest) -> AsyncIterator[Counters]:
    """Counters that go by the `now` of the test."""
    if request.param == "memory":
        yield MemoryCounters()
        return
    redis: Redis = request.getfixturevalue(request.param)
    counters = RedisCounters(redis.url, uses_server_time=False)
    yield counters
    await counters.close()
