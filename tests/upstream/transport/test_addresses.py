"""The addresses of a host: looked up once, spread over, judged, and tried one after another."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import trustme

from proxy.upstream.connector import DNS_SECONDS
from proxy.upstream.transport import EngineTransport
from tests.support.servers import free_port
from tests.upstream.transport.both_ways import NO_TLS
from tests.upstream.transport.calls import ask, call
from tests.upstream.transport.raw_server import ANSWER, full_listener, settle

HOST = "fal.test"
HERE, THERE = "127.0.0.1", "127.0.0.2"


class NamingLoop(asyncio.SelectorEventLoop):
    """An event loop with names and a clock of its own.

    Attributes:
        addresses: of `HOST`, in the order in which they are found.
        lookups: how often they were asked for.
        known: they are found once this is set.
        ahead: seconds by which the clock is ahead.
    """

    def __init__(self) -> None:
        super().__init__()
        self.addresses = [HERE, THERE]
        self.lookups = 0
        self.known = asyncio.Event()
        self.known.set()
        self.ahead = 0.0

    def time(self) -> float:
        return super().time() + self.ahead

    async def getaddrinfo(self, host: Any, port: Any, **options: Any) -> Any:
        assert host == HOST
        self.lookups += 1
        await self.known.wait()
        if not self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in self.addresses]


@pytest.fixture
def naming() -> NamingLoop:
    return NamingLoop()


def run(loop: NamingLoop, work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(work)


@asynccontextmanager
async def servers(
    port: int, *addresses: str, tls: Callable[[str], ssl.SSLContext | None] = lambda _: None
) -> AsyncIterator[list[str]]:
    """Servers at these addresses, which answer each call; the addresses that were called, in order."""
    called: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            called.append(writer.get_extra_info("sockname")[0])
            writer.write(ANSWER.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    listening = [await asyncio.start_server(answer, address, port, ssl=tls(address)) for address in addresses]
    try:
        yield called
    finally:
        for server in listening:
            server.close()
            await server.wait_closed()
        await settle()


def test_callers_at_once_share_a_lookup_which_counts_for_a_while(naming: NamingLoop) -> None:
    async def work() -> None:
        transport, port = EngineTransport(ssl_context=NO_TLS), free_port()
        async with servers(port, HERE, THERE) as called:
            url = f"http://{HOST}:{port}/"
            naming.known.clear()
            calls = [asyncio.create_task(call(transport, ask(url))) for _ in range(4)]
            await settle()
            naming.known.set()
            await asyncio.gather(*calls)
            assert naming.lookups == 1 and sorted(called) == [HERE, HERE, THERE, THERE]
            naming.ahead += DNS_SECONDS - 5
            await call(transport, ask(url))
            assert naming.lookups == 1
            naming.ahead += 6
            naming.addresses = [THERE]
            await call(transport, ask(url))
            assert naming.lookups == 2 and called[-1] == THERE
        await transport.aclose()

    run(naming, work())


def test_a_lookup_that_fails_is_a_connect_error_and_not_kept(naming: NamingLoop) -> None:
    async def work() -> None:
        transport, port = EngineTransport(ssl_context=NO_TLS), free_port()
        async with servers(port, HERE):
            naming.addresses = []
            with pytest.raises(httpx.ConnectError, match="not known"):
                await call(transport, ask(f"http://{HOST}:{port}/"))
            naming.addresses = [HERE]
            assert (await call(transport, ask(f"http://{HOST}:{port}/"))).status_code == 200
        await transport.aclose()

    run(naming, work())


def test_a_lookup_that_takes_too_long_is_a_connect_timeout(naming: NamingLoop) -> None:
    async def work() -> None:
        transport = EngineTransport(ssl_context=NO_TLS)
        naming.known.clear()
        with pytest.raises(httpx.ConnectTimeout):
            await call(transport, ask(f"http://{HOST}/", connect=0.05))
        await transport.aclose()

    run(naming, work())


def test_an_address_that_refuses_is_passed_over(naming: NamingLoop) -> None:
    async def work() -> None:
        transport, port = EngineTransport(ssl_context=NO_TLS), free_port()
        async with servers(port, THERE) as called:
            for _ in range(3):
                await call(transport, ask(f"http://{HOST}:{port}/"))
            assert called == [THERE] * 3
        await transport.aclose()

    run(naming, work())


def test_beside_an_address_that_is_silent_the_next_is_tried(naming: NamingLoop) -> None:
    async def work() -> None:
        transport, port = EngineTransport(ssl_context=NO_TLS), free_port()
        async with servers(port, THERE) as called:
            with full_listener(HERE, port):
                for _ in range(2):
                    await call(transport, ask(f"http://{HOST}:{port}/"))
            assert called == [THERE] * 2
        await transport.aclose()

    run(naming, work())


def test_beside_a_server_whose_certificate_is_not_good_another_is_used(naming: NamingLoop) -> None:
    authority = trustme.CA()
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)

    def certify(address: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(HOST if address == THERE else "another.test").configure_cert(context)
        return context

    async def work() -> None:
        transport, port = EngineTransport(ssl_context=trusting), free_port()
        async with servers(port, HERE, THERE, tls=certify) as called:
            for _ in range(2):
                await call(transport, ask(f"https://{HOST}:{port}/"))
            assert called == [THERE] * 2
            naming.addresses, naming.ahead = [HERE], DNS_SECONDS + 1
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                await call(transport, ask(f"https://{HOST}:{port}/"))
        await transport.aclose()

    run(naming, work())


def test_no_address_is_connected_to_if_one_is_refused(naming: NamingLoop) -> None:
    def check(address: str) -> None:
        if address == THERE:
            raise ValueError("not there")

    async def work() -> None:
        transport, port = EngineTransport(ssl_context=NO_TLS, check_address=check), free_port()
        async with servers(port, HERE, THERE) as called:
            for _ in range(2):
                with pytest.raises(ValueError, match="not there"):
                    await call(transport, ask(f"http://{HOST}:{port}/"))
            assert called == []
        await transport.aclose()

    run(naming, work())
