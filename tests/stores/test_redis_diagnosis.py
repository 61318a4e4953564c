"""Each trouble of Redis says what is wrong and what to do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from proxy.errors import StoreUnavailable
from proxy.stores.redis.client import RedisClient
from tests.support.redis import Redis, running_redis
from tests.support.servers import free_port

pytestmark = [pytest.mark.tools, pytest.mark.anyio]
PASSWORD = "a-pass-word-of-redis"
SILENT = "do not answer; try again shortly"


@pytest.fixture(scope="module")
def server() -> Iterator[Redis]:
    with running_redis("--maxmemory", "1") as server:
        server.ask("ACL SETUSER reader on >pw ~* +ping")
        server.ask(f"ACL SETUSER writer on >{PASSWORD} ~* +@all")
        yield server


async def assert_fails(reason: str, url: str, *command: str) -> None:
    """Send a command that fails; again while a busy machine keeps Redis from answering within a second."""
    for _ in range(60):
        client = RedisClient(url)
        try:
            with pytest.raises(StoreUnavailable) as caught:
                await client.send(*command)
        finally:
            await client.close()
        if SILENT not in caught.value.message:
            break
    assert caught.value.message.startswith(f"The proxy's counters {reason}")
    body = caught.value.body()
    assert body["detail"] == body["message"] == f"The proxy's counters {SILENT}.", "callers learn no more than this"


@pytest.mark.parametrize(
    ("user", "command", "reason"),
    [
        ("writer:wrong", ["PING"], "refuse the user or the password: correct PROXY_REDIS_URL"),
        ("stranger:pw", ["PING"], "refuse the user or the password: correct PROXY_REDIS_URL"),
        ("reader:pw", ["SET", "a", "b"], "do not let this user do what the proxy needs"),
        (f"writer:{PASSWORD}", ["SET", "a", "b"], "are full: raise maxmemory"),
        (f"writer:{PASSWORD}", ["NONE"], "lack a command: take Redis 5 or newer"),
    ],
)
async def test_a_refusal_of_redis_says_what_to_do(server: Redis, user: str, command: list[str], reason: str) -> None:
    await assert_fails(reason, f"redis://{user}@127.0.0.1:{server.port}", *command)


async def test_a_database_that_redis_has_not_is_named(server: Redis) -> None:
    await assert_fails("have no database of this number", f"redis://127.0.0.1:{server.port}/99", "PING")


async def test_a_replica_that_stays_one_is_named(server: Redis) -> None:
    with running_redis() as replica:
        replica.ask(f"REPLICAOF 127.0.0.1 {free_port()}")
        await assert_fails("take no writes: let PROXY_REDIS_URL lead to the primary", replica.url, "SET", "a", "b")


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("no-such-host.invalid:6379", "have no address"),
        ("no-host..invalid:6379", "have no address"),
        ("127.0.0.1:1", "are not there: correct the host and port"),
    ],
)
async def test_a_redis_that_cannot_be_reached_is_named(host: str, reason: str) -> None:
    await assert_fails(reason, f"redis://{host}", "PING")


async def test_what_fails_for_every_call_is_logged_once_and_shows_no_secret(
    server: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    client = RedisClient(f"redis://writer:{PASSWORD}@127.0.0.1:{server.port}")
    for _ in range(5):
        with pytest.raises(StoreUnavailable):
            await client.send("SET", "a", "b")
    await client.close()
    logged = [record.log_fields for record in caplog.records if record.message == "counters failed"]  # type: ignore[attr-defined]
    # A busy machine may keep Redis from answering in time as well.
    assert [fields["failures"] for fields in logged if fields["problem"] == "OutOfMemoryError"] == [1]
    assert PASSWORD not in str(logged)
