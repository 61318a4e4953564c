"""HTTP/1.1 to the upstream: httpx's transport interface over aiohttp's connector and response parser.

httpx is the interface, aiohttp the engine (docs/engine.md has the comparison). Only the connector (DNS, TCP, TLS) and
the protocol (parsing, flow control, read timeout) are used, not `ClientSession`: that one is half as fast, sends
idempotent calls again when a reused connection has died, adds headers of its own, and puts the request's headers into
its exceptions. Replies to requests in memory take a shorter way over the same connections (reply_reader.py).

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
import ssl

import httpx
from aiohttp.http import RawResponseMessage
from aiohttp.streams import StreamReader

from proxy.upstream.connections import IDLE_SECONDS, MAX_AGE_SECONDS, ConnectionPool, OpenConnection
from proxy.upstream.engine import Engine, Origin, Reply, Request, StreamedReply, Timeouts, from_httpx
from proxy.upstream.exchange import Exchange, ResponseBody
from proxy.upstream.reply_reader import ReplyReader
from proxy.upstream.request_bytes import body_length, encode_head, encode_whole, is_in_memory
from proxy.upstream.streamed_body import StreamedBody

#: Far above what limits let in: a status stream holds one for each job that is followed.
MAX_CONNECTIONS = 20_000


class EngineTransport(Engine, httpx.AsyncBaseTransport):
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
        self._exchanges: set[Exchange] = set()
        #: Those that await a whole reply, or the head of a streamed one; the bodies of those that have one.
        self._readers: set[ReplyReader] = set()
        self._bodies: dict[StreamedBody, OpenConnection] = {}
        self._is_closed = False

    async def fetch(self, request: Request) -> Reply:
        """Send a request and read its reply as `reply_reader.py` does, unless the request leaves in pieces.

        Raises: as `Engine.fetch`.
        """
        data = encode_whole(request)
        if data is None:
            return await super().fetch(request)
        try:
            return await self._fetch(request, data, fresh=False)
        except _Stale:
            return await self._fetch(request, data, fresh=True)

    async def open(self, request: Request) -> StreamedReply:
        """Send a request and read the head of its reply by the same way as `fetch`.

        Raises: as `Engine.open`.
        """
        data = encode_whole(request)
        if data is None:
            return await super().open(request)
        try:
            return await self._open(request, data, fresh=False)
        except _Stale:
            return await self._open(request, data, fresh=True)

    async def send(self, request: httpx.Request) -> StreamedReply:
        return from_httpx(await self.handle_async_request(request))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request; answer as soon as the response's head is here, its body still to be read.

        Raises: httpx.TransportError, by the rule at the head of this file; whatever the request's own stream raises.
        """
        headers = request.headers.raw
        head, length = encode_head(request, headers), body_length(headers)
        timeouts: Timeouts = request.extensions.get("timeout", {})
        try:
            exchange, message, payload = await self._answered(request, head, length, timeouts)
        except _Stale:
            exchange, message, payload = await self._answered(request, head, length, timeouts, fresh=True)
        response = httpx.Response(
            message.code,
            headers=message.raw_headers,
            stream=ResponseBody(exchange, payload),
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
        for reader in self._readers:
            reader.fail(httpx.ReadError("The response was closed."))
        for body in list(self._bodies):
            await body.aclose()
        await self._pool.close()

    async def _answered(
        self, request: httpx.Request, head: bytes, length: int | None, timeouts: Timeouts, *, fresh: bool = False
    ) -> tuple[Exchange, RawResponseMessage, StreamReader]:
        """An exchange and the head of its answer; `fresh`: on a connection that has not served yet.

        Raises:
            _Stale: the connection had served, and closed; the request may be sent again.
        """
        url = request.url
        connection = await self._take((url.scheme, url.raw_host.decode("ascii"), url.port), timeouts, fresh)
        exchange = Exchange(connection, self._pool, self._end)
        self._exchanges.add(exchange)
        try:
            message, payload = await exchange.run(request, head, length, timeouts)
        except BaseException as error:
            was_unheard = exchange.was_unheard
            is_repeated = exchange.was_stale and (request.method == "GET" or (was_unheard and is_in_memory(request)))
            await exchange.break_off()
            if not isinstance(error, httpx.TransportError):
                raise
            raise _judge(error, is_repeated, was_unheard) from None
        return exchange, message, payload

    async def _fetch(self, request: Request, data: bytes, *, fresh: bool) -> Reply:
        """The reply of one attempt.

        Raises:
            _Stale: as `_answered`.
        """
        connection = await self._take(request.host.origin, request.timeouts, fresh)
        reply = await self._exchange(connection, request, data)
        self._end_use(connection, True)
        return reply

    async def _open(self, request: Request, data: bytes, *, fresh: bool) -> StreamedReply:
        """The streamed reply of one attempt.

        Raises:
            _Stale: as `_answered`.
        """
        connection = await self._take(request.host.origin, request.timeouts, fresh)
        body = StreamedBody(connection.protocol.reply_reader(), self)
        status, headers, *_ = await self._exchange(connection, request, data, body)
        self._bodies[body] = connection
        return StreamedReply(status, headers, body)

    async def _exchange(
        self, connection: OpenConnection, request: Request, data: bytes, streamed: StreamedBody | None = None
    ) -> Reply:
        """Send a request over a connection, and wait for its reply, or for the head of one whose body is streamed.

        Raises:
            _Stale: as `_answered`.
        """
        protocol = connection.protocol
        reader = protocol.reply_reader()
        self._readers.add(reader)
        try:
            protocol.write(data)
            return await reader.begin(request.timeouts.get("read"), streamed)
        except BaseException as error:
            self._end_use(connection, False)
            if not isinstance(error, httpx.TransportError):
                raise
            was_unheard = protocol.was_unheard(len(data))
            was_stale = connection.has_served and reader.was_closed
            raise _judge(error, was_stale and (was_unheard or request.method == "GET"), was_unheard) from None
        finally:
            self._readers.remove(reader)

    def end_stream(self, body: StreamedBody, *, is_whole: bool) -> None:
        """Take back the connection of a body."""
        self._end_use(self._bodies.pop(body), is_whole)

    def _end_use(self, connection: OpenConnection, is_whole: bool) -> None:
        """Keep a connection over which a whole reply has come, or close it."""
        self._slots.release()
        if is_whole and not connection.protocol.reply_reader().is_spoiled:
            self._pool.give_back(connection)
        else:
            connection.drop()

    async def _take(self, origin: Origin, timeouts: Timeouts, fresh: bool) -> OpenConnection:
        """A place among the requests on their way, and a connection; `fresh`: one that has not served yet."""
        if self._is_closed:
            raise RuntimeError("The transport is closed.")
        await self._take_slot(timeouts.get("pool"))
        if not fresh and (connection := self._pool.take_idle(origin)) is not None:
            return connection
        try:
            return await self._pool.open(origin, timeouts.get("connect"))
        except BaseException:
            self._slots.release()
            raise

    def _end(self, exchange: Exchange) -> None:
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


def _judge(error: httpx.TransportError, is_repeated: bool, was_unheard: bool) -> Exception:
    """What a failed attempt is to who made it."""
    if is_repeated:
        return _Stale()
    if was_unheard:
        return httpx.ConnectError("The upstream closed the connection before the request reached it.")
    return error


def _verifying_context() -> ssl.SSLContext:
    context = httpx.create_ssl_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
