"""A span for each request to fal, where traces are on."""

from __future__ import annotations

from collections.abc import Awaitable

import httpx
from opentelemetry.trace import Span

from proxy.telemetry.traces import Traces, end
from proxy.upstream.engine import Body, Engine, Reply, Request, StreamedReply


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

    async def open(self, request: Request) -> StreamedReply:
        return await self._trace(request.method, request.host.url.host, self._engine.open(request))

    async def send(self, request: httpx.Request) -> StreamedReply:
        return await self._trace(request.method, request.url.host, self._engine.send(request))

    async def _trace(self, method: str, host: str, sending: Awaitable[StreamedReply]) -> StreamedReply:
        span = self._traces.start_request(method, host)
        try:
            reply = await sending
        except BaseException as error:
            end(span, type(error).__name__, failed=True)
            raise
        span.set_attribute("http.response.status_code", reply.status_code)
        body = _TracedBody(reply.body, span, failed=reply.status_code >= 400)
        return StreamedReply(reply.status_code, reply.headers, body)

    async def aclose(self) -> None:
        await self._engine.aclose()


class _TracedBody(Body):
    """The body of a reply, which ends the span."""

    def __init__(self, body: Body, span: Span, *, failed: bool) -> None:
        self._body = body
        self._span = span
        self._failed = failed
        self._problem: str | None = None

    async def read(self) -> bytes:
        try:
            return await self._body.read()
        except httpx.TransportError as problem:
            self._problem = type(problem).__name__
            raise

    async def aclose(self) -> None:
        try:
            await self._body.aclose()
        finally:
            if self._span.is_recording():
                end(self._span, self._problem, failed=self._failed or self._problem is not None)
