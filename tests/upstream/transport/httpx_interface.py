"""The transport behind httpx's interface, for what is asked of it and of httpx's own in the same way."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx

from proxy.upstream.engine import Body, Engine
from proxy.upstream.transport import EngineTransport


class HttpxInterface(httpx.AsyncBaseTransport):
    """Sends httpx's requests by an engine; the transport if none is given."""

    def __init__(self, engine: Engine | None = None) -> None:
        self._engine = engine or EngineTransport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        reply = await self._engine.send(request)
        return httpx.Response(reply.status_code, headers=list(reply.headers.items()), stream=_Stream(reply.body))

    async def aclose(self) -> None:
        await self._engine.aclose()


class _Stream(httpx.AsyncByteStream):
    def __init__(self, body: Body) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while piece := await self._body.read():
            yield piece

    async def aclose(self) -> None:
        await self._body.aclose()
