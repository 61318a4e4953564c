"""Replies whose body comes in pieces by the engine's short way: when each is there, and what ends the stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from proxy.upstream.engine import StreamedReply
from proxy.upstream.transport import EngineTransport
from tests.upstream.transport.both_ways import CHUNKED, NO_TLS, OK, ShortWay, a_request
from tests.upstream.transport.calls import KERNEL_BUFFERS, MIB, until_it_stops_growing
from tests.upstream.transport.raw_server import (
    ANSWER,
    PATIENCE_SECONDS,
    Peer,
    answer_each,
    raw_server,
    settle,
)

pytestmark = pytest.mark.anyio

SILENCE_SECONDS = 0.2


@pytest.fixture
async def transport() -> AsyncIterator[EngineTransport]:
    transport = ShortWay(ssl_context=NO_TLS)
    yield transport
    await transport.aclose()


async def read_all(reply: StreamedReply) -> bytearray:
    body = bytearray()
    while piece := await reply.body.read():
        body += piece
    return body


async def speak_once(peer: Peer) -> None:
    """Behave: the first bytes of a stream, and nothing more."""
    await peer.request()
    await peer.send(CHUNKED + b"5\r\nhello\r\n")
    await peer.until_closed()


async def test_each_piece_is_there_as_soon_as_it_was_sent(transport: EngineTransport) -> None:
    seen = asyncio.Event()

    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK + b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for number in range(5):
            await peer.send(b"b\r\ndata: %d\r\n\r\n\r\n" % number)
            await asyncio.wait_for(seen.wait(), PATIENCE_SECONDS)
            seen.clear()
        await peer.send(b"0\r\n\r\n")
        await peer.request()
        await peer.send(ANSWER)

    async with raw_server(behave) as server:
        reply = await transport.open(a_request(server.url, "GET"))
        assert reply.status_code == 200 and reply.headers[b"content-type"] == b"text/event-stream"
        pieces = []
        while piece := await reply.body.read():
            pieces.append(piece)
            seen.set()
        assert pieces == [b"data: %d\r\n\r\n" % number for number in range(5)]
        # The connection serves again, though the stream was not closed.
        assert (await transport.fetch(a_request(server.url))).body == b"{}"
        assert server.connections == 1
        await reply.aclose()
        assert await reply.body.read() == b""


async def test_a_slow_reader_holds_the_upstream_back_and_is_not_its_silence(transport: EngineTransport) -> None:
    sent: list[int] = []

    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK + b"content-length: %d\r\n\r\n" % (96 * MIB))
        for number in range(96):
            sent.append(number)
            await peer.send(bytes(MIB))
        await peer.request()
        await peer.send(ANSWER)

    async with raw_server(behave) as server:
        reply = await transport.open(a_request(server.url, read=SILENCE_SECONDS))
        await until_it_stops_growing(sent)
        await asyncio.sleep(2 * SILENCE_SECONDS)
        assert len(sent) * MIB < KERNEL_BUFFERS
        assert len(await read_all(reply)) == 96 * MIB
        assert (await transport.fetch(a_request(server.url))).body == b"{}"
        assert server.connections == 1


async def test_silence_after_a_slow_reader_has_caught_up_is_a_read_timeout(transport: EngineTransport) -> None:
    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK + b"content-length: %d\r\n\r\n" % (2 * MIB))
        await peer.send(bytes(MIB))
        await peer.until_closed()

    async with raw_server(behave) as server:
        reply = await transport.open(a_request(server.url, read=SILENCE_SECONDS))
        await asyncio.sleep(2 * SILENCE_SECONDS)
        with pytest.raises(httpx.ReadTimeout):
            await asyncio.wait_for(read_all(reply), PATIENCE_SECONDS)
        await server.see_close()


async def test_what_has_arrived_is_read_before_the_failure(transport: EngineTransport) -> None:
    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED + b"5\r\nhello\r\n")
        peer.writer.close()

    async with raw_server(behave) as server:
        reply = await transport.open(a_request(server.url))
        await settle()
        assert await reply.body.read() == b"hello"
        with pytest.raises(httpx.RemoteProtocolError):
            await reply.body.read()
        with pytest.raises(httpx.ReadError):
            await reply.body.read()


@pytest.mark.parametrize("how", ["closed", "cancelled"])
async def test_leaving_a_stream_closes_its_connection_and_frees_its_place(how: str) -> None:
    transport = ShortWay(max_connections=1, ssl_context=NO_TLS)
    async with raw_server(speak_once) as server:
        reply = await transport.open(a_request(server.url, read=None))
        assert await reply.body.read() == b"hello"
        reading = asyncio.create_task(reply.body.read())
        await settle()
        with pytest.raises(httpx.PoolTimeout):
            await transport.fetch(a_request(server.url, pool=SILENCE_SECONDS))
        if how == "closed":
            await reply.aclose()
            with pytest.raises(httpx.ReadError):
                await asyncio.wait_for(reading, PATIENCE_SECONDS)
        else:
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
        await server.see_close()
        await (await transport.open(a_request(server.url))).aclose()
        await reply.aclose()
        await transport.aclose()


async def test_a_call_that_is_cancelled_as_its_head_arrives_frees_its_place() -> None:
    transport = ShortWay(max_connections=1, ssl_context=NO_TLS)
    async with raw_server(speak_once) as server:
        for turns in range(30):
            calling = asyncio.create_task(transport.open(a_request(server.url)))
            for _ in range(turns):
                await asyncio.sleep(0)
            calling.cancel()
            (found,) = await asyncio.gather(calling, return_exceptions=True)
            if isinstance(found, StreamedReply):
                await found.aclose()
        assert await (await transport.open(a_request(server.url))).body.read() == b"hello"
        await transport.aclose()


async def test_a_reply_that_is_here_but_not_read_keeps_its_connection(transport: EngineTransport) -> None:
    async with raw_server(answer_each) as server:
        for _ in range(3):
            reply = await transport.open(a_request(server.url))
            await settle()
            await reply.aclose()
        assert server.connections == 1


async def test_closing_the_transport_ends_streams(transport: EngineTransport) -> None:
    async with raw_server(speak_once) as server:
        reply = await transport.open(a_request(server.url, read=None))
        assert await reply.body.read() == b"hello"
        reading = asyncio.create_task(reply.body.read())
        await settle()
        await transport.aclose()
        with pytest.raises(httpx.ReadError):
            await asyncio.wait_for(reading, PATIENCE_SECONDS)
        await server.see_close()
        with pytest.raises(RuntimeError):
            await transport.open(a_request(server.url))


@pytest.mark.parametrize("behind", [b"H", b"garbage", ANSWER])
async def test_bytes_behind_a_stream_do_not_reach_the_next_reply(transport: EngineTransport, behind: bytes) -> None:
    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED + b"5\r\nhello\r\n0\r\n\r\n" + behind)
        await peer.until_closed()

    async with raw_server(behave) as server:
        for _ in range(3):
            assert await read_all(await transport.open(a_request(server.url))) == b"hello"
        assert server.connections == 3
