"""A request that leaves in pieces or whole, its reply read whole or streamed, and all that can be seen from outside."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx

from proxy.upstream.client import host_of
from proxy.upstream.engine import WHOLE_BYTES, Engine, Reply, Request, StreamedReply, read_reply, to_httpx
from proxy.upstream.transport import EngineTransport
from tests.upstream.transport.raw_server import (
    PATIENCE_SECONDS,
    Behaviour,
    Peer,
    raw_server,
    settle,
)

OK, CHUNKED = b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
#: To read the certificates of the machine takes longer than a test.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def with_length(body: bytes, headers: bytes = b"") -> bytes:
    return OK + headers + b"content-length: %d\r\n\r\n" % len(body) + body


class ShortWay(EngineTransport):
    """Fails on the plain way, so that every reply has come by the short one."""

    async def send(self, request: httpx.Request) -> StreamedReply:
        raise AssertionError("the plain way was taken")


async def fetch_plainly(transport: EngineTransport, request: Request) -> Reply:
    """Fetch over httpx's objects."""
    return await read_reply(await Engine.open(transport, request), WHOLE_BYTES)


async def fetch_in_pieces(transport: EngineTransport, request: Request) -> Reply:
    """Fetch with a body that comes and leaves in pieces."""
    sent = to_httpx(request)
    sent.stream = _InPieces(request.body)
    return await read_reply(await transport.send(sent), WHOLE_BYTES)


class _InPieces(httpx.AsyncByteStream):
    """A body, byte by byte."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for place in range(len(self._body)):
            yield self._body[place : place + 1]


async def fetch_streamed(transport: EngineTransport, request: Request) -> Reply:
    """Fetch as a stream, which is read to its end."""
    return await read_reply(await transport.open(request), WHOLE_BYTES)


Fetch = Callable[[EngineTransport, Request], Awaitable[Reply]]
Way = tuple[type[EngineTransport], Fetch]
#: The same request over httpx's objects, also in pieces, and without them.
PLAIN: Way = (EngineTransport, fetch_plainly)
IN_PIECES: Way = (EngineTransport, fetch_in_pieces)
SHORT: Way = (ShortWay, EngineTransport.fetch)
STREAMED: Way = (ShortWay, fetch_streamed)
SHORT_WAYS = {"short": SHORT, "streamed": STREAMED}
WAYS = {"plain": PLAIN, "in pieces": IN_PIECES, **SHORT_WAYS}


def a_request(url: str, method: str = "POST", body: bytes = b"{}", **timeouts: float | None) -> Request:
    host = host_of(url)
    headers = {"host": host.netloc, "authorization": "Key a:b"}
    if method == "GET":
        body = b""
    else:
        headers["content-length"] = str(len(body))
    patient = dict.fromkeys(("pool", "connect", "read", "write"), float(PATIENCE_SECONDS))
    return Request(method, host, "/fal-ai/x?logs=1", headers, body, {**patient, **timeouts})


async def outcome_of(reply: Awaitable[Reply]) -> Any:
    """What a caller sees of a reply, or of a failure."""
    try:
        status, headers, body, error = await reply
    except Exception as problem:
        return type(problem), str(problem)
    # Of a reply that broke off, one way may have a piece more than the other.
    return status, list(headers.items()), body if error is None else None, type(error), str(error)


async def outcomes(way: Way, behave: Behaviour, *requests: dict[str, Any]) -> tuple[list[Any], list[bytes], int]:
    """Fetch one after another; the outcomes, the heads that the upstream received, and how many connections."""
    engine, fetch = way
    transport = engine(ssl_context=NO_TLS)
    async with raw_server(behave) as server:
        seen = []
        for options in requests:
            seen.append(await outcome_of(fetch(transport, a_request(server.url, **options))))
            await settle()
        await transport.aclose()
        # The port is another one each time.
        return seen, [head.replace(server.url[7:].encode(), b"") for head in server.heads], server.connections


async def assert_same(behave: Behaviour, *requests: dict[str, Any]) -> list[Any]:
    plain = await outcomes(PLAIN, behave, *requests)
    short = await outcomes(SHORT, behave, *requests)
    assert short == plain
    assert await outcomes(STREAMED, behave, *requests) == plain
    return short[0]


def send(reply: bytes, *, then: str, in_pieces: bool) -> Behaviour:
    """Behave: answer each request with these bytes, and close the connection then, reset it, or keep it open."""

    async def behave(peer: Peer) -> None:
        while True:
            await peer.request()
            for start in range(0, len(reply), 7) if in_pieces else ():
                await peer.send(reply[start : start + 7])
                await asyncio.sleep(0)
            if not in_pieces:
                await peer.send(reply)
            if then == "closes":
                peer.writer.close()
                return await peer.writer.wait_closed()
            if then == "resets":
                await peer.writer.drain()
                reset(peer)

    return behave


def reset(peer: Peer) -> None:
    # Closing a socket that lingers for no time sends a reset.
    peer.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.writer.transport.abort()
