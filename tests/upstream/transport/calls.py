"""Requests for the transport to send, and bodies for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx

from proxy.upstream.transport import EngineTransport
from tests.upstream.transport.httpx_interface import HttpxInterface
from tests.upstream.transport.raw_server import PATIENCE_SECONDS

MIB = 1024 * 1024
# More than the kernel takes in on a loopback connection, both sides together.
KERNEL_BUFFERS = 24 * MIB


def ask(url: str, method: str = "GET", **options: object) -> httpx.Request:
    """A request with patient timeouts; `pool=`, `connect=`, `read=`, `write=` set one of them."""
    timeout = {phase: options.pop(phase, PATIENCE_SECONDS) for phase in ("pool", "connect", "read", "write")}
    return httpx.Request(method, url, extensions={"timeout": timeout}, **options)  # type: ignore[arg-type]


async def respond(transport: EngineTransport, request: httpx.Request) -> httpx.Response:
    """Send; answer as soon as the head of the answer is here."""
    return await HttpxInterface(transport).handle_async_request(request)


async def call(transport: EngineTransport, request: httpx.Request) -> httpx.Response:
    """Send and read the whole answer."""
    response = await respond(transport, request)
    try:
        await response.aread()
    finally:
        await response.aclose()
    return response


async def body_of(*chunks: bytes) -> AsyncIterator[bytes]:
    """A body that comes in these chunks."""
    for chunk in chunks:
        yield chunk


async def megabytes(count: int, handed_out: list[int] | None = None) -> AsyncIterator[bytes]:
    """A body of so many mebibytes; `handed_out` grows by an item with each of them."""
    for number in range(count):
        if handed_out is not None:
            handed_out.append(number)
        yield bytes(MIB)


async def until_it_stops_growing(items: list[int]) -> None:
    """Wait until no more of the body is taken, as its reader is stuck."""
    seen = -1
    while len(items) != seen or not items:
        seen = len(items)
        await asyncio.sleep(0.2)
