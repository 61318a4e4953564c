"""The relay's own rules: pings while fal is silent, and nothing left open when a caller leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from proxy.upstream import sse
from proxy.upstream.relay import with_heartbeat

pytestmark = pytest.mark.anyio


async def held_back(events: list[bytes], until: asyncio.Event) -> AsyncGenerator[bytes, None]:
    for event in events[:-1]:
        yield event
    await until.wait()
    yield events[-1]


async def test_silence_is_filled_with_comments_and_events_stay_whole() -> None:
    go_on = asyncio.Event()
    seen: list[bytes] = []
    async with aclosing(with_heartbeat(held_back([b"1", b"2"], go_on), 0.01)) as chunks:
        async for chunk in chunks:
            seen.append(chunk)
            if seen.count(sse.PING) == 3:
                go_on.set()
    assert seen[0] == sse.encode(b"1") and seen[-1] == sse.encode(b"2")
    assert seen.count(sse.PING) >= 3 and set(seen[1:-1]) == {sse.PING}


async def test_closing_a_stream_closes_what_feeds_it() -> None:
    closed = asyncio.Event()

    async def feed_pieces() -> AsyncGenerator[bytes, None]:
        try:
            await asyncio.Event().wait()
            yield b""
        finally:
            closed.set()

    source = feed_pieces()
    async with aclosing(source), aclosing(with_heartbeat(source, 0.01)) as chunks:
        assert await anext(chunks) == sse.PING
    assert closed.is_set()
