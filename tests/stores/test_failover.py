"""Counters in a Redis whose primary changes."""

from __future__ import annotations

import pytest

from proxy.errors import StoreUnavailable
from proxy.stores.counters import LeaseScope, Window
from proxy.stores.redis.counters import RedisCounters
from tests.support.redis import Redis, running_redis
from tests.support.relay import relaying
from tests.support.waiting import wait_until_async

pytestmark = [pytest.mark.anyio, pytest.mark.tools]
NOW = 1_795_000_000.25
THREE, ONE = Window("subject:alice", 3, 60), LeaseScope("subject:alice", 1)


def demote(server: Redis, *, is_stale: bool) -> None:
    """Make a primary a replica of nothing that answers. It keeps its connections."""
    if is_stale:
        assert server.ask("CONFIG SET replica-serve-stale-data no") == "+OK"
    assert server.ask("REPLICAOF 127.0.0.1 1") == "+OK"


@pytest.mark.parametrize("is_stale", [False, True], ids=["READONLY", "MASTERDOWN"])
async def test_open_connections_leave_a_server_that_is_no_longer_the_primary(is_stale: bool) -> None:
    with (
        running_redis("--repl-diskless-sync-delay", "0") as old,
        running_redis() as new,
        relaying(old.port) as relay,
    ):
        counters, idle = (RedisCounters(f"redis://127.0.0.1:{relay.port}/0") for _ in range(2))
        await idle.ping()
        assert new.ask(f"REPLICAOF 127.0.0.1 {old.port}") == "+OK"
        assert (await counters.hit([THREE], NOW)).remaining == (2,)
        assert await counters.acquire("a", [ONE], NOW, NOW + 600) is None
        await wait_until_async(lambda: has_both(new), "nothing was replicated")
        demote(old, is_stale=is_stale)
        # The name in the URL still leads to it: nothing is counted there, and the process is not ready.
        for work in (counters.hit([THREE], NOW), counters.acquire("b", [ONE], NOW, NOW + 600), counters.ping()):
            with pytest.raises(StoreUnavailable):
                await work
        assert new.ask("REPLICAOF NO ONE") == "+OK"
        relay.to_port = new.port
        # Over the connection that it opened before, it meets the old one first.
        await idle.ping()
        assert await idle.in_use(ONE.key, NOW) == 1
        await counters.ping()
        assert (await counters.hit([THREE], NOW)).remaining == (1,)
        assert await counters.acquire("b", [ONE], NOW, NOW + 600) == 0
        await counters.release("a", [ONE.key])
        assert await counters.acquire("b", [ONE], NOW, NOW + 600) is None
        for one in (counters, idle):
            await one.close()


async def has_both(server: Redis) -> bool:
    return server.ask("EXISTS {fal-proxy}:rate:subject:alice {fal-proxy}:lease:subject:alice") == ":2"
