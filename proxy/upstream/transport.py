"""HTTP/1.1 to the upstream, over connections of its own (docs/engine.md compares it with other engines).

The class of a failure says whether the request can be repeated:

    ConnectError, ConnectTimeout, PoolTimeout      no byte of this request has reached the upstream
    every other httpx.TransportError               some may have

An upstream may close an idle connection at the moment it is used again. So two kinds of request are sent once more, on
a new connection, if theirs had served before:

    a GET to which the upstream sent nothing
    a request in memory of which provably nothing had reached the upstream (`connection.py` says how that is known)

The timeouts of `request.extensions["timeout"]` (seconds, or None for no limit):

    pool      waiting until fewer than `max_connections` requests are on their way
    connect   DNS, TCP and TLS together
    write     while the upstream takes no more of the body
    read      while the upstream sends nothing: until the head of the answer, and between two pieces of its body
"""

from __future__ import annotations

import asyncio
import ssl
from typing import NamedTuple

import httpx

from proxy.upstream.connection import Connection
from proxy.upstream.connection_pool import IDLE_SECONDS, MAX_AGE_SECONDS, ConnectionPool
from proxy.upstream.connector import CheckAddress, LookUp
from proxy.upstream.engine import Engine, Origin, PhaseTimeouts, Reply, Request, StreamedReply
from proxy.upstream.reply_reader import ReplyReader
from proxy.upstream.request_body import EarlyBody, RequestBody
from proxy.upstream.request_bytes import body_length, encode_head, encode_whole, origin_of, small_body
from proxy.upstream.streamed_body import StreamedBody

#: Far above what the limits of calls let in: each job that is followed holds one for its status stream.
MAX_CONNECTIONS = 20_000


class _Sending(NamedTuple):
    """A request as it leaves.

    Attributes:
        data: the whole request, or its head if it has a `body`.
        body: leaves in pieces behind the head.
    """

    method: str
    origin: Origin
    timeouts: PhaseTimeouts
    data: bytes
    body: RequestBody | None = None


