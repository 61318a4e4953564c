"""All commands of a process share one connection to Redis, and the failure of one does not affect another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.exceptions import ConnectionError

from proxy.errors import StoreUnavailable
from proxy.stores.counters import Window
from proxy.stores.redis.client import RedisClient
from proxy.stores.redis.counters import RedisCounters
from proxy.stores.redis.pipeline import Pipeline
from tests.support.redis import Redis
from tests.support.relay import relaying
from tests.support.servers import free_port
from tests.support.waiting import wait_until_async

pytestmark = [pytest.mark.anyio, pytest.mark.tools]
NOW = 1_795_000_000.25


@pytest.fixture
async def open_client() -> AsyncIterator[Callable[[str], RedisClient]]:
    """Whatever it opens is closed at the end."""
    opened: list[RedisClient] = []

    def open_(url: str) -> RedisClient:
        opened.append(RedisClient(url))
        return opened[-1]

    yield open_
    for client in opened:
        await client.close()


def connections(redis: Redis, command: str) -> int:
    """How many connections said a command last."""
    return redis.read("CLIENT LIST").count(f"cmd={command}")


async def test_commands_at_the_same_time_share_a_connection(redis: Redis, open_client: Any) -> None:
    client = open_client(redis.url)
    for _ in range(2):
        answers = await asyncio.gather(*(client.send("ECHO", str(number)) for number in range(200)))
        assert answers == [str(number).encode() for number in range(200)]
        assert connections(redis, "echo") == 1


class Wire:
    """A connection that keeps what is written to it: the stream and its transport."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.transport = self
        self._is_closing = False

    def set_protocol(self, protocol: Pipeline) -> None:
        self._protocol = protocol

    def is_closing(self) -> bool:
        return self._is_closing

    def write(self, data: bytes) -> None:
        if self._is_closing:
            raise RuntimeError("closed")
        self.written.append(data)

    def close(self) -> None:
        self._is_closing = True
        asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    abort = close


async def test_the_commands_of_one_turn_are_written_at_once() -> None:
    wire: Any = Wire()
    pipeline = Pipeline(wire)
    answers = [pipeline.send(command) for command in (b"one", b"two")]
    await asyncio.sleep(0)
    answers.append(pipeline.send(b"three"))
    await asyncio.sleep(0)
    assert wire.written == [b"onetwo", b"three"]
    pipeline.data_received(b":1\r\n:2\r\n:3\r\n")
    assert await asyncio.gather(*answers) == [1, 2, 3]
    await pipeline.close()


async def test_a_close_writes_what_was_sent_before() -> None:
    wire: Any = Wire()
    pipeline = Pipeline(wire)
    answer = pipeline.send(b"one")
    await pipeline.close()
    assert wire.written == [b"one"]
    with pytest.raises(ConnectionError):
        await answer


async def test_a_connection_that_is_lost_before_the_end_of_a_turn_gets_no_command() -> None:
    wire: Any = Wire()
    answer = Pipeline(wire).send(b"one")
    wire.close()
    with pytest.raises(ConnectionError):
        await answer
    assert wire.written == []


async def test_a_command_that_fails_fails_alone(redis: Redis, open_client: Any) -> None:
    client = open_client(redis.url)
    await client.send("SET", "text", "x")
    commands = [("INCR", "number"), ("INCR", "text"), ("NONSENSE",), ("INCR", "number")]
    first, wrong, unknown, last = await asyncio.gather(*(client.send(*one) for one in commands), return_exceptions=True)
    assert (first, last) == (1, 2)
    assert isinstance(wrong, StoreUnavailable) and isinstance(unknown, StoreUnavailable)
    assert await client.send("INCR", "number") == 3
    assert connections(redis, "incr") == 1


async def test_a_reply_to_a_caller_who_left_goes_to_no_other(redis: Redis, open_client: Any) -> None:
    with relaying(redis.port) as relay:
        client = open_client(f"redis://127.0.0.1:{relay.port}/0")
        await client.send("PING")
        relay.delay_seconds = 0.2
        callers = [asyncio.create_task(client.send("ECHO", str(number))) for number in range(5)]
        await asyncio.sleep(0)
        for caller in callers[::2]:
            caller.cancel()
        assert await asyncio.gather(callers[1], callers[3]) == [b"1", b"3"]
        assert connections(redis, "echo") == 1


async def test_callers_who_leave_before_the_connection_opens_do_not_cancel_it(redis: Redis, open_client: Any) -> None:
    client = open_client(redis.url)
    gone, stays = (asyncio.create_task(client.send("ECHO", word)) for word in ("gone", "stays"))
    await asyncio.sleep(0)
    gone.cancel()
    assert await stays == b"stays"
    assert connections(redis, "echo") == 1


