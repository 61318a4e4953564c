"""TLS, and the failures that mean that nothing has left."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator

import httpx
import pytest
import trustme

from proxy.upstream.transport import EngineTransport
from tests.support.servers import free_port
from tests.upstream.transport.calls import ask, call
from tests.upstream.transport.raw_server import (
    Peer,
    answer_each,
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


async def test_a_tls_handshake_without_an_answer_is_a_connect_timeout(transport: EngineTransport) -> None:
    async with raw_server(Peer.until_closed) as server:
        with pytest.raises(httpx.ConnectTimeout):
            await call(transport, ask(server.url.replace("http:", "https:"), connect=0.2))
        await server.see_close()


@contextlib.contextmanager
def full_listener() -> Iterator[str]:
    """A listening socket whose queue is full: connecting to it neither succeeds nor fails."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"


async def test_a_connection_that_does_not_come_about_is_a_connect_timeout(transport: EngineTransport) -> None:
    with full_listener() as url, pytest.raises(httpx.ConnectTimeout):
        await call(transport, ask(url, connect=0.2))


async def test_a_full_pool_is_a_pool_timeout_until_a_call_ends() -> None:
    transport = EngineTransport(max_connections=1)
    async with raw_server(answer_each) as server:
        held = await transport.handle_async_request(ask(server.url))
        with pytest.raises(httpx.PoolTimeout):
            await call(transport, ask(server.url, pool=0.1))
        assert len(server.heads) == 1
        waiting = asyncio.create_task(call(transport, ask(server.url)))
        await settle()
        await held.aclose()
        assert (await waiting).status_code == 200
        await transport.aclose()
