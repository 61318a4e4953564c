"""A stream that is refused while its caller does not read: it is cut, and its events are closed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
from starlette.types import Message

from proxy.errors import SessionRevoked
from proxy.http.event_stream import REFUSAL_SECONDS, EventStream
from proxy.http.scope import NO_STORE, SHOWN
from proxy.upstream.event_reader import StreamBroken

pytestmark = pytest.mark.anyio


class Connection:
    """A caller's connection that takes so many messages, and then no more."""

    def __init__(self, takes: int) -> None:
        self.sent: list[Message] = []
        self._takes = takes
        self._waiting: list[tuple[int, asyncio.Event]] = []

    async def until(self, count: int) -> None:
        """Wait for so many messages."""
        reached = asyncio.Event()
        self._waiting.append((count, reached))
        await reached.wait()

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        for count, reached in self._waiting:
            if len(self.sent) >= count:
                reached.set()
        if len(self.sent) > self._takes:
            await asyncio.get_running_loop().create_future()

    async def receive(self) -> Message:
        await asyncio.get_running_loop().create_future()
        raise AssertionError("the caller stays")

    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


class Events:
    def __init__(self) -> None:
        self.are_closed = False

    async def endless(self) -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield b"data: {}\n\n"
                await asyncio.sleep(0.01)
        finally:
            self.are_closed = True


async def serve(stream: EventStream, connection: Connection) -> None:
    scope = {"type": "http", "state": {"request_id": "r-1", SHOWN: [NO_STORE]}}
    await stream(scope, connection.receive, connection.send)


async def test_a_caller_that_does_not_read_is_cut() -> None:
    events, connection, ended = Events(), Connection(takes=3), []
    stream = EventStream(events.endless(), {}, on_close=[lambda: ended.append(True)])
    serving = asyncio.create_task(serve(stream, connection))
    await connection.until(4)
    stream.refuse(SessionRevoked("The session was revoked."))
    with pytest.raises(StreamBroken):
        await asyncio.wait_for(serving, REFUSAL_SECONDS + 60)
    assert events.are_closed and ended == [True]
    assert b"session_revoked" in connection.body() and connection.sent[-1].get("more_body") is True


async def test_a_stream_that_is_refused_before_it_begins_sends_the_error_alone() -> None:
    events, connection = Events(), Connection(takes=100)
    stream = EventStream(events.endless(), {})
    stream.refuse(SessionRevoked("The session was revoked."))
    stream.refuse(SessionRevoked("Again."))
    await serve(stream, connection)
    assert connection.body().count(b"data: ") == 1 and b'"message":"The session was revoked."' in connection.body()
    assert connection.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_a_refusal_after_the_end_of_a_stream_adds_nothing() -> None:
    async def one() -> AsyncGenerator[bytes, None]:
        yield b"data: {}\n\n"

    connection = Connection(takes=100)
    stream = EventStream(one(), {})
    serving = asyncio.create_task(serve(stream, connection))
    await connection.until(2)
    stream.refuse(SessionRevoked("The session was revoked."))
    await serving
    assert connection.body() == b"data: {}\n\n" and connection.sent[-1]["more_body"] is False


async def test_the_end_of_the_process_counts_more_than_a_refusal() -> None:
    events, connection = Events(), Connection(takes=100)
    stream = EventStream(events.endless(), {})
    serving = asyncio.create_task(serve(stream, connection))
    await connection.until(2)
    stream.refuse(SessionRevoked("The session was revoked."))
    serving.cancel()
    with pytest.raises(StreamBroken):
        await serving
    assert connection.body().endswith(b"retry: 1000\n\n")


async def test_an_open_stream_keeps_nothing_of_its_head() -> None:
    events, connection = Events(), Connection(takes=100)
    stream = EventStream(events.endless(), {"x-fal-request-id": "a-value-of-the-head"})
    serving = asyncio.create_task(serve(stream, connection))
    await connection.until(2)
    head = dict(connection.sent[0]["headers"])
    assert head[b"x-fal-request-id"] == b"a-value-of-the-head" and b"content-length" not in head
    kept = [vars(value) if hasattr(value, "__dict__") else value for value in vars(stream).values()]
    assert "a-value-of-the-head" not in repr(kept)
    stream.refuse(SessionRevoked("The session was revoked."))
    await serving
