"""A user of Redis who may not do all that calls need: the counters are not ready, and say so before a call does."""

from __future__ import annotations

import pytest

from proxy.errors import StoreUnavailable
from proxy.stores.counters import LeaseScope, Window
from proxy.stores.redis.counters import RedisCounters
from tests.support.redis import Redis

pytestmark = [pytest.mark.tools, pytest.mark.anyio]


@pytest.mark.parametrize("command", ["ZCARD", "ZADD", "ZRANGE", "HSET", "ZCOUNT", "ZREM", "HDEL", "EXPIRE", "EVALSHA"])
async def test_a_user_without_a_command_of_calls_is_not_ready(redis: Redis, command: str) -> None:
    assert redis.ask(f"ACL SETUSER limited on nopass +@all ~* -{command}") == "+OK"
    counters = RedisCounters(f"redis://limited:any@127.0.0.1:{redis.port}/0")
    try:
        with pytest.raises(StoreUnavailable):
            await counters.ping()
    finally:
        await counters.close()
        assert redis.ask("ACL DELUSER limited") == ":1"


async def test_a_ping_leaves_no_lease_and_takes_no_room(redis: Redis) -> None:
    counters = RedisCounters(redis.url)
    for _ in range(3):
        await counters.ping()
    assert await counters.in_use("ping", 0.0) == 0
    assert redis.ask("KEYS *lease:*") == redis.ask("KEYS *held:*") == "*0"
    assert (await counters.hit([Window("other", 1, 60)], 0.0)).refused is None
    assert await counters.acquire("job", [LeaseScope("other", 1)], 0.0, 600.0) is None
    await counters.close()


async def test_a_server_whose_leases_are_lost_is_ready(redis: Redis) -> None:
    counters = RedisCounters(redis.url)
    counters.holder.adopt((await counters.holder.beat(0.0, 7.0)).epoch)
    redis.forget()
    await counters.ping()
    await counters.close()