async def test_after_an_overdue_answer_later_commands_go_over_another_connection(
    redis: Redis, open_client: Any
) -> None:
    with relaying(redis.port) as relay:
        client = open_client(f"redis://127.0.0.1:{relay.port}/0")
        await client.send("PING")
        relay.delay_seconds = 5.0
        overdue = asyncio.create_task(client.send("ECHO", "overdue"))
        await asyncio.sleep(0.5)
        later = asyncio.create_task(client.send("ECHO", "later"))
        with pytest.raises(StoreUnavailable):
            await overdue
        relay.delay_seconds = 0.0
        assert await later == b"later"


async def test_a_closed_client_leaves_no_connection_and_opens_none(redis: Redis, open_client: Any) -> None:
    client = open_client(redis.url)
    await client.send("PING")
    # The server is left for its first answer, while the second command waits there for its own.
    left = asyncio.create_task(client.send("EVAL", "return redis.error_reply('READONLY now')", "0"))
    waiting = asyncio.create_task(client.send("BLPOP", "nothing", "0"))
    with pytest.raises(StoreUnavailable):
        await left
    assert connections(redis, "blpop") == 1
    await client.close()
    await asyncio.wait({waiting}, timeout=60)
    assert waiting.done() and isinstance(waiting.exception(), StoreUnavailable)
    await wait_until_async(lambda: asyncio.to_thread(lambda: not connections(redis, "blpop")), "it still waits there")


async def test_a_lost_connection_loses_no_command(redis: Redis, open_client: Any) -> None:
    client = open_client(redis.url)
    await client.send("PING")
    for _ in range(3):
        redis.ask("CLIENT KILL TYPE normal")
        answers = await asyncio.gather(*(client.send("ECHO", str(number)) for number in range(20)))
        assert answers == [str(number).encode() for number in range(20)]


@pytest.mark.parametrize("times, answer", [(1, b"hello"), (2, b"hello"), (3, None)])
async def test_connections_that_are_closed_at_once_are_tried_three_times(
    times: int, answer: bytes | None, open_client: Any
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        refused.append(None)
        if len(refused) > times:
            await reader.read(1000)
            writer.write(b"$5\r\nhello\r\n")
        writer.close()

    refused: list[None] = []
    port = free_port()
    async with await asyncio.start_server(serve, "127.0.0.1", port):
        echo = open_client(f"redis://127.0.0.1:{port}/0").send("ECHO", "hello")
        if answer is None:
            with pytest.raises(StoreUnavailable):
                await echo
        else:
            assert await echo == answer
        assert len(refused) == min(times + 1, 3)


async def test_a_connection_that_is_lost_before_its_first_command_is_replaced(redis: Redis) -> None:
    stream = (await asyncio.open_connection("127.0.0.1", redis.port))[1]
    pipeline = Pipeline(stream)
    stream.transport.abort()
    await pipeline.close()
    with pytest.raises(ConnectionError):
        await pipeline.send(b"*1\r\n$4\r\nPING\r\n")


async def test_a_script_that_redis_forgot_is_sent_again(redis: Redis) -> None:
    counters = RedisCounters(redis.url, uses_server_time=False)
    assert redis.ask("SCRIPT FLUSH") == "+OK"
    hits = await asyncio.gather(*(counters.hit([Window("alice", 9, 60)], NOW) for _ in range(9)))
    assert sorted(hit.remaining for hit in hits) == [(left,) for left in range(9)]
    await counters.close()


async def test_users_databases_and_options_of_the_url_count(redis: Redis, open_client: Any) -> None:
    assert redis.ask("ACL SETUSER proxy on >secret ~* +@all") == "+OK"
    client = open_client(f"redis://proxy:secret@127.0.0.1:{redis.port}/3?protocol=3&max_connections=5")
    await client.send("HSET", "one", "field", "value")
    assert await client.send("HGETALL", "one") == [b"field", b"value"]
    assert "db3:keys=1" in redis.read("INFO keyspace")
    wrong = open_client(f"redis://proxy:wrong@127.0.0.1:{redis.port}/3")
    with pytest.raises(StoreUnavailable):
        await wrong.send("PING")


@asynccontextmanager
async def serve_answers(*answers: bytes) -> AsyncIterator[int]:
    """A server that answers whatever it is asked; each connection in its own way."""
    left = list(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer = left.pop(0)
        while await reader.read(1000):
            writer.write(answer)
        writer.close()

    port = free_port()
    async with await asyncio.start_server(serve, "127.0.0.1", port):
        yield port


@pytest.mark.parametrize("first", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b":1\r\n:7\r\n", b"\x00\r\n"])
async def test_after_answers_to_nothing_another_connection_is_used(first: bytes, open_client: Any) -> None:
    problems: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: problems.append(context))
    async with serve_answers(first, b":2\r\n") as port:
        client = open_client(f"redis://127.0.0.1:{port}/0")

        async def is_right() -> bool:
            return await client.send("GET", "x") == 2

        await wait_until_async(is_right, "the wrong connection is still used")
        await client.close()
    assert not problems