class EngineTransport(Engine):
    """Sends requests exactly as they stand, one at a time over each connection.

    It has no cookies, redirects, proxies from the environment or headers of its own, and decompresses nothing. It
    belongs to the event loop that first uses it.

    Args:
        max_connections: requests that may be on their way at once.
        idle_seconds, max_age_seconds: after which connections are closed; a request in use ends first.
        ssl_context: httpx's by default, which verifies against certifi's list or `SSL_CERT_FILE`.
        check_address: may refuse an address by a ValueError before it is connected to.
        look_up: finds the addresses of a host; the event loop does, if unset.
    """

    def __init__(
        self,
        *,
        max_connections: int = MAX_CONNECTIONS,
        idle_seconds: float = IDLE_SECONDS,
        max_age_seconds: float = MAX_AGE_SECONDS,
        ssl_context: ssl.SSLContext | None = None,
        check_address: CheckAddress | None = None,
        look_up: LookUp | None = None,
    ) -> None:
        self._slots = asyncio.Semaphore(max_connections)
        context = ssl_context or _verifying_context()
        self._pool = ConnectionPool(context, idle_seconds, max_age_seconds, check_address, look_up)
        #: Await a whole reply, or the head of a streamed one.
        self._readers: set[ReplyReader] = set()
        #: Streamed bodies that are not read to their end.
        self._bodies: dict[StreamedBody, Connection] = {}
        self._is_closed = False

    async def fetch(self, request: Request) -> Reply:
        data = encode_whole(request)
        if data is None:
            return await super().fetch(request)
        sending = _Sending(request.method, request.host.origin, request.timeouts, data)
        try:
            return await self._fetch(sending, fresh=False)
        except _Stale:
            return await self._fetch(sending, fresh=True)

    async def open(self, request: Request) -> StreamedReply:
        data = encode_whole(request)
        if data is None:
            return await super().open(request)
        return await self._open_twice(_Sending(request.method, request.host.origin, request.timeouts, data))

    async def send(self, request: httpx.Request) -> StreamedReply:
        headers = request.headers.raw
        head, length = encode_head(request, headers), body_length(headers)
        small = small_body(request, length)
        body = RequestBody(request, length) if small is None else None
        timeouts = request.extensions.get("timeout", {})
        return await self._open_twice(
            _Sending(request.method, origin_of(request), timeouts, head + (small or b""), body)
        )

    async def aclose(self) -> None:
        """Break off requests on their way, and close idle connections. The transport cannot be used again."""
        self._is_closed = True
        for reader in self._readers:
            reader.fail(httpx.ReadError("The response was closed."))
        for body in list(self._bodies):
            await body.aclose()
        self._pool.close()

    async def _open_twice(self, sending: _Sending) -> StreamedReply:
        try:
            return await self._open(sending, fresh=False)
        except _Stale:
            return await self._open(sending, fresh=True)

    async def _fetch(self, sending: _Sending, *, fresh: bool) -> Reply:
        """Make one attempt at a whole reply.

        Args:
            fresh: whether to use a connection that has not served yet.

        Raises:
            _Stale: the connection had served before, and closed; the request may be sent again.
        """
        connection = await self._take(sending, fresh)
        reply = await self._exchange(connection, sending)
        self._end_use(connection, True)
        return reply

    async def _open(self, sending: _Sending, *, fresh: bool) -> StreamedReply:
        """Make one attempt at a streamed reply, with the arguments and errors of `_fetch`."""
        connection = await self._take(sending, fresh)
        if sending.body is None:
            body = StreamedBody(connection.reader, self)
        else:
            body = EarlyBody(connection.reader, self, sending.body)
        status, headers, *_ = await self._exchange(connection, sending, body)
        self._bodies[body] = connection
        return StreamedReply(status, headers, body)

    async def _exchange(self, connection: Connection, sending: _Sending, streamed: StreamedBody | None = None) -> Reply:
        """Send a request over a connection, and wait for its reply, or only for its head if the body is `streamed`.

        Raises:
            _Stale: as `_fetch`.
        """
        method, _, timeouts, data, body = sending
        reader = connection.reader
        self._readers.add(reader)
        try:
            connection.write(data)
            if body is None:
                return await reader.begin(timeouts.get("read"), streamed)
            body.begin(connection)
            # Until the body has left, the upstream may be silent. A variable for the future would keep its error alive.
            reply = await reader.begin(None, streamed)
            reader.limit_silence(timeouts.get("read"))
            return reply
        except BaseException as error:
            self._end_use(connection, False)
            if body is not None:
                await body.end()
            if not isinstance(error, httpx.TransportError):
                raise
            was_unheard = connection.was_unheard(len(data) + (0 if body is None else body.written))
            was_stale = connection.has_served and reader.was_closed
            could_repeat = method == "GET" or (was_unheard and (body is None or body.is_in_memory))
            raise _judge(error, was_stale and could_repeat, was_unheard) from None
        finally:
            self._readers.remove(reader)

    def end_stream(self, body: StreamedBody, *, is_whole: bool) -> None:
        """Take back the connection of a streamed body."""
        self._end_use(self._bodies.pop(body), is_whole)

    def _end_use(self, connection: Connection, is_whole: bool) -> None:
        """Keep a connection after a whole reply, else close it."""
        self._slots.release()
        if is_whole and not connection.reader.is_spoiled:
            self._pool.give_back(connection)
        else:
            connection.drop()

    async def _take(self, sending: _Sending, fresh: bool) -> Connection:
        """Wait for a place among the requests on their way, and take an idle connection or open a `fresh` one."""
        _, origin, timeouts, *_ = sending
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
    """An idle connection was closed at the moment it was used again."""


def _judge(error: httpx.TransportError, is_repeated: bool, was_unheard: bool) -> Exception:
    """Return what a failed attempt raises."""
    if is_repeated:
        return _Stale()
    if was_unheard:
        return httpx.ConnectError("The upstream closed the connection before the request reached it.")
    return error


def _verifying_context() -> ssl.SSLContext:
    context = httpx.create_ssl_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
