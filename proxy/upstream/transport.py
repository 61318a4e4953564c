"""HTTP/1.1 to the upstream: httpx's transport interface over aiohttp's connector and response parser.

httpx is the interface, aiohttp the engine (docs/engine.md has the comparison). Only the connector (DNS, TCP, TLS) and
the protocol (parsing, flow control, read timeout) are used, not `ClientSession`: that one is half as fast, sends
idempotent calls again when a reused connection has died, adds headers of its own, and puts the request's headers into
its exceptions.

One rule for failures matters more than the others, because what may be repeated hangs on it:

    ConnectError, ConnectTimeout, PoolTimeout      no byte of this request has reached the upstream
    every other httpx.TransportError               some may have

Two requests are sent once more, on a new connection, and nothing else. Both had a connection that had served before: an
upstream may close an idle connection in the moment it is used again.

    a GET to which the upstream said nothing
    a request in memory of which provably nothing had reached the upstream (connections.py says how that is known)

The timeouts of `request.extensions["timeout"]` (seconds, or None for no limit):

    pool      waiting until fewer than `max_connections` requests are on their way
    connect   DNS, TCP and TLS together
    write     the upstream takes no more of the body
    read      the upstream says nothing: until the head of the answer, and between two pieces of its body
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping

import aiohttp
import httpx
from aiohttp.http import HttpProcessingError, RawResponseMessage, StreamWriter
from aiohttp.streams import EMPTY_PAYLOAD, EofStream, StreamReader

from proxy.upstream.connections import IDLE_SECONDS, MAX_AGE_SECONDS, ConnectionPool, OpenConnection

#: Far above what limits let in: a status stream holds one for each job that is followed.
MAX_CONNECTIONS = 20_000
# A body up to this size leaves together with the head; a larger one is sent in pieces of this size.
PIECE_BYTES = 64 * 1024
READ_BUFFER_BYTES = 64 * 1024

#: What aiohttp raises once a request has begun to leave.
_BREAKS = (aiohttp.ClientError, HttpProcessingError, EofStream, OSError)
Timeouts = Mapping[str, float | None]

Headers = list[tuple[bytes, bytes]]

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_HEAD = re.compile(_TOKEN + rb" [!-~\x80-\xff]+ HTTP/1\.1\r\n(?:" + _TOKEN + rb": [\t -~\x80-\xff]*\r\n)*\r\n")


class EngineTransport(httpx.AsyncBaseTransport):
    """Sends one request at a time per connection, exactly as it stands; usable in the loop that first uses it.

    No cookies, redirects, proxies from the environment, decompression or headers of its own.

    `max_connections` bounds the requests on their way. Connections are closed when idle for `idle_seconds`, and after
    the request that ends when they are `max_age_seconds` old.
    `ssl_context` defaults to httpx's, which verifies against certifi's list or `SSL_CERT_FILE`.
    """

    def __init__(
        self,
        *,
        max_connections: int = MAX_CONNECTIONS,
        idle_seconds: float = IDLE_SECONDS,
        max_age_seconds: float = MAX_AGE_SECONDS,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._slots = asyncio.Semaphore(max_connections)
        self._pool = ConnectionPool(ssl_context or _verifying_context(), idle_seconds, max_age_seconds)
        self._exchanges: set[_Exchange] = set()
        self._is_closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request; answer as soon as the response's head is here, its body still to be read.

        Raises: httpx.TransportError, by the rule at the head of this file; whatever the request's own stream raises.
        """
        headers = request.headers.raw
        head, length = _head(request, headers), _body_length(headers)
        timeouts: Timeouts = request.extensions.get("timeout", {})
        try:
            exchange, message, payload = await self._answered(request, head, length, timeouts)
        except _Stale:
            exchange, message, payload = await self._answered(request, head, length, timeouts, fresh=True)
        response = httpx.Response(
            message.code,
            headers=message.raw_headers,
            stream=_ResponseBody(exchange, payload),
            extensions={
                "http_version": b"HTTP/%d.%d" % message.version,
                "reason_phrase": message.reason.encode("latin-1", "replace"),
            },
        )
        # httpx would look for an encoding that fits all headers, each time.
        response.headers.encoding = "latin-1"
        return response

    async def aclose(self) -> None:
        """Break off what is on its way, close what is idle. The transport cannot be used again."""
        self._is_closed = True
        for exchange in list(self._exchanges):
            await exchange.break_off()
        await self._pool.close()

    async def _answered(
        self, request: httpx.Request, head: bytes, length: int | None, timeouts: Timeouts, *, fresh: bool = False
    ) -> tuple[_Exchange, RawResponseMessage, StreamReader]:
        """An exchange and the head of its answer; `fresh`: on a connection that has not served yet.

        Raises:
            _Stale: the connection had served, and closed; the request may be sent again.
        """
        exchange = await self._open(request.url, timeouts, fresh)
        try:
            message, payload = await exchange.run(request, head, length, timeouts)
        except BaseException as error:
            was_unheard = exchange.was_unheard
            is_repeated = exchange.was_stale and (request.method == "GET" or (was_unheard and _is_in_memory(request)))
            await exchange.break_off()
            if not isinstance(error, httpx.TransportError):
                raise
            if is_repeated:
                raise _Stale from None
            if was_unheard:
                raise httpx.ConnectError("The upstream closed the connection before the request reached it.") from None
            raise
        return exchange, message, payload

    async def _open(self, url: httpx.URL, timeouts: Timeouts, fresh: bool) -> _Exchange:
        if self._is_closed:
            raise RuntimeError("The transport is closed.")
        await self._take_slot(timeouts.get("pool"))
        try:
            connection = await self._pool.take(url, timeouts.get("connect"), fresh=fresh)
        except BaseException:
            self._slots.release()
            raise
        exchange = _Exchange(connection, self._pool, self._end)
        self._exchanges.add(exchange)
        return exchange

    def _end(self, exchange: _Exchange) -> None:
        self._exchanges.remove(exchange)
        self._slots.release()

    async def _take_slot(self, limit: float | None) -> None:
        if not self._slots.locked():
            await self._slots.acquire()
            return
        try:
            async with asyncio.timeout(limit):
                await self._slots.acquire()
        except TimeoutError as error:
            raise httpx.PoolTimeout("Too many requests are on their way to the upstream.") from error


