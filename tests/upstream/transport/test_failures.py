"""The failures after something may have left, each by its name, and nothing sent twice."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator

import httpx
import pytest

from proxy.upstream.transport import EngineTransport
from tests.upstream.transport.calls import ask, call, megabytes, respond
from tests.upstream.transport.raw_server import (
    ANSWER,
    PATIENCE_SECONDS,
    Peer,
    answer_once_with,
    raw_server,
    settle,
    stay_silent,
)

pytestmark = pytest.mark.anyio


async def test_a_connection_dropped_after_accept_has_a_named_failure(transport: EngineTransport) -> None:
    async def behave(peer: Peer) -> None:
        peer.writer.transport.abort()

    async with raw_server(behave) as server:
        for _ in range(20):  # the close races with the request: both outcomes are right, each by its own name
            with pytest.raises((httpx.ConnectError, httpx.ReadError, httpx.RemoteProtocolError)):
                await call(transport, ask(server.url, "POST", content=b"{}"))
        assert server.connections == 20


BROKEN_ANSWERS = {
    "closed without an answer": b"",
    "closed in the status line": b"HTTP/1.1 2",
    "closed in the headers": b"HTTP/1.1 200 OK\r\ncontent-le",
    "garbage": b"\x16\x03\x01 what is this\r\n\r\n",
    "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n",
    "status of four digits": b"HTTP/1.1 2000 OK\r\n\r\n",
    "header without a name": b"HTTP/1.1 200 OK\r\n: x\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
    "flood of headers": b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 5000 + b"\r\n",
    "endless header": b"HTTP/1.1 200 OK\r\nx: " + b"y" * 300_000,
    "endless reason": b"HTTP/1.1 200 " + b"y" * 300_000,
    "another protocol agreed on": b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
    "body too short": b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab",
    "chunks without an end": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n",
    "closed in a chunk": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab",
    "chunk of garbage length": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\nzz\r\n",
}


@pytest.mark.parametrize("answer", BROKEN_ANSWERS.values(), ids=BROKEN_ANSWERS.keys())
@pytest.mark.parametrize("method", ["GET", "PUT", "POST"])
async def test_a_broken_answer_is_an_error_of_the_remote_and_nothing_is_sent_again(
    transport: EngineTransport, answer: bytes, method: str
) -> None:
    async with raw_server(answer_once_with(answer)) as server:
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            await call(transport, ask(server.url, method))
        await settle()
    assert len(server.heads) == server.connections == 1


@pytest.mark.parametrize(
    "head",
    [b"content-length: 100\r\n\r\nfirst", b"transfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n", b"\r\nfirst"],
    ids=["length", "chunks", "until closed"],
)
async def test_a_reset_in_the_body_is_never_taken_for_its_end(transport: EngineTransport, head: bytes) -> None:
    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n" + head)
        await asyncio.wait_for(first_was_read.wait(), PATIENCE_SECONDS)
        # Closing a socket that lingers for no time sends a reset.
        peer.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.writer.transport.abort()

    first_was_read = asyncio.Event()
    async with raw_server(behave) as server:
        response = await respond(transport, ask(server.url))
        chunks = response.aiter_raw()
        assert await anext(chunks) == b"first"
        first_was_read.set()
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            await anext(chunks)
        await response.aclose()


async def test_a_body_longer_than_announced_does_not_reach_the_next_answer(transport: EngineTransport) -> None:
    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(ANSWER + b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison")
        await peer.until_closed()

    async with raw_server(behave) as server:
        for _ in range(3):
            with contextlib.suppress(httpx.RemoteProtocolError):
                assert (await call(transport, ask(server.url))).content == b"{}"
        await server.see_close()
    assert server.connections == 3


async def test_bytes_that_a_server_sends_unasked_are_not_the_next_answer(transport: EngineTransport) -> None:
    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(ANSWER)
        if peer.server.connections == 1:
            await asyncio.wait_for(idle.wait(), PATIENCE_SECONDS)
            await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison")
            spoken.set()
            assert await peer.until_closed() == b""

    idle, spoken = asyncio.Event(), asyncio.Event()
    async with raw_server(behave) as server:
        await call(transport, ask(server.url))
        idle.set()
        await spoken.wait()
        await settle()
        assert (await call(transport, ask(server.url))).content == b"{}"
    assert server.connections == 2


async def test_silence_before_the_answer_is_a_read_timeout(transport: EngineTransport) -> None:
    async with raw_server(stay_silent) as server:
        with pytest.raises(httpx.ReadTimeout):
            await call(transport, ask(server.url, "PUT", read=0.2))
        await server.see_close()
    assert len(server.heads) == 1


async def test_silence_in_the_headers_is_a_read_timeout(transport: EngineTransport) -> None:
    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-")
        await peer.until_closed()

    async with raw_server(behave) as server:
        with pytest.raises(httpx.ReadTimeout):
            await call(transport, ask(server.url, read=0.2))
        await server.see_close()


@pytest.mark.slow
async def test_silence_in_the_body_is_a_read_timeout_after_the_received_bytes(transport: EngineTransport) -> None:
    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(ANSWER[:-1])
        await peer.until_closed()

    async with raw_server(behave) as server:
        response = await respond(transport, ask(server.url, read=3))
        chunks = response.aiter_raw()
        assert await anext(chunks) == b"{"
        with pytest.raises(httpx.ReadTimeout):
            await anext(chunks)
        await server.see_close()
        await response.aclose()


@pytest.mark.slow
async def test_a_long_stream_is_not_cut_while_it_speaks(transport: EngineTransport) -> None:
    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(8):
            await asyncio.sleep(0.5)
            await peer.send(b"1\r\n.\r\n")
        await peer.send(b"0\r\n\r\n")

    async with raw_server(behave) as server:
        response = await call(transport, ask(server.url, read=3))
    assert response.content == b"........"


async def test_an_upstream_that_does_not_read_is_a_write_timeout(transport: EngineTransport) -> None:
    async def behave(peer: Peer) -> None:
        await peer.head()
        await asyncio.wait_for(over.wait(), PATIENCE_SECONDS)

    over = asyncio.Event()
    async with raw_server(behave) as server:
        with pytest.raises(httpx.WriteTimeout):
            await call(transport, ask(server.url, "POST", content=megabytes(96), write=0.2))
        over.set()


@pytest.mark.slow
async def test_an_upload_slower_than_the_read_timeout_is_not_cut(transport: EngineTransport) -> None:
    async def slow() -> AsyncIterator[bytes]:
        for _ in range(4):
            await asyncio.sleep(1)
            yield b"x"

    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(ANSWER)

    async with raw_server(behave) as server:
        request = ask(server.url, "PUT", headers={"content-length": "4"}, content=slow(), read=3, write=3)
        assert (await call(transport, request)).status_code == 200


@pytest.mark.parametrize("how", ["abort", "close"])
async def test_dropped_in_the_request_body_is_not_a_connect_error(transport: EngineTransport, how: str) -> None:
    async def behave(peer: Peer) -> None:
        await peer.head()
        await peer.reader.readexactly(1000)
        getattr(peer.writer.transport, how)()

    async with raw_server(behave) as server:
        with pytest.raises((httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError)):
            await call(transport, ask(server.url, "PUT", content=megabytes(96)))
    assert server.connections == 1


async def test_a_failure_of_the_callers_stream_is_the_callers(transport: EngineTransport) -> None:
    class CallerLeft(OSError):
        pass

    async def failing() -> AsyncIterator[bytes]:
        yield b"half"
        raise CallerLeft

    rest = []

    async def behave(peer: Peer) -> None:
        await peer.head()
        rest.append(await peer.until_closed())

    async with raw_server(behave) as server:
        with pytest.raises(CallerLeft):
            await call(transport, ask(server.url, "PUT", headers={"content-length": "8"}, content=failing()))
        await server.see_close()
    assert rest == [b"half"]  # the upstream sees that the body is not whole
