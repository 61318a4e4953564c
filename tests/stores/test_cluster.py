"""Counters in a Redis Cluster of several nodes: the keys are found from each of them, and again when they move."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from proxy.errors import StoreUnavailable
from proxy.stores.counters import LeaseScope, Window
from proxy.stores.redis.counters import RedisCounters
from tests.support.redis import Redis, running_redis, running_redis_nodes
from tests.support.servers import free_port
from tests.support.waiting import wait_until_async

pytestmark = [pytest.mark.anyio, pytest.mark.tools]
NOW = 1_795_000_000.25
NINE, TWO = Window("subject:alice", 9, 60), LeaseScope("subject:alice", 2)


@pytest.fixture(scope="module")
def shared_nodes() -> Iterator[list[Redis]]:
    with running_redis_nodes(3, replicas=1) as nodes:
        yield nodes


@pytest.fixture
def nodes(shared_nodes: list[Redis]) -> list[Redis]:
    for node in shared_nodes[:3]:
        node.forget()
    return shared_nodes


async def test_every_node_leads_to_the_one_that_has_the_keys(nodes: list[Redis]) -> None:
    processes = [RedisCounters(node.url) for node in nodes]
    for number, counters in enumerate(processes):
        await counters.ping()
        assert (await counters.hit([NINE], NOW)).remaining == (8 - number,)
        full = await counters.acquire(f"job-{number}", [TWO], NOW, NOW + 600)
        assert full == (None if number < 2 else 0)
        assert not (await counters.holder.beat(NOW, NOW + 7)).dead
    for number in range(2):
        await processes[-1].release(f"job-{number}", [TWO.key])
    assert await processes[0].in_use(TWO.key, NOW) == 0
    for counters in processes:
        await counters.close()


async def test_connections_through_tls_work_too(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued, port = authority.issue_cert("localhost", "127.0.0.1"), free_port()
    files = {name: tmp_path / f"{name}.pem" for name in ("cert", "key", "ca")}
    files["cert"].write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(files["key"])
    authority.cert_pem.write_to_path(files["ca"])
    tls = ["--tls-cert-file", str(files["cert"]), "--tls-key-file", str(files["key"]), "--tls-auth-clients", "no"]
    with running_redis(*tls, "--tls-ca-cert-file", str(files["ca"]), "--tls-port", str(port)):
        counters = RedisCounters(f"rediss://localhost:{port}/0?ssl_ca_certs={files['ca']}")
        await counters.ping()
        assert (await counters.hit([NINE], NOW)).remaining == (8,)
        await counters.close()


async def test_when_the_node_dies_its_replica_has_the_keys(nodes: list[Redis]) -> None:
    owner, *others, replica = nodes
    # The first process knows only the node that dies; the other one was redirected to it.
    processes = [RedisCounters(owner.url), RedisCounters(others[0].url)]
    for number, counters in enumerate(processes):
        assert await counters.acquire(f"job-{number}", [TWO], NOW, NOW + 600) is None
        assert (await counters.hit([NINE], NOW)).remaining == (8 - number,)

    async def has_all() -> bool:
        # A replica of a cluster redirects reads, so it is asked for the number of its keys.
        return replica.ask("DBSIZE") == owner.ask("DBSIZE")

    async def is_promoted() -> bool:
        return replica.is_primary() and others[0].is_in_order()

    await wait_until_async(has_all, "nothing was replicated")
    with owner.stopped():
        for counters in processes:
            with pytest.raises(StoreUnavailable):
                await counters.ping()
        await wait_until_async(is_promoted, "the replica did not take over")
        # The URL of the dead node does not answer; the other one redirects to the replica.
        with pytest.raises(StoreUnavailable):
            await processes[0].ping()
        await processes[1].ping()
        assert await processes[1].acquire("job-2", [TWO], NOW, NOW + 600) == 0
        assert (await processes[1].hit([NINE], NOW)).remaining == (6,)

    async def is_found() -> bool:
        try:
            await processes[0].ping()
        except StoreUnavailable:
            return False
        return True

    # The node that is back is now the replica, and redirects to the node with the keys.
    await wait_until_async(is_found, "the keys were not found again")
    assert await processes[0].acquire("job-2", [TWO], NOW, NOW + 600) == 0
    for counters in processes:
        await counters.close()
