"""Idle connections: which are used, which are closed, and what is sent again when the upstream closed one first."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

import httpx
import pytest

from proxy.upstream.transport import EngineTransport
from tests.upstream.transport.calls import ask, call, respond
from tests.upstream.transport.closing_server import ClosingServer, closing_server
from tests.upstream.transport.raw_server import ANSWER, Peer, answer_each, raw_server

pytestmark = pytest.mark.anyio

CALLS, CALLERS = 5000, 20


@dataclass
class Failures:
    unsent: list[bytes] = field(default_factory=list)
    in_doubt: list[bytes] = field(default_factory=list)


async def call_often(send: Callable[[str, bytes], Awaitable[object]], server: ClosingServer, calls: int) -> Failures:
    """Call on, many callers at once and each with pauses, and give the failures: of the proven kind, and of others."""
    numbers = iter(range(calls))
    failures = Failures()

    async def call_on() -> None:
        for number in numbers:
            body = b"%d." % number
            try:
                await send(server.url, body)
            except httpx.ConnectError:
                failures.unsent.append(body)
            except httpx.TransportError:
                failures.in_doubt.append(body)
            await asyncio.sleep(random.uniform(0, 0.008))

    await asyncio.gather(*(call_on() for _ in range(CALLERS)))
    return failures


async def post(transport: EngineTransport, url: str, body: bytes, *, streamed: bool = False) -> None:
    content = later(body) if streamed else body
    await call(transport, ask(url, "POST", headers={"content-length": str(len(body))}, content=content))


async def later(body: bytes) -> AsyncIterator[bytes]:
    """A body that cannot be read twice, and comes after the head has left."""
    await asyncio.sleep(0.005)
    yield body


async def test_no_call_is_lost_or_doubled_on_connections_that_are_being_closed(transport: EngineTransport) -> None:
    """A call on a closing connection is sent again if nothing of it had arrived, and only then."""
    with closing_server() as server:
        failures = await call_often(partial(post, transport), server, CALLS)
    assert server.closed > 50 and max(server.bodies.values()) == 1 and not failures.unsent
    # Only these are in doubt: they had arrived when the upstream closed, and it may or may not have read them.
    assert len(failures.in_doubt) <= server.raced
    assert len(server.bodies) >= CALLS - server.raced


async def test_a_body_that_cannot_be_sent_again_fails_as_not_sent(transport: EngineTransport) -> None:
    with closing_server() as server:
        failures = await call_often(partial(post, transport, streamed=True), server, CALLS // 5)
    assert failures.unsent and max(server.bodies.values()) == 1
    assert not server.bodies.keys() & set(failures.unsent)


async def test_a_request_that_arrived_before_the_close_is_not_sent_again(transport: EngineTransport) -> None:
    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(ANSWER)
        await peer.request()
        peer.writer.close()

    async with raw_server(behave) as server:
        await call(transport, ask(server.url, "POST", content=b"{}"))
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            await call(transport, ask(server.url, "POST", content=b"{}"))
    assert server.connections == 1 and len(server.heads) == 2


async def test_the_freshest_connection_is_used(transport: EngineTransport) -> None:
    used: list[int] = []

    async def behave(peer: Peer) -> None:
        number = peer.server.connections
        while True:
            await peer.request()
            used.append(number)
            if len(peer.server.heads) < 4:
                all_arrived.set() if len(peer.server.heads) == 3 else await all_arrived.wait()
            await peer.send(ANSWER)

    all_arrived = asyncio.Event()
    async with raw_server(behave) as server:
        held = await asyncio.gather(*(respond(transport, ask(server.url)) for _ in range(3)))
        for response in held:
            await response.aread()
        last = used[-1]
        used.clear()
        for _ in range(5):
            await call(transport, ask(server.url))
    assert len(set(used)) == 1 and server.connections == 3 and last in (1, 2, 3)


async def test_an_old_connection_is_closed_after_its_request(certificates: ssl.SSLContext) -> None:
    transport = EngineTransport(ssl_context=certificates, max_age_seconds=0.05)
    async with raw_server(answer_each) as server:
        response = await respond(transport, ask(server.url))
        await asyncio.sleep(0.06)  # the age is the loop's own time
        await response.aread()
        await server.see_close()
        await call(transport, ask(server.url))
    assert server.connections == 2
    await transport.aclose()


async def test_an_old_connection_is_closed_while_idle(certificates: ssl.SSLContext) -> None:
    transport = EngineTransport(ssl_context=certificates, max_age_seconds=0.05)
    async with raw_server(answer_each) as server:
        await call(transport, ask(server.url))
        await server.see_close()
    await transport.aclose()
