"""Turns fal's answers into those for the caller: read whole, or passed on as a stream.

Rules of the streams (what the published clients need): whole events in each chunk, `data` always JSON, a comment
every few seconds of silence, a short pause before the end, and an end only where the truth ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass

from starlette.responses import Response

from proxy.upstream import sse
from proxy.upstream.engine import WHOLE_BYTES, Reply, StreamedReply, decode, read_reply
from proxy.upstream.failures import failure_of
from proxy.upstream.headers import EVENT_STREAM, to_caller

PING_SECONDS = 5.0
#: How long fal may take to begin a stream before its head goes to the caller all the same. A refusal that is known by
#: then keeps its status; one that comes later is an event.
HEAD_SECONDS = 0.5
_EVENT_STREAM = EVENT_STREAM.encode()


class StreamRefused(Exception):
    """fal answered with something else than a stream after the head of the caller's stream was sent.

    Attributes:
        body: fal's answer.
    """

    def __init__(self, body: bytes) -> None:
        super().__init__("fal refused the stream")
        self.body = body


async def read_body(streamed: StreamedReply, *, repeatable: bool) -> bytes:
    """Read the decoded body of an answer, and close the answer.

    Raises:
        BadUpstream, UpstreamTimeout: it is larger than `WHOLE_BYTES`, or broke, and may be asked for again.
        UpstreamAmbiguous: the same, and the call may have been run.
    """
    reply = await decode(await read_reply(streamed, WHOLE_BYTES))
    if reply.error is not None:
        raise failure_of(reply.error, repeatable=repeatable)
    return reply.body


@dataclass(frozen=True, slots=True)
class BufferedResponse:
    """An answer of fal's that was read to its end: its status, the headers that may cross, its body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300

    def response(self) -> Response:
        return Response(self.body, self.status, self.headers)


async def buffer_response(streamed: StreamedReply, *, repeatable: bool) -> BufferedResponse:
    """Read an answer to its end.

    Raises:
        BadUpstream, UpstreamAmbiguous: as `read_body`.
    """
    return await buffer_reply(await read_reply(streamed, WHOLE_BYTES), repeatable=repeatable)


async def buffer_reply(reply: Reply, *, repeatable: bool) -> BufferedResponse:
    """Make of the engine's reply what the rest of the program gets.

    Raises:
        BadUpstream, UpstreamTimeout, UpstreamAmbiguous: as `read_body`.
    """
    if b"content-encoding" in reply.headers:
        reply = await decode(reply)
    if reply.error is not None:
        raise failure_of(reply.error, repeatable=repeatable)
    return BufferedResponse(reply.status_code, to_caller(reply.headers), reply.body)


def is_event_stream(reply: StreamedReply) -> bool:
    """Return whether a reply is the stream that was asked for."""
    content_type = reply.headers.get(b"content-type", b"")
    return reply.is_success and content_type.partition(b";")[0].strip() == _EVENT_STREAM


async def with_heartbeat(
    data: AsyncGenerator[bytes, None], ping_seconds: float = PING_SECONDS, *, is_late: bool = False
) -> AsyncGenerator[bytes, None]:
    """Yield encoded events, with a comment whenever nothing came for a while; close what they come from.

    Args:
        is_late: whether to begin with a comment, as the first event was waited for already.
    """
    waiting: asyncio.Task[bytes | None] | None = None
    try:
        if is_late:
            yield sse.PING
        while True:
            waiting = waiting or asyncio.ensure_future(_next(data))
            await asyncio.wait({waiting}, timeout=ping_seconds)
            if not waiting.done():
                yield sse.PING
                continue
            try:
                event = waiting.result()
            finally:
                # A task keeps its exception, whose frames would keep the task.
                waiting = None
            if event is None:
                return
            yield sse.encode(event)
    finally:
        if waiting is not None:
            waiting.cancel()
            await asyncio.wait({waiting})
        await data.aclose()


async def _next(data: AsyncIterator[bytes]) -> bytes | None:
    return await anext(data, None)
