"""What each engine does where it matters more than speed: `python -m tests.bench.engine_behaviour`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import httpx
import uvloop

from tests.bench.engines import engines
from tests.upstream.transport.raw_server import ANSWER, Peer, RawServer, answer_each, raw_server

Transport = httpx.AsyncBaseTransport
PATIENT = {"pool": 5.0, "connect": 5.0, "write": 5.0, "read": 5.0}
LIVE_SECONDS, SILENCE_SECONDS = 0.8, 0.3


async def outcome(transport: Transport, request: httpx.Request) -> str:
    """The answer's body, or the name of what was raised."""
    try:
        response = await transport.handle_async_request(request)
        body = b"".join([chunk async for chunk in response.stream])  # type: ignore[union-attr]
        await response.aclose()
        return body.decode()
    except Exception as error:
        return type(error).__name__


def request(server: RawServer, method: str = "POST", **timeouts: float) -> httpx.Request:
    return httpx.Request(method, server.url, content=b"{}", extensions={"timeout": PATIENT | timeouts})


async def on_the_wire(transport: Transport) -> str:
    """The request line and headers of a DELETE with an encoded path and three headers of its own."""
    async with raw_server(answer_each) as server:
        asked = httpx.Request("DELETE", server.url, headers=[("x-b", "1"), ("X-A", "2"), ("x-b", "3")])
        asked.url = httpx.URL(server.url).copy_with(raw_path=b"/a%2Fb/%2e%2e/x")
        asked.extensions = {"timeout": PATIENT}
        await outcome(transport, asked)
        lines = server.heads[0].decode().strip().split("\r\n")
        return " | ".join(line for line in lines if not line.lower().startswith("host:"))


async def connection_dies_at_reuse(transport: Transport) -> str:
    """How often the server gets the second of two PUTs, if it closes the reused connection upon it."""

    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(ANSWER)
        await peer.request()

    async with raw_server(behave) as server:
        await outcome(transport, request(server, "PUT"))
        second = await outcome(transport, request(server, "PUT"))
        return f"{len(server.heads) - 1} time(s), {second}"


async def dropped_after_the_request(transport: Transport) -> str:
    """What is raised when the server has read the request and closes."""
    async with raw_server(Peer.request) as server:
        return await outcome(transport, request(server))


async def live_stream_beyond_the_read_timeout(transport: Transport) -> str:
    """A stream that speaks all the time, longer than all timeouts together."""

    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(8):
            await asyncio.sleep(LIVE_SECONDS / 8)
            await peer.send(b"1\r\n.\r\n")
        await peer.send(b"0\r\n\r\n")

    async with raw_server(behave) as server:
        return await outcome(transport, request(server, read=SILENCE_SECONDS, pool=0.1, connect=0.1, write=0.1))


async def answer_that_nobody_asked_for(transport: Transport) -> str:
    """What the next caller gets when a server has sent an answer unasked on the idle connection."""
    idle, spoken = asyncio.Event(), asyncio.Event()

    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(ANSWER)
        if peer.server.connections == 1:
            await idle.wait()
            await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nsomebody's")
            spoken.set()
        await peer.until_closed()

    async with raw_server(behave) as server:
        await outcome(transport, request(server))
        idle.set()
        await spoken.wait()
        await asyncio.sleep(0.1)
        return await outcome(transport, request(server))


PROBES: tuple[Callable[[Transport], Awaitable[str]], ...] = (
    on_the_wire,
    connection_dies_at_reuse,
    dropped_after_the_request,
    live_stream_beyond_the_read_timeout,
    answer_that_nobody_asked_for,
)


async def main() -> None:
    for probe in PROBES:
        print(f"{probe.__name__.replace('_', ' ')}: {probe.__doc__}")
        for name, make in engines().items():
            transport = make()
            print(f"  {name:30} {await probe(transport)}")
            await transport.aclose()


if __name__ == "__main__":
    uvloop.run(main())
