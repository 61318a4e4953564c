"""From fal's answer to the caller's: whole where it is small, as a stream where it is one.

Rules of the streams (what the published clients need): whole events in each chunk, `data` always JSON, a comment
every few seconds of silence, a short pause before the end, and an end only where the truth ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import httpx
import orjson
from starlette.responses import Response

from proxy.errors import BadUpstream, ProxyError, UpstreamAmbiguous
from proxy.upstream import sse
from proxy.upstream.client import failure_of
from proxy.upstream.headers import EVENT_STREAM, to_caller

#: Up to here an answer is read whole before the first byte goes out, so that its loss can still be an error.
WHOLE_BYTES = 4 * 1024 * 1024
PING_SECONDS = 5.0
#: How long fal may take to begin a stream before its head goes to the caller all the same. A refusal that is known by
#: then keeps its status; one that comes later is an event.
HEAD_SECONDS = 0.5
_log = logging.getLogger(__name__)
_NO_HEADERS = httpx.Headers()


class StreamBroken(Exception):
    """The stream ended before its truth did. The caller's connection is cut, so that no client takes it for the end."""


class StreamRefused(Exception):
    """fal answered with something else than a stream after the head of the caller's stream was sent.

    Attributes:
        body: fal's answer.
    """

    def __init__(self, body: bytes) -> None:
        super().__init__("fal refused the stream")
        self.body = body


async def read_body(response: httpx.Response, *, repeatable: bool, limit: int = WHOLE_BYTES) -> bytes:
    """The decoded body of an answer, and close it.

    Raises:
        BadUpstream: it is larger than `limit` bytes, or broke, and may be asked for again.
        UpstreamAmbiguous: the same, and the call may have been run.
    """
    body = bytearray()
    # fal is asked not to compress: httpx's decoders, half the cost of reading, are for an answer that is all the same.
    encoded = "content-encoding" in response.headers
    try:
        async for chunk in response.aiter_bytes() if encoded else _raw(response):
            body += chunk
            if len(body) > limit:
                raise _too_large(repeatable)
    except httpx.HTTPError as error:
        raise failure_of(error, repeatable=repeatable) from None
    finally:
        await response.aclose()
    return bytes(body)


def _raw(response: httpx.Response) -> AsyncIterator[bytes]:
    assert isinstance(response.stream, httpx.AsyncByteStream)
    return aiter(response.stream)


def _too_large(repeatable: bool) -> ProxyError:
    if repeatable:
        return BadUpstream("fal's answer is larger than this proxy passes on.", scope="upstream")
    return UpstreamAmbiguous("fal's answer is larger than this proxy passes on; a repetition would run it again.")


@dataclass(frozen=True, slots=True)
class BufferedResponse:
    """An answer of fal's that was read to its end: its status, the headers that may cross, its body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def response(self) -> Response:
        return Response(self.body, self.status, self.headers)


async def buffer_response(response: httpx.Response, *, repeatable: bool) -> BufferedResponse:
    """Read an answer to its end.

    Raises:
        BadUpstream, UpstreamAmbiguous: as `read_body`.
    """
    body = await read_body(response, repeatable=repeatable)
    return BufferedResponse(response.status_code, to_caller(response.headers), body)


async def pass_on(response: httpx.Response, *, repeatable: bool) -> Response:
    """An answer with fal's status and body, and only the headers that may cross.

    Raises:
        BadUpstream, UpstreamAmbiguous: as `read_body`.
    """
    return (await buffer_response(response, repeatable=repeatable)).response()


def is_event_stream(response: httpx.Response) -> bool:
    """Whether an answer is the stream that was asked for."""
    content_type: str = response.headers.get("content-type", "")
    return response.is_success and content_type.partition(";")[0].strip() == EVENT_STREAM


class Event(NamedTuple):
    """An event of fal's: its `data`, and the JSON document that this is."""

    data: bytes
    document: Any


async def read_events(
    response: httpx.Response, missed: Callable[[], None] = lambda: None
) -> AsyncGenerator[Event, None]:
    """Yield the events of a stream in order. What is not JSON is left out, and `missed` called. Closes the answer.

    Raises:
        StreamBroken: it broke off, or its bytes make no sense.
    """
    splitter = sse.EventSplitter()
    # A stream is open for minutes. Two generators of httpx's, which only look for an encoding, are spared; so is what
    # the head of the answer said.
    chunks = response.aiter_bytes() if "content-encoding" in response.headers else aiter(_body_of(response))
    try:
        async for chunk in chunks:
            for event in splitter.feed(chunk):
                data = sse.data_of(event)
                if data is None:
                    continue
                try:
                    document = orjson.loads(data)
                except orjson.JSONDecodeError:
                    _log.warning("event of fal's stream skipped: it is not JSON")
                    missed()
                else:
                    yield Event(data, document)
            # Until the next one comes, which may be long, this one is not kept.
            chunk = event = data = b""
            document = None
            response.headers = _NO_HEADERS
    except (httpx.HTTPError, sse.EventTooLarge) as error:
        raise StreamBroken(type(error).__name__) from None
    finally:
        await response.aclose()


def _body_of(response: httpx.Response) -> httpx.AsyncByteStream:
    assert isinstance(response.stream, httpx.AsyncByteStream)
    return response.stream


async def with_heartbeat(
    data: AsyncGenerator[bytes, None], ping_seconds: float = PING_SECONDS, *, is_late: bool = False
) -> AsyncGenerator[bytes, None]:
    """Encoded events, with a comment whenever nothing came for a while. Closes what they come from.

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
