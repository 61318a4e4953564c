"""Connections to the upstream, open ones first: the freshest, none that the upstream may be about to close."""

from __future__ import annotations

import asyncio
import fcntl
import functools
import ssl
import struct
import termios
from dataclasses import dataclass
from typing import Any, cast

import aiohttp
import httpx
import yarl
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.http import HttpProcessingError

from proxy.upstream.engine import Origin
from proxy.upstream.reply_reader import ReplyReader

#: fal's edge does not say how long it keeps an idle connection. What is idle for longer is closed, not used.
IDLE_SECONDS = 15.0
#: Old connections are closed, so that traffic follows changes of DNS.
MAX_AGE_SECONDS = 600.0
DNS_CACHE_SECONDS = 10


class _Heads(list[Any]):
    """The heads that were not read yet: one, mostly. aiohttp's deque takes 0.7 KiB while it is empty."""

    def popleft(self) -> Any:
        return self.pop(0)


class UpstreamProtocol(ResponseHandler):
    """aiohttp's protocol, which also tells how much was still unacknowledged when the upstream closed its side.

    Every segment of TCP acknowledges all that its sender has received. So bytes that are unacknowledged after the
    upstream's last segment had not reached it when it stopped to send: it has read none of them and can answer none.

    Attributes:
        unacknowledged_at_end: bytes, as they are on the wire; None if the connection is open, or was reset.
    """

    unacknowledged_at_end: int | None = None
    _reader: ReplyReader | None = None

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._buffer = _Heads()  # type: ignore[assignment]

    def write(self, data: bytes) -> None:
        """Send the first bytes of a request.

        Raises:
            ConnectError: the connection is closed, and nothing was sent.
        """
        transport = self.transport
        if transport is not None and not transport.is_closing():
            transport.write(data)
            if not transport.is_closing():
                return
        raise httpx.ConnectError("The upstream closed the connection before the request was sent.")

    def reply_reader(self) -> ReplyReader:
        """What reads the next reply instead of aiohttp's parser, once it is to begin."""
        if self._reader is None:
            assert self.transport is not None
            self._reader = ReplyReader(self._loop, self.transport)
        return self._reader

    def was_unheard(self, written: int) -> bool:
        """Whether the upstream closed the connection before it had any of the last `written` bytes."""
        return self.unacknowledged_at_end is not None and self.unacknowledged_at_end >= written

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        if reader is not None and reader.is_reading:
            reader.feed(data)
            return
        super().data_received(data)
        payload, error = self._payload, self._exception
        if isinstance(error, HttpProcessingError) and payload is not None and not payload.is_eof():
            # aiohttp wakes who waits for a head; who reads a body would wait forever.
            payload.set_exception(error)

    def connection_lost(self, error: BaseException | None) -> None:
        if self._reader is not None:
            self._reader.lose(error)
        super().connection_lost(error)

    def eof_received(self) -> None:
        if self.transport is not None:
            self.unacknowledged_at_end = _unacknowledged(self.transport)


