"""Event streams: a job's updates in fal's own form, and how many streams may be open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from functools import partial

from starlette.responses import Response

from proxy.auth.callers import Caller
from proxy.errors import BadUpstream, NotFound, ProxyError
from proxy.http.disconnect import Disconnect, cancel_on_disconnect
from proxy.http.event_stream import EventStream
from proxy.jobs.hub import Hub
from proxy.jobs.opening import JobUnknown
from proxy.jobs.updates import Rewrite, Update
from proxy.jobs.watch import ATTEMPTS, Watch
from proxy.routes.services import Services
from proxy.stores.base import Job
from proxy.upstream import sse
from proxy.upstream.relay import HEAD_SECONDS, PING_SECONDS, StreamBroken


async def begun(watch: Watch) -> None:
    """Wait for the first update of a job, but no longer than a caller may wait for the head of its stream.

    Raises:
        NotFound: fal does not know the job any more.
        BadUpstream: fal's stream cannot be opened.
    """
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(HEAD_SECONDS):
                await watch.begun(ATTEMPTS)
    except StreamBroken as broken:
        raise refusal_of(broken) from None


def refusal_of(failure: StreamBroken | ProxyError) -> ProxyError:
    """What a caller is told when its job's stream fails before the first update."""
    if isinstance(failure, ProxyError):
        return failure
    if isinstance(failure, JobUnknown):
        return NotFound()
    return BadUpstream("fal's status stream cannot be opened; try again shortly.", scope="upstream")


async def stream_of(
    hub: Hub, job: Job, disconnect: Disconnect | None, events: Callable[[Watch], AsyncGenerator[bytes, None]]
) -> EventStream:
    """An event stream that reads a job's watch until it ends. It begins soon, also while fal is silent.

    Raises:
        NotFound, BadUpstream: as `begun`.
        CallerGone: the caller hung up before the stream began.
    """
    watch = hub.join(job)
    try:
        await cancel_on_disconnect(disconnect, begun(watch))
    except BaseException:
        hub.leave(watch)
        raise
    stream = EventStream(events(watch), {"x-fal-request-id": job.request_id or ""})
    stream.at_end(partial(hub.leave, watch))
    return stream


async def counted(services: Services, caller: Caller, work: Callable[[], Awaitable[Response]]) -> Response:
    """Do work that may come to an event stream, which counts as open until it ends, with its credential at the latest.

    Raises:
        RateLimited: too many are open; nothing was done.
    """
    give_back = services.streams.take(caller)
    answer: Response | None = None
    try:
        answer = await work()
    finally:
        if not isinstance(answer, EventStream):
            give_back()
    if isinstance(answer, EventStream):
        answer.at_end(give_back)
        services.stream_guard.watch(answer, caller)
    return answer


async def status_events(watch: Watch, *, logs: bool, rewrite: Rewrite | None) -> AsyncGenerator[bytes, None]:
    """What fal's own status stream would tell from now on; the last event is COMPLETED.

    Raises:
        NotFound, BadUpstream: as `begun`.
        StreamBroken: fal's stream does not come back.
    """
    told: Update | None = None
    if watch.latest is None:
        yield sse.PING
    try:
        async with aclosing(watch.updates(None, PING_SECONDS)) as updates:
            async for news in updates:
                if news is None:
                    yield sse.PING
                    continue
                update, first_line = news
                # Without logs, an update that only brings a line is none.
                if logs or told is None or told.document != update.document:
                    yield sse.encode(update.encoded(first_line if logs else None, rewrite))
                told = update
    except StreamBroken as broken:
        if told is None:
            raise refusal_of(broken) from None
        raise