class _Stale(Exception):
    """An idle connection was closed in the moment it was used again."""


class _Exchange:
    """One request and its answer on one connection, which it gives back or breaks off, once."""

    def __init__(self, connection: OpenConnection, pool: ConnectionPool, on_end: Callable[[_Exchange], None]) -> None:
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
        transport = self._protocol.transport
        if transport is None or transport.is_closing():
            raise httpx.ConnectError("The upstream closed the connection before the request was sent.")
        self._protocol.set_response_params(
            skip_payload=request.method == "HEAD",
            read_until_eof=True,
            auto_decompress=False,
            read_timeout=timeouts.get("read"),
            read_bufsize=READ_BUFFER_BYTES,
        )
        body = _small_body(request, length)
        if body is not None:
            head += body
        self._written = len(head)
        transport.write(head)
        if transport.is_closing():
            raise httpx.ConnectError("The upstream closed the connection before the request was sent.")
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
        unacknowledged = self._protocol.unacknowledged_at_end
        written = self._written + (self._writer.output_size if self._writer is not None else 0)
        return unacknowledged is not None and unacknowledged >= written

    async def _answer(self) -> tuple[RawResponseMessage, StreamReader]:
        try:
            message, payload = await self._protocol.read()
            while message.code < 200 and message.code != 101:
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
            async with contextlib.aclosing(_pieces(request.stream, length)) as pieces:
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


class _ResponseBody(httpx.AsyncByteStream):
    """The raw bytes of an answer, as they come. Ending or closing it ends the exchange."""

    def __init__(self, exchange: _Exchange, payload: StreamReader) -> None:
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


def _verifying_context() -> ssl.SSLContext:
    context = httpx.create_ssl_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _head(request: httpx.Request, headers: Headers) -> bytes:
    target: bytes = request.extensions.get("target", request.url.raw_path)
    lines = [b"%b %b HTTP/1.1\r\n" % (request.method.encode("ascii"), target)]
    lines += [b"%b: %b\r\n" % header for header in headers]
    head = b"".join(lines) + b"\r\n"
    # The count catches what is well-formed only because one of the parts holds a line of its own.
    if not _HEAD.fullmatch(head) or head.count(b"\n") != len(lines) + 1:
        raise httpx.LocalProtocolError("The request's method, path or headers hold a character that may not be sent.")
    return head


def _body_length(headers: Headers) -> int | None:
    """Bytes of the body by its headers; None if it goes in chunks."""
    lengths = [value for name, value in headers if name.lower() == b"content-length"]
    codings = [value for name, value in headers if name.lower() == b"transfer-encoding"]
    if codings == [b"chunked"] and not lengths:
        return None
    if codings or len(lengths) > 1 or not all(length.isdigit() for length in lengths):
        raise httpx.LocalProtocolError("The request's headers do not say where its body ends.")
    return int(lengths[0]) if lengths else 0


def _is_in_memory(request: httpx.Request) -> bool:
    return isinstance(request.stream, httpx.ByteStream)


def _small_body(request: httpx.Request, length: int | None) -> bytes | None:
    """The body, if it is in memory and small enough to leave together with the head."""
    if not _is_in_memory(request):
        return None
    assert isinstance(request.stream, httpx.ByteStream)
    body = b"".join(request.stream)
    return body if len(body) == length and length <= PIECE_BYTES else None


async def _pieces(stream: object, length: int | None) -> AsyncGenerator[memoryview, None]:
    """The body in pieces of at most PIECE_BYTES; an error if it is not as long as its header says."""
    assert isinstance(stream, httpx.AsyncByteStream)
    sent = 0
    async for chunk in stream:
        sent += len(chunk)
        if length is not None and sent > length:
            raise httpx.LocalProtocolError("The request's body is longer than its content-length.")
        for start in range(0, len(chunk), PIECE_BYTES):
            yield memoryview(chunk)[start : start + PIECE_BYTES]
    if length is not None and sent < length:
        raise httpx.LocalProtocolError("The request's body is shorter than its content-length.")


async def _write(writer: StreamWriter, piece: memoryview | None, limit: float | None) -> None:
    """Send a piece, or the end for None, and wait until the upstream has taken so much that there is room for more."""
    try:
        async with asyncio.timeout(limit):
            if piece is None:
                await writer.write_eof()
            else:
                await writer.write(piece, drain=False)
                await writer.drain()
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