def _unacknowledged(transport: asyncio.Transport) -> int:
    """Bytes that the other side's kernel has not confirmed (ioctl SIOCOUTQ); 0 where that cannot be asked."""
    sock = transport.get_extra_info("socket")
    try:
        (in_kernel,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0" * 4))
    except (OSError, AttributeError):
        return 0
    return int(in_kernel) + transport.get_write_buffer_size()


@dataclass(slots=True, eq=False)
class OpenConnection:
    """A connection in use or idle.

    Attributes:
        protocol: what reads from it.
        has_served: whether an answer came over it before.
    """

    connection: Connection
    protocol: UpstreamProtocol
    origin: Origin
    opened_at: float
    idle_since: float = 0.0
    has_served: bool = False

    @property
    def is_usable(self) -> bool:
        # What a server says unasked on an idle connection would be taken for the next answer.
        return self.protocol.is_connected() and not self.protocol.should_close

    def drop(self) -> None:
        """Close it now. `Connection.close` alone would first wait for the upstream to take what is unsent."""
        self.protocol.abort()
        self.connection.close()


class ConnectionPool:
    """Opens connections by aiohttp's connector (DNS, TCP, TLS), and keeps those that are idle itself.

    aiohttp's own pool hands out the connection that was idle for the longest, and keeps one that is in use forever.
    """

    def __init__(self, ssl_context: ssl.SSLContext, idle_seconds: float, max_age_seconds: float) -> None:
        self._ssl_context = ssl_context
        self._idle_seconds = idle_seconds
        self._max_age_seconds = max_age_seconds
        self._connector: aiohttp.TCPConnector | None = None
        self._destinations: dict[Origin, aiohttp.ClientRequest] = {}
        #: The freshest last.
        self._idle: dict[Origin, list[OpenConnection]] = {}
        self._sweeping: asyncio.TimerHandle | None = None

    def take_idle(self, origin: Origin) -> OpenConnection | None:
        """The freshest connection that has served, and is open and silent."""
        if idle := self._idle.get(origin):
            now = asyncio.get_running_loop().time()
            while idle:
                candidate = idle.pop()
                if candidate.is_usable and not self._is_stale(candidate, now):
                    return candidate
                candidate.drop()
        return None

    def give_back(self, used: OpenConnection) -> None:
        """Keep a connection for the next request, unless it is too old."""
        now = asyncio.get_running_loop().time()
        if now - used.opened_at >= self._max_age_seconds:
            used.drop()
            return
        used.has_served, used.idle_since = True, now
        self._idle.setdefault(used.origin, []).append(used)
        if self._sweeping is None:
            self._sweep_later()

    async def close(self) -> None:
        """Close what is idle, and open nothing more."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        for idle in self._idle.values():
            while idle:
                idle.pop().drop()
        if self._connector is not None:
            await self._connector.close()

    def _is_stale(self, candidate: OpenConnection, now: float) -> bool:
        is_old = now - candidate.opened_at >= self._max_age_seconds
        return is_old or now - candidate.idle_since >= self._idle_seconds

    def _sweep_later(self) -> None:
        self._sweeping = asyncio.get_running_loop().call_later(min(self._idle_seconds, 1.0), self._sweep)

    def _sweep(self) -> None:
        """Close what is idle for too long, or closed already."""
        now = asyncio.get_running_loop().time()
        for idle in self._idle.values():
            for candidate in idle:
                if not candidate.is_usable or self._is_stale(candidate, now):
                    candidate.drop()
            idle[:] = [candidate for candidate in idle if candidate.is_usable]
        self._sweeping = None
        if any(self._idle.values()):
            self._sweep_later()

    async def open(self, origin: Origin, limit: float | None) -> OpenConnection:
        """A new connection.

        Raises:
            ConnectError, ConnectTimeout: there is none, and nothing was sent.
        """
        destination = self._destination(origin)
        if self._connector is None:
            self._connector = self._new_connector()
        try:
            connection = await self._connector.connect(destination, [], aiohttp.ClientTimeout(connect=limit))
        except TimeoutError as error:
            raise httpx.ConnectTimeout("The upstream could not be reached in time.") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise httpx.ConnectError(f"The upstream cannot be reached: {error}") from error
        assert isinstance(connection.protocol, UpstreamProtocol)
        return OpenConnection(connection, connection.protocol, origin, asyncio.get_running_loop().time())

    def _new_connector(self) -> aiohttp.TCPConnector:
        connector = aiohttp.TCPConnector(
            limit=0,  # the transport bounds, so that waiting for a turn and connecting have a timeout each
            ssl=self._ssl_context,
            ttl_dns_cache=DNS_CACHE_SECONDS,
        )
        factory = functools.partial(UpstreamProtocol, loop=asyncio.get_running_loop())
        connector._factory = cast("functools.partial[ResponseHandler]", factory)
        return connector

    def _destination(self, origin: Origin) -> aiohttp.ClientRequest:
        """What the connector wants to know of a host; as many of them as there are upstream hosts."""
        if origin not in self._destinations:
            scheme, host, port = origin
            if scheme not in ("http", "https") or not host:
                raise httpx.UnsupportedProtocol("Only http:// and https:// URLs can be sent.")
            self._destinations[origin] = aiohttp.ClientRequest(
                "GET", yarl.URL.build(scheme=scheme, host=host, port=port), loop=asyncio.get_running_loop()
            )
        return self._destinations[origin]
