"""The relay's own rules: pings in silence, and nothing left behind by whoever goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from proxy.errors import BodyTooLarge
from proxy.upstream import sse
from proxy.upstream.relay import CallerGone, pinged, until_gone

pytestmark = pytest.mark.anyio


async def held_back(events: list[bytes], until: asyncio.Event) -> AsyncGenerator[bytes, None]:
    for event in events[:-1]:
        yield event
    await until.wait()
    yield events[-1]


async def test_silence_is_filled_with_comments_and_events_stay_whole() -> None:
    go_on = asyncio.Event()
    seen: list[bytes] = []
    async with aclosing(pinged(held_back([b"1", b"2"], go_on), 0.01)) as chunks:
        async for chunk in chunks:
            seen.append(chunk)
            if seen.count(sse.PING) == 3:
                go_on.set()
    assert seen[0] == sse.encode(b"1") and seen[-1] == sse.encode(b"2")
    assert seen.count(sse.PING) >= 3 and set(seen[1:-1]) == {sse.PING}


async def test_closing_a_stream_closes_what_feeds_it() -> None:
    closed = asyncio.Event()

    async def feeding() -> AsyncGenerator[bytes, None]:
        try:
            await asyncio.Event().wait()
            yield b""
        finally:
            closed.set()

    source = feeding()
    async with aclosing(source), aclosing(pinged(source, 0.01)) as chunks:
        assert await anext(chunks) == sse.PING
    assert closed.is_set()


async def test_work_is_cancelled_when_the_caller_hangs_up() -> None:
    cancelled = asyncio.Event()
    started = asyncio.Event()

    async def work() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def receive() -> dict[str, str]:
        await started.wait()
        return {"type": "http.disconnect"}

    with pytest.raises(CallerGone):
        await until_gone(receive, work())
    assert cancelled.is_set()


async def never() -> None:
    await asyncio.Event().wait()


async def hanging_up() -> dict[str, str]:
    return {"type": "http.disconnect"}


async def test_a_caller_who_hung_up_leaves_the_task_uncancelled() -> None:
    with pytest.raises(CallerGone):
        await until_gone(hanging_up, never())
    task = asyncio.current_task()
    assert task is not None and task.cancelling() == 0
    await asyncio.sleep(0)


async def test_who_cancels_is_not_taken_for_a_caller_who_hung_up() -> None:
    """Also not when both happen at once: a server that stops must see its cancellation."""
    own: list[asyncio.Task[None]] = []

    async def receive() -> dict[str, str]:
        own[0].cancel()
        return {"type": "http.disconnect"}

    for one in (receive, never_receiving):
        own[:] = [asyncio.ensure_future(until_gone(one, never()))]
        await asyncio.sleep(0)
        if one is never_receiving:
            own[0].cancel()
        await asyncio.wait(own)
        assert own[0].cancelled()


async def never_receiving() -> dict[str, str]:
    await never()
    raise AssertionError


async def test_a_caller_who_sends_too_much_meanwhile_is_told() -> None:
    async def receive() -> dict[str, str]:
        raise BodyTooLarge("too much")

    with pytest.raises(BodyTooLarge):
        await until_gone(receive, never())


async def test_work_that_is_done_leaves_nobody_behind() -> None:
    before = asyncio.all_tasks()
    looked = asyncio.Event()

    async def receive() -> dict[str, str]:
        looked.set()
        return await never_receiving()

    async def work() -> int:
        await looked.wait()
        return 7

    async def failing() -> None:
        raise ZeroDivisionError

    assert await until_gone(receive, work()) == 7
    with pytest.raises(ZeroDivisionError):
        await until_gone(receive, failing())
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
