"""The answers of an upstream, and when each part of them arrives."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator

import pytest

from proxy.upstream.transport import EngineTransport
from tests.upstream.transport.calls import KERNEL_BUFFERS, MIB, ask, call, respond, until_it_stops_growing
from tests.upstream.transport.raw_server import (
    ANSWER,
    PATIENCE_SECONDS,
    Peer,
    answer_once_with,
    raw_server,
)

pytestmark = pytest.mark.anyio


async def test_the_answer_comes_raw_with_all_its_headers(transport: EngineTransport) -> None:
    packed = gzip.compress(b'{"output": "a cat"}')
    head = b"HTTP/1.1 202 Taken\r\nX-A: 1\r\nx-a: 2\r\nSet-Cookie: a=b\r\nContent-Encoding: gzip\r\n"
    answer = head + b"content-length: %d\r\n\r\n" % len(packed) + packed
    async with raw_server(answer_once_with(answer)) as server:
        response = await respond(transport, ask(server.url))
        body = b"".join([chunk async for chunk in response.stream])  # type: ignore[union-attr]
        await response.aclose()
    assert response.status_code == 202
    assert response.headers.raw == [
        (b"x-a", b"1, 2"),
        (b"set-cookie", b"a=b"),
        (b"content-encoding", b"gzip"),
        (b"content-length", b"%d" % len(packed)),
    ]
    assert body == packed


async def test_cookies_are_not_kept_and_redirects_not_followed(transport: EngineTransport) -> None:
    redirect = b"HTTP/1.1 307 Go\r\nlocation: /there\r\nset-cookie: a=b; Path=/\r\ncontent-length: 0\r\n\r\n"

    async def behave(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(redirect)

    async with raw_server(behave) as server:
        for _ in range(2):
            assert (await call(transport, ask(server.url))).status_code == 307
    assert len(server.heads) == 2
    assert all(b"cookie" not in head.lower() for head in server.heads)


async def test_each_event_of_a_stream_is_there_as_soon_as_it_was_sent(transport: EngineTransport) -> None:
    seen = asyncio.Event()

    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for number in range(5):
            await peer.send(b"b\r\ndata: %d\r\n\r\n\r\n" % number)
            await asyncio.wait_for(seen.wait(), PATIENCE_SECONDS)  # the next one only after this one was read
            seen.clear()
        await peer.send(b"0\r\n\r\n")

    async with raw_server(behave) as server:
        response = await respond(transport, ask(server.url))
        events = []
        async for chunk in response.aiter_raw():
            events.append(chunk)
            seen.set()
    assert events == [b"data: %d\r\n\r\n" % number for number in range(5)]


async def test_a_slow_reader_holds_the_upstream_back(transport: EngineTransport) -> None:
    sent: list[int] = []

    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (96 * MIB))
        for number in range(96):
            sent.append(number)
            await peer.send(bytes(MIB))
        # The end of its part would cut off what still lies in its buffer.
        await peer.until_closed()

    async with raw_server(behave) as server:
        response = await respond(transport, ask(server.url))
        await until_it_stops_growing(sent)
        assert len(sent) * MIB < KERNEL_BUFFERS
        assert sum([len(chunk) async for chunk in response.aiter_raw()]) == 96 * MIB


async def test_interim_answers_are_skipped(transport: EngineTransport) -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
    async with raw_server(answer_once_with(interim + ANSWER)) as server:
        assert (await call(transport, ask(server.url))).content == b"{}"


async def test_a_body_without_a_length_ends_with_the_connection(transport: EngineTransport) -> None:
    async with raw_server(answer_once_with(b"HTTP/1.0 200 OK\r\n\r\nall of it")) as server:
        response = await call(transport, ask(server.url))
    assert response.content == b"all of it"


async def test_an_early_answer_is_given_while_the_body_is_still_on_its_way(transport: EngineTransport) -> None:
    released = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                yield bytes(1024)
                await asyncio.sleep(0)
        finally:
            released.set()

    async def behave(peer: Peer) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nbig")
        await peer.until_closed()

    async with raw_server(behave) as server:
        response = await call(transport, ask(server.url, "POST", content=endless()))
        assert (response.status_code, response.content) == (413, b"big")
        await server.see_close()  # half a request was sent: that connection can carry no other
        await asyncio.wait_for(released.wait(), PATIENCE_SECONDS)
