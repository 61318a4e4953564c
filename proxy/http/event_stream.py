"""A response that is a stream of server-sent events, for as long as its caller may read it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from proxy.errors import BodyTooLarge, ProxyError
from proxy.http.disconnect import CallerGone, cancel_on_disconnect, disconnect_of
from proxy.http.scope import set_cache_control
from proxy.log_context import bind
from proxy.upstream import sse
from proxy.upstream.event_reader import StreamBroken
from proxy.upstream.headers import EVENT_STREAM
from proxy.upstream.relay import StreamRefused

#: Iterators of older JS clients lose the last event when the end follows within about 16 ms.
LINGER_SECONDS = 0.05
#: After a stream was cut, another process can be asked at once.
COME_BACK_SECONDS = 1.0
#: How long a caller that stopped reading has to take the event that ends its stream.
REFUSAL_SECONDS = 1.0
#: A proxy that compressed a stream would hold its events back.
STREAM_CACHING = b"no-store, no-transform"
STREAM_HEADERS = {
    "content-type": f"{EVENT_STREAM}; charset=utf-8",
    "x-accel-buffering": "no",
}


class EventStream(Response):
    """An answer of server-sent events, fed by an iterator of them; a caller who hangs up closes the iterator.

    A stream that is cancelled, as the process ends, tells its caller when to come back, and is cut: an end would look
    like the end of the job. One that is refused ends with an `error` event. One whose events fail with an error that
    would have been the answer, had the head not been sent, tells it in such an event and is cut.

    Args:
        release: called at the end whatever happens: an iterator that was never begun cannot free what it would hold.
        on_close: called before that.
        ends_with_result: whether clients take the last event for the result. Then a refused stream is cut as well.

    Attributes:
        is_over: whether nothing more comes, so that there is nothing to refuse.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        headers: Mapping[str, str],
        release: Callable[[], Awaitable[None]] | None = None,
        *,
        on_close: Sequence[Callable[[], None]] = (),
        ends_with_result: bool = False,
    ) -> None:
        super().__init__(headers={**headers, **STREAM_HEADERS})
        # Not by `headers`, which would keep them for as long as the stream is open.
        self.raw_headers = [(name, value) for name, value in self.raw_headers if name != b"content-length"]
        self._events = events
        self._release = release
        self._ends_with_result = ends_with_result
        self._on_close = on_close
        self._pumping: asyncio.Task[None] | None = None
        self._refusal: ProxyError | None = None
        self.is_over = False

    def refuse(self, error: ProxyError) -> None:
        """Send nothing more but this error. A stream whose last event is out stays as it is."""
        if self._refusal is None:
            self._refusal = error
            if self._pumping is not None:
                self._pumping.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        set_cache_control(scope, STREAM_CACHING)
        try:
            async with aclosing(self._events):
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                self.raw_headers = []
                if self._refusal is None:
                    self._pumping = asyncio.current_task()
                    await cancel_on_disconnect(disconnect_of(scope, receive), self._pump(send))
                    return
        except (CallerGone, BodyTooLarge):
            # Hung up, or sending what is not read: no client reads an answer, and the server cuts the connection.
            return
        except (ProxyError, StreamRefused) as failure:
            # fal's clients would take an end here for the end of the job.
            await self._send_error(scope, send, failure, ends=False)
        except asyncio.CancelledError:
            if not self._is_cancelled_by_refusal():
                await send({"type": "http.response.body", "body": sse.retry(COME_BACK_SECONDS), "more_body": True})
                raise StreamBroken("this process ends") from None
        finally:
            await self._end()
        assert self._refusal is not None
        await self._send_error(scope, send, self._refusal, ends=not self._ends_with_result)

    async def _pump(self, send: Send) -> None:
        async for event in self._events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
            event = b""
        self._pumping = None
        await _finish(send)

    def _is_cancelled_by_refusal(self) -> bool:
        """Return whether nothing but `refuse` has cancelled the task; if so, take the cancellation back."""
        return self._refusal is not None and self._pumping is not None and self._pumping.uncancel() == 0

    async def _end(self) -> None:
        self._pumping, self.is_over = None, True
        calls, self._on_close = self._on_close, ()
        for call in calls:
            call()
        if self._release is not None:
            await self._release()

    async def _send_error(self, scope: Scope, send: Send, error: ProxyError | StreamRefused, *, ends: bool) -> None:
        """Send the event that says why nothing more comes.

        Args:
            ends: whether the stream may end after that.

        Raises:
            StreamBroken: it may not, or the caller does not read; the connection is to be cut.
        """
        event, code = _error_event(error, scope["state"]["request_id"])
        bind(scope, error_type=code)
        with suppress(TimeoutError):
            async with asyncio.timeout(REFUSAL_SECONDS):
                await send({"type": "http.response.body", "body": event, "more_body": True})
                if ends:
                    return await _finish(send)
                await asyncio.sleep(LINGER_SECONDS)
        raise StreamBroken(f"its caller may not read on: {code}") from None


def _error_event(error: ProxyError | StreamRefused, request_id: str) -> tuple[bytes, str]:
    """Write the `error` event of a failure; returns also its code."""
    if isinstance(error, StreamRefused):
        return sse.encode(error.body, name="error"), "stream_refused"
    return sse.encode(orjson.dumps(error.body() | {"request_id": request_id}), name="error"), error.code


async def _finish(send: Send) -> None:
    await asyncio.sleep(LINGER_SECONDS)
    await send({"type": "http.response.body", "body": b"", "more_body": False})
