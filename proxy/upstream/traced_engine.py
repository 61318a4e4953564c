"""A span for each request to fal, where traces are on."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
from opentelemetry.trace import Span

from proxy.telemetry.traces import Traces, end
from proxy.upstream.engine import Engine, Reply, Request


class TracedEngine(Engine):
    """Passes requests to another engine, each within a span. fal is sent nothing of the trace."""

    def __init__(self, engine: Engine, traces: Traces) -> None:
        self._engine = engine
        self._traces = traces

    async def fetch(self, request: Request) -> Reply:
        span = self._traces.start_request(request.method, request.host.url.host)
        try:
            reply = await self._engine.fetch(request)
        except BaseException as error:
            end(span, type(error).__name__, failed=True)
            raise
        span.set_attribute("http.response.status_code", reply.status_code)
        problem = None if reply.error is None else type(reply.error).__name__
        end(span, problem, failed=problem is not None or reply.status_code >= 400)
        return reply

    async def send(self, request: httpx.Request) -> httpx.Response:
        span = self._traces.start_request(request.method, request.url.host)
        try:
            response = await self._engine.send(request)
        except BaseException as error:
            end(span, type(error).__name__, failed=True)
            raise
        span.set_attribute("http.response.status_code", response.status_code)
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = _TracedStream(response.stream, span, failed=response.status_code >= 400)
        return response

    async def aclose(self) -> None:
        await self._engine.aclose()


class _TracedStream(httpx.AsyncByteStream):
    """The body of a reply, which ends the span."""

    def __init__(self, stream: httpx.AsyncByteStream, span: Span, *, failed: bool) -> None:
        self._stream = stream
        self._span = span
        self._failed = failed
        self._problem: str | None = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._stream:
                yield chunk
        except httpx.TransportError as problem:
            self._problem = type(problem).__name__
            raise

    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        finally:
            if self._span.is_recording():
                end(self._span, self._problem, failed=self._failed or self._problem is not None)
