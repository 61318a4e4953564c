"""From fal's answer to the caller's: whole where it is small, as a stream where it is one.

Rules of the streams (what the published clients need): whole events in each chunk, `data` always JSON, a comment
every few seconds of silence, a short pause before the end, and an end only where the truth ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

import httpx
import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from proxy.errors import BadUpstream, BodyTooLarge, ProxyError, UpstreamAmbiguous
from proxy.upstream import sse
from proxy.upstream.client import failure_of
from proxy.upstream.headers import EVENT_STREAM, to_caller

#: Up to here an answer is read whole before the first byte goes out, so that its loss can still be told properly.
WHOLE_BYTES = 4 * 1024 * 1024
PING_SECONDS = 5.0
#: Iterators of older JS clients lose the last event when the end follows within about 16 ms.
LINGER_SECONDS = 0.05
#: After a stream was cut, another process can be asked at once.
COME_BACK_SECONDS = 1.0
STREAM_HEADERS = {
    "content-type": f"{EVENT_STREAM}; charset=utf-8",
    "cache-control": "no-cache, no-transform",
    "x-accel-buffering": "no",
    "x-content-type-options": "nosniff",
}
_log = logging.getLogger(__name__)
T = TypeVar("T")


class StreamBroken(Exception):
    """The stream ended before its truth did. The caller's connection is cut, so that nobody takes it for the end."""


class CallerGone(Exception):
    """The caller hung up before the answer was there."""


async def read_whole(response: httpx.Response, *, repeatable: bool, limit: int = WHOLE_BYTES) -> bytes:
    """The decoded body of an answer, and close it.

    Raises:
        BadUpstream: it is larger than `limit` bytes, or broke, and may be asked for again.
        UpstreamAmbiguous: the same, and the call may have been run.
    """
    body = bytearray()
    try:
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > limit:
                raise _too_large(repeatable)
    except httpx.HTTPError as error:
        raise failure_of(error, repeatable=repeatable) from None
    finally:
        await response.aclose()
    return bytes(body)


def _too_large(repeatable: bool) -> ProxyError:
    if repeatable:
        return BadUpstream("fal's answer is larger than this proxy passes on.", scope="upstream")
    return UpstreamAmbiguous("fal's answer is larger than this proxy passes on; asking again would run it again.")


@dataclass(frozen=True, slots=True)
class Whole:
    """An answer of fal's that was read to its end: its status, the headers that may cross, its body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def response(self) -> Response:
        return Response(self.body, self.status, self.headers)


async def whole(response: httpx.Response, *, repeatable: bool) -> Whole:
    """Read an answer to its end.

    Raises:
        BadUpstream, UpstreamAmbiguous: as `read_whole`.
    """
    body = await read_whole(response, repeatable=repeatable)
    return Whole(response.status_code, to_caller(response.headers), body)


async def pass_on(response: httpx.Response, *, repeatable: bool) -> Response:
    """An answer with fal's status and body, and only the headers that may cross.

    Raises:
        BadUpstream, UpstreamAmbiguous: as `read_whole`.
    """
    return (await whole(response, repeatable=repeatable)).response()


def is_event_stream(response: httpx.Response) -> bool:
    """Whether an answer is the stream that was asked for."""
    content_type: str = response.headers.get("content-type", "")
    return response.is_success and content_type.partition(";")[0].strip() == EVENT_STREAM


async def events_of(
    response: httpx.Response, missed: Callable[[], None] = lambda: None
) -> AsyncGenerator[bytes, None]:
    """The `data` of each event of a stream, in order; what is not JSON is left out, and `missed` called. Closes the
    answer.

    Raises:
        StreamBroken: it broke off, or its bytes make no sense.
    """
    splitter = sse.EventSplitter()
    try:
        async for chunk in response.aiter_bytes():
            for event in splitter.feed(chunk):
                data = sse.data_of(event)
                if data is None:
                    continue
                if _is_json(data):
                    yield data
                else:
                    _log.warning("an event of fal's stream was not JSON and is left out")
                    missed()
    except (httpx.HTTPError, sse.EventTooLarge) as error:
        raise StreamBroken(type(error).__name__) from None
    finally:
        await response.aclose()


def _is_json(data: bytes) -> bool:
    try:
        orjson.loads(data)
    except orjson.JSONDecodeError:
        return False
    return True


class EventStream(Response):
    """An answer of server-sent events, fed by an iterator of them; a caller who hangs up closes the iterator.

    `release` is called at the end whatever happens: an iterator that was never begun cannot free what it would hold.
    A stream that is cancelled, as the process ends, tells its caller when to come back, and is cut: an end would look
    like the end of the job.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        headers: Mapping[str, str],
        release: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        super().__init__(headers={**headers, **STREAM_HEADERS})
        del self.headers["content-length"]
        self._events = events
        self._release = release
        self._last_words: list[Callable[[], None]] = []

    def at_end(self, call: Callable[[], None]) -> None:
        """Have something called when the stream has ended, however it did."""
        self._last_words.append(call)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with aclosing(self._events):
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                await until_gone(receive, self._pump(send))
        except (CallerGone, BodyTooLarge):
            # Hung up, or sending what nobody reads: there is no one to tell, and the server cuts the connection.
            return
        except asyncio.CancelledError:
            await send({"type": "http.response.body", "body": sse.retry(COME_BACK_SECONDS), "more_body": True})
            raise StreamBroken("this process ends") from None
        finally:
            for call in self._last_words:
                call()
            if self._release is not None:
                await self._release()

    async def _pump(self, send: Send) -> None:
        async for event in self._events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await asyncio.sleep(LINGER_SECONDS)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def pinged(data: AsyncGenerator[bytes, None], ping_seconds: float = PING_SECONDS) -> AsyncGenerator[bytes, None]:
    """Encoded events, with a comment whenever nothing came for a while. Closes what they come from."""
    waiting: asyncio.Task[bytes] | None = None
    try:
        while True:
            waiting = waiting or asyncio.ensure_future(_next(data))
            done, _ = await asyncio.wait({waiting}, timeout=ping_seconds)
            if not done:
                yield sse.PING
                continue
            try:
                event = waiting.result()
            except StopAsyncIteration:
                return
            finally:
                waiting = None
            yield sse.encode(event)
    finally:
        if waiting is not None:
            waiting.cancel()
            await asyncio.wait({waiting})
        await data.aclose()


async def _next(data: AsyncIterator[bytes]) -> bytes:
    return await anext(data)


async def until_gone(receive: Receive, work: Awaitable[T]) -> T:
    """Do the work, unless the caller hangs up first: then it is cancelled, and whatever it held upstream is freed.

    Raises:
        CallerGone: the caller hung up.
        BodyTooLarge: it goes on sending.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            # What the caller sent meanwhile may have been too much: then this raises that.
            gone.result()
            raise CallerGone
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.wait({task, gone})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
