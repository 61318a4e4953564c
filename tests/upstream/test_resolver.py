"""Names that strangers choose are looked up apart from those of fal and the stores."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from proxy.outbound import OutboundClient
from proxy.upstream.resolver import MOST_THREADS, Resolver
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.anyio


class SilentServers:
    """The name servers of `*.silent.example`, which say nothing until `speak`; the system looks up other names."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._speak = threading.Event()

    def look_up(self, host: str, *place: Any, **options: Any) -> Any:
        if host.endswith(".silent.example"):
            self.asked.append(host)
            self._speak.wait()
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return socket.getaddrinfo(host, *place, **options)

    def speak(self) -> None:
        self._speak.set()


@pytest.fixture
def servers() -> Iterator[SilentServers]:
    servers = SilentServers()
    yield servers
    servers.speak()


async def ask(client: OutboundClient, host: str) -> None:
    with suppress(OSError):
        await client.request("POST", f"https://{host}/hooks", {}, b"{}", most_bytes=0)


async def test_names_that_are_never_answered_hold_up_no_lookup_of_others(servers: SilentServers) -> None:
    client = OutboundClient((), "PROXY_ALERTS_NETWORKS", None, 600, resolver=Resolver(servers.look_up))
    # More than there are threads of the event loop, and of the client.
    asking = [asyncio.create_task(ask(client, f"{number}.silent.example")) for number in range(3 * MOST_THREADS)]
    await wait_until_async(lambda: len(servers.asked) == MOST_THREADS, "the names were not looked up")
    async with asyncio.timeout(120):
        assert await asyncio.get_running_loop().getaddrinfo("localhost", 80, type=socket.SOCK_STREAM)
    assert len(servers.asked) == MOST_THREADS
    servers.speak()
    await asyncio.gather(*asking)
    assert len(servers.asked) == len(set(servers.asked)) == 3 * MOST_THREADS


async def test_a_caller_who_gives_up_leaves_its_thread_until_the_answer(servers: SilentServers) -> None:
    resolver = Resolver(servers.look_up, most=1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await resolver.find("a.silent.example", 443)
    later = asyncio.create_task(resolver.find("localhost", 443))
    await wait_until_async(lambda: servers.asked, "the name was not looked up")
    assert not later.done()
    servers.speak()
    assert {address[4][0] for address in await later} <= {"127.0.0.1", "::1"}


async def test_a_name_that_is_none_is_refused() -> None:
    resolver = Resolver()
    for wrong in ("a..b", "a" * 64):
        with pytest.raises(UnicodeError):
            await resolver.find(wrong, 443)


async def test_a_lookup_without_a_thread_is_an_error_and_keeps_no_place() -> None:
    resolver = Resolver(most=1)
    # More than the system has: no thread begins.
    before = threading.stack_size(1 << 46)
    try:
        with pytest.raises(OSError, match="no thread"):
            await resolver.find("localhost", 443)
    finally:
        threading.stack_size(before)
    assert await resolver.find("localhost", 443)
