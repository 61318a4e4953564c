"""The body of a request that leaves in pieces, and the body of its reply, which may begin before that has left."""

from __future__ import annotations

import asyncio
import contextlib

import httpx

from proxy.upstream.connection import Connection
from proxy.upstream.request_bytes import body_pieces, is_in_memory
from proxy.upstream.streamed_body import Flow, Owner, StreamedBody


class RequestBody:
    """Sends a body as fast as the upstream takes it. A failure ends the wait for the reply.

    Args:
        length: bytes of the body, by its header; None if it goes in chunks.

    Attributes:
        is_in_memory: whether the body can be sent a second time.
        is_sent: whether all of it has left.
        written: bytes that were written, as they are on the wire.
    """

    def __init__(self, request: httpx.Request, length: int | None) -> None:
        self.is_in_memory = is_in_memory(request)
        self.is_sent = False
        self.written = 0
        self._request = request
        self._length = length
        self._sending: asyncio.Task[None] | None = None

    def begin(self, connection: Connection) -> None:
        """Start to send the body, from its beginning."""
        self.is_sent, self.written = False, 0
        self._sending = asyncio.create_task(self._send(connection))

    async def end(self) -> None:
        """Send no more of the body. After this the request's stream is not read any more."""
        if self._sending is not None and not self._sending.done():
            self._sending.cancel()
            await asyncio.wait([self._sending])

    async def _send(self, connection: Connection) -> None:
        timeouts = self._request.extensions.get("timeout", {})
        try:
            async with contextlib.aclosing(body_pieces(self._request.stream, self._length)) as pieces:
                async for piece in pieces:
                    self.written += len(piece)
                    await connection.write_more(piece, timeouts.get("write"))
        except Exception as error:
            connection.reader.give_up(error)
        else:
            self.is_sent = True
            # From now on the upstream has to answer.
            connection.reader.limit_silence(timeouts.get("read"))


class EarlyBody(StreamedBody):
    """The body of the reply to such a request. Its connection is used again only if all of the request has left."""

    __slots__ = ("_sent",)

    def __init__(self, flow: Flow, owner: Owner, sent: RequestBody) -> None:
        super().__init__(flow, owner)
        self._sent = sent

    async def read(self) -> bytes:
        try:
            piece = await super().read()
        except BaseException:
            await self._sent.end()
            raise
        if not piece:
            await self._sent.end()
        return piece

    async def aclose(self) -> None:
        await super().aclose()
        await self._sent.end()

    def _finish(self, *, is_whole: bool) -> None:
        super()._finish(is_whole=is_whole and self._sent.is_sent)
