"""The transport behind httpx's interface, for what is asked of it and of httpx's own in the same way."""

from __future__ import annotations

import httpx

from proxy.upstream.engine import BodyStream, Engine
from proxy.upstream.transport import EngineTransport


class HttpxInterface(httpx.AsyncBaseTransport):
    """Sends httpx's requests by an engine; the transport if none is given."""

    def __init__(self, engine: Engine | None = None) -> None:
        self._engine = engine or EngineTransport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        reply = await self._engine.send(request)
        return httpx.Response(reply.status_code, headers=list(reply.headers.items()), stream=BodyStream(reply.body))

    async def aclose(self) -> None:
        await self._engine.aclose()
