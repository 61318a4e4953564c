"""One request and its answer on one connection."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import aiohttp
import httpx
from aiohttp.http import HttpProcessingError, RawResponseMessage, StreamWriter
from aiohttp.streams import EMPTY_PAYLOAD, EofStream, StreamReader

from proxy.upstream.connections import ConnectionPool, OpenConnection
from proxy.upstream.engine import Timeouts
from proxy.upstream.request_bytes import body_pieces, small_body

READ_BUFFER_BYTES = 64 * 1024
#: What aiohttp raises once a request has begun to leave.
_BREAKS = (aiohttp.ClientError, HttpProcessingError, EofStream, OSError)


class Exchange:
    """One request and its answer on one connection, which it gives back or breaks off, once."""

    def __init__(self, connection: OpenConnection, pool: ConnectionPool, on_end: Callable[[Exchange], None]) -> None:
        self.is_reused = connection.has_served
        self._connection = connection
        self._protocol = connection.protocol
        self._pool = pool
        self._on_end = on_end
        #: Bytes of the request that were written; those of a body in pieces are counted by its writer.
        self._written = 0
        self._writer: StreamWriter | None = None
        self._payload: StreamReader | None = None
        self._upload: asyncio.Task[None] | None = None
        self._upload_error: Exception | None = None
        self._ends_with_connection = False
        self._has_ended = False

    async def run(
        self, request: httpx.Request, head: bytes, length: int | None, timeouts: Timeouts
    ) -> tuple[RawResponseMessage, StreamReader]:
        """Send the request and wait for the head of the answer; the body may still be on its way when it comes."""
        self._protocol.set_response_params(
            skip_payload=request.method == "HEAD",
            read_until_eof=True,
            auto_decompress=False,
            read_timeout=timeouts.get("read"),
            read_bufsize=READ_BUFFER_BYTES,
        )
        body = small_body(request, length)
        if body is not None:
            head += body
        self._written = len(head)
        self._protocol.write(head)
        if body is not None:
            self._protocol.start_timeout()
        else:
            self._upload = asyncio.create_task(self._send_body(request, length, timeouts.get("write")))
        try:
            return await self._answer()
        except Exception:
            error, self._upload_error = self._upload_error, None
            if error is None:
                raise
            # Kept anywhere else, the error would keep this frame alive, and this frame the error.
            try:
                raise error from None
            finally:
                del error

    @property
    def was_stale(self) -> bool:
        """Whether the connection served before, and was then closed or reset without a byte of this answer."""
        error = self._protocol.exception()
        # With a part of the answer, that is its `message`.
        was_silent = isinstance(error, aiohttp.ServerDisconnectedError) and isinstance(error.message, str)
        return self.is_reused and (was_silent or isinstance(error, aiohttp.ClientOSError))

    @property
    def was_unheard(self) -> bool:
        """Whether the upstream closed the connection before a byte of the request had reached it."""
        written = self._written + (self._writer.output_size if self._writer is not None else 0)
        return self._protocol.was_unheard(written)

    async def _answer(self) -> tuple[RawResponseMessage, StreamReader]:
        try:
            message, payload = await self._protocol.read()
            while message.code < 200 and message.code != 101:
                # aiohttp takes an interim answer for the end of the silence.
                self._protocol.start_timeout()
                message, payload = await self._protocol.read()
        except _BREAKS as error:
            raise _in_httpx_words(error) from error
        if message.code == 101:
            raise httpx.RemoteProtocolError("The upstream changed the protocol without being asked to.")
        self._payload = payload
        has_length = message.chunked or "content-length" in message.headers or payload is EMPTY_PAYLOAD
        self._ends_with_connection = not has_length
        return message, payload

    async def _send_body(self, request: httpx.Request, length: int | None, limit: float | None) -> None:
        """Send the body as fast as the upstream takes it. What fails here fails the wait for the answer."""
        try:
            self._writer = writer = StreamWriter(self._protocol, asyncio.get_running_loop())
            if length is None:
                writer.enable_chunking()
            async with contextlib.aclosing(body_pieces(request.stream, length)) as pieces:
                async for piece in pieces:
                    await _write(writer, piece, limit)
            await _write(writer, None, limit)
            if self._payload is None:  # else the answer came first, and its own pieces drive the timeout
                self._protocol.start_timeout()
        except Exception as error:
            self._upload_error = error
            self._protocol.set_exception(error)

    async def read(self) -> bytes:
        """What has arrived of the body, at least a byte; none at its end."""
        assert self._payload is not None
        try:
            chunk = await self._payload.readany()
        except _BREAKS as error:
            raise _in_httpx_words(error) from error
        # The parser takes any end of the connection for the end of a body without a length; a reset is not one.
        if not chunk and self._ends_with_connection and isinstance(self._protocol.exception(), OSError):
            raise httpx.ReadError("The upstream broke off the connection.")
        return chunk

    async def finish(self) -> None:
        """End after the whole answer was read: the connection can serve again if the request left entirely."""
        sent = self._upload is None or self._upload.done()
        if self._has_ended or not sent or self._protocol.should_close:
            await self.break_off()
            return
        self._has_ended = True
        self._pool.give_back(self._connection)
        self._on_end(self)

    async def break_off(self) -> None:
        """End at once, whatever is still to be sent or read: the upstream sees the connection close."""
        if self._has_ended:
            return
        self._has_ended = True
        self._connection.drop()
        self._on_end(self)
        if self._payload is not None and not self._payload.is_eof():
            self._payload.set_exception(httpx.ReadError("The response was closed."))  # wakes who still reads it
        if self._upload is not None and not self._upload.done():
            self._upload.cancel()
            await asyncio.wait([self._upload])  # when this returns, the request's stream is not used any more


class ResponseBody(httpx.AsyncByteStream):
    """The raw bytes of an answer, as they come. Ending or closing it ends the exchange."""

    def __init__(self, exchange: Exchange, payload: StreamReader) -> None:
        self._exchange = exchange
        self._payload = payload

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            while chunk := await self._exchange.read():
                yield chunk
        except BaseException:
            await self._exchange.break_off()
            raise
        await self._exchange.finish()

    async def aclose(self) -> None:
        if self._payload.is_eof():
            await self._exchange.finish()
        else:
            await self._exchange.break_off()


async def _write(writer: StreamWriter, piece: memoryview | None, limit: float | None) -> None:
    """Send a piece, or the end for None, and wait until the upstream has taken so much that there is room for more."""
    try:
        if piece is not None:
            await writer.write(piece, drain=False)
            if not writer.protocol.writing_paused:
                # The system has taken it: there is nothing to wait for, and a timer takes as long as all the rest.
                return
        async with asyncio.timeout(limit):
            await (writer.drain() if piece is not None else writer.write_eof())
    except TimeoutError as error:
        raise httpx.WriteTimeout("The upstream takes no more of the request's body.") from error
    except OSError as error:
        raise httpx.WriteError("The upstream closed the connection while the request was sent.") from error


def _in_httpx_words(error: Exception) -> httpx.TransportError:
    """What went wrong after the request began to leave; no byte of the upstream's gets into the text."""
    # aiohttp's own objects keep the error, and its frames would keep them.
    error.__traceback__ = None
    if isinstance(error, aiohttp.SocketTimeoutError):
        return httpx.ReadTimeout("The upstream is silent.")
    if isinstance(error, HttpProcessingError):
        return httpx.RemoteProtocolError("The upstream's answer is not HTTP.")
    if isinstance(error, (aiohttp.ServerDisconnectedError, EofStream)):
        return httpx.RemoteProtocolError("The upstream closed the connection without an answer.")
    if isinstance(error, aiohttp.ClientPayloadError):
        return httpx.RemoteProtocolError("The upstream closed the connection in the middle of its answer.")
    return httpx.ReadError("The upstream broke off the connection.")
