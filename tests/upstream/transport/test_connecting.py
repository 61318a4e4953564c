"""TLS, and the failures that mean that nothing has left."""

from __future__ import annotations

import asyncio
import os
import ssl

import httpx
import pytest
import trustme

from proxy.upstream.transport import EngineTransport
from tests.support.servers import free_port
from tests.support.waiting import wait_until_async
from tests.upstream.transport.both_ways import NO_TLS
from tests.upstream.transport.calls import ask, call, respond
from tests.upstream.transport.raw_server import (
    PATIENCE_SECONDS,
    Peer,
    answer_each,
    full_listener,
    raw_server,
    settle,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context


async def test_tls_is_verified_and_works(authority: trustme.CA, server_tls: ssl.SSLContext) -> None:
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    trusted, by_default = EngineTransport(ssl_context=trusting), EngineTransport()
    async with raw_server(answer_each, tls=server_tls) as server:
        for _ in range(2):
            assert (await call(trusted, ask(server.url))).content == b"{}"
        assert server.connections == 1
        with pytest.raises(httpx.ConnectError):  # a valid certificate, for another name
            await call(trusted, ask(server.url.replace("localhost", "127.0.0.1")))
        with pytest.raises(httpx.ConnectError):  # a certificate of an unknown authority
            await call(by_default, ask(server.url))
        await trusted.aclose()
        await by_default.aclose()
    assert len(server.heads) == 2


async def test_refused_is_a_connect_error(transport: EngineTransport) -> None:
    with pytest.raises(httpx.ConnectError):
        await call(transport, ask(f"http://127.0.0.1:{free_port()}/", "POST", content=b"{}"))


async def test_an_unknown_host_is_a_connect_error(transport: EngineTransport) -> None:
    with pytest.raises(httpx.ConnectError):
        await call(transport, ask("http://no-such-host.invalid/"))


async def test_a_tls_handshake_broken_off_is_a_connect_error(transport: EngineTransport) -> None:
    async def behave(peer: Peer) -> None:
        await peer.reader.read(1)

    async with raw_server(behave) as server:
        with pytest.raises(httpx.ConnectError):
            await call(transport, ask(server.url.replace("http:", "https:")))


@pytest.mark.slow
async def test_a_tls_handshake_without_an_answer_is_a_connect_timeout(transport: EngineTransport) -> None:
    async with raw_server(Peer.until_closed) as server:
        with pytest.raises(httpx.ConnectTimeout):
            await call(transport, ask(server.url.replace("http:", "https:"), connect=2))
        await server.see_close()


async def test_a_connection_that_does_not_come_about_is_a_connect_timeout(transport: EngineTransport) -> None:
    with full_listener() as url, pytest.raises(httpx.ConnectTimeout):
        await call(transport, ask(url, connect=0.2))


async def test_a_call_that_is_cancelled_while_it_connects_leaves_no_socket(transport: EngineTransport) -> None:
    with full_listener() as url:
        await cancel_while_connecting(transport, url)


async def test_a_call_that_is_cancelled_in_the_handshake_leaves_no_socket(transport: EngineTransport) -> None:
    accepted = asyncio.Event()

    async def behave(peer: Peer) -> None:
        await peer.reader.read(1)
        accepted.set()
        await peer.until_closed()

    async with raw_server(behave) as server:
        await cancel_while_connecting(transport, server.url.replace("http:", "https:"), accepted)
        await server.see_close()


async def cancel_while_connecting(transport: EngineTransport, url: str, until: asyncio.Event | None = None) -> None:
    files = len(os.listdir("/proc/self/fd"))
    calling = asyncio.create_task(call(transport, ask(url)))
    await settle()
    if until is not None:
        await asyncio.wait_for(until.wait(), PATIENCE_SECONDS)
    else:
        # The name is looked up in a thread.
        await wait_until_async(lambda: len(os.listdir("/proc/self/fd")) > files, seconds=PATIENCE_SECONDS)
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    # The server's side of an accepted connection ends a moment later.
    await wait_until_async(lambda: len(os.listdir("/proc/self/fd")) <= files, seconds=PATIENCE_SECONDS)


async def test_a_connection_that_comes_about_when_the_transport_is_closed_is_not_used() -> None:
    transport = EngineTransport(ssl_context=NO_TLS)
    async with raw_server(answer_each) as server:
        calling = asyncio.create_task(call(transport, ask(server.url)))
        await asyncio.sleep(0)
        await transport.aclose()
        with pytest.raises(httpx.ConnectError):
            await calling
        assert server.heads == []


async def test_a_full_pool_is_a_pool_timeout_until_a_call_ends() -> None:
    transport = EngineTransport(max_connections=1)
    async with raw_server(answer_each) as server:
        held = await respond(transport, ask(server.url))
        with pytest.raises(httpx.PoolTimeout):
            await call(transport, ask(server.url, pool=0.1))
        assert len(server.heads) == 1
        waiting = asyncio.create_task(call(transport, ask(server.url)))
        await settle()
        await held.aclose()
        assert (await waiting).status_code == 200
        await transport.aclose()
