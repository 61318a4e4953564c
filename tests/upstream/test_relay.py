"""The relay's own rules of time: pings in silence, and streams that fall silent are opened again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing

import httpx
import pytest
from starlette.datastructures import Headers

from proxy.jobs.watch import follow
from proxy.sandbox.app import SANDBOX_KEY
from proxy.settings import read
from proxy.targets import Kind, Target
from proxy.upstream import headers, sse
from proxy.upstream.client import Timeouts, Upstream
from proxy.upstream.relay import CallerGone, pinged, until_gone
from proxy.upstream.transport import EngineTransport
from tests.support.sandbox import SandboxControl
from tests.support.stack import SECRET, sandbox_environ

pytestmark = pytest.mark.anyio


async def held_back(events: list[bytes], until: asyncio.Event) -> AsyncGenerator[bytes, None]:
    for event in events[:-1]:
        yield event
    await until.wait()
    yield events[-1]


async def test_silence_is_filled_with_comments_and_events_stay_whole() -> None:
    go_on = asyncio.Event()
    seen: list[bytes] = []
    async with aclosing(pinged(held_back([b"1", b"2"], go_on), 0.01, asyncio.Event())) as chunks:
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
    async with aclosing(source), aclosing(pinged(source, 0.01, asyncio.Event())) as chunks:
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


async def test_a_status_stream_that_falls_silent_is_opened_again(sandbox: SandboxControl) -> None:
    fal = read({**sandbox_environ(sandbox.url), "PROXY_SESSION_SECRETS": SECRET}).fal
    assert fal.key.reveal() == SANDBOX_KEY
    upstream = Upstream(fal, EngineTransport(), Timeouts(status_stream=0.3))
    app = "fal-ai/llava-next"
    body = {"image_url": "data:,", "prompt": "[[pace run_seconds=0.1]]"}
    async with httpx.AsyncClient(trust_env=False) as direct:
        key = {"authorization": f"Key {SANDBOX_KEY}"}
        request_id = (await direct.post(f"{fal.queue_url}/{app}", json=body, headers=key)).json()["request_id"]
    sandbox.fault(fault="stall", n=1, times=2, on={"operation": "status-stream"})
    watch = Target(Kind.STATUS_STREAM, app=app, request_id=request_id, logs=True)
    sent = headers.to_fal(Headers({}), streams=True)

    async def nobody(_update: bytes) -> None:
        return None

    async def opened() -> httpx.Response:
        return await upstream.call(watch, sent)

    updates = [json.loads(update) async for update in follow(await opened(), opened, nobody)]
    await upstream.close()
    assert updates[-1]["status"] == "COMPLETED"
    opened_streams = [one for one in sandbox.requests() if one["path"].endswith("/status/stream")]
    assert len(opened_streams) >= 2
