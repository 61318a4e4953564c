"""Connections to the upstream, open ones first: the freshest, none that the upstream may be about to close."""

from __future__ import annotations

import asyncio
import fcntl
import ssl
import struct
import termios
from functools import partial
from typing import cast

import httpx

from proxy.upstream.connector import CheckAddress, Connector
from proxy.upstream.engine import Origin
from proxy.upstream.reply_reader import ReplyReader

#: fal's edge does not say how long it keeps an idle connection. What is idle for longer is closed, not used.
IDLE_SECONDS = 15.0
#: Old connections are closed, so that traffic follows changes of DNS.
MAX_AGE_SECONDS = 600.0


class Connection(asyncio.Protocol):
    """A connection in use or idle, which also tells how much was unacknowledged when the upstream closed its side.

    Every segment of TCP acknowledges all that its sender has received. So bytes that are unacknowledged after the
    upstream's last segment had not reached it when it stopped to send: it has read none of them and can answer none.

    Attributes:
        reader: reads one reply after another from it.
        has_served: whether a reply came over it before.
        unacknowledged_at_end: bytes, as they are on the wire; None if the connection is open, or was reset.
    """

    __slots__ = (
        "_is_full",
        "_loop",
        "_room",
        "_transport",
        "has_served",
        "idle_since",
        "opened_at",
        "origin",
        "reader",
        "unacknowledged_at_end",
    )

    _transport: asyncio.Transport
    reader: ReplyReader

    def __init__(self, loop: asyncio.AbstractEventLoop, origin: Origin) -> None:
        self._loop = loop
        self.origin = origin
        self.opened_at = self.idle_since = loop.time()
        self.has_served = False
        self.unacknowledged_at_end: int | None = None
        self._is_full = False
        self._room: asyncio.Future[None] | None = None

    @property
    def is_usable(self) -> bool:
        # What a server says unasked on an idle connection would be taken for the next reply.
        return not self.reader.is_spoiled and not self._transport.is_closing()

    def write(self, data: bytes) -> None:
        """Send the first bytes of a request.

        Raises:
            ConnectError: the connection is closed, and nothing was sent.
        """
        transport = self._transport
        if not transport.is_closing():
            transport.write(data)
            if not transport.is_closing():
                return
        raise httpx.ConnectError("The upstream closed the connection before the request was sent.")

    async def write_more(self, data: bytes | memoryview, limit: float | None) -> None:
        """Send more bytes, and wait until the upstream has taken so much that there is room for more.

        Raises:
            WriteError: the connection is closed.
            WriteTimeout: the upstream has not taken them for `limit` seconds.
        """
        if not self._transport.is_closing():
            self._transport.write(data)
            # Mostly the system has taken it: there is nothing to wait for, and a timer takes as long as all the rest.
            if self._is_full:
                await self._wait_for_room(limit)
        if self._transport.is_closing():
            raise httpx.WriteError("The upstream closed the connection while the request was sent.")

    async def _wait_for_room(self, limit: float | None) -> None:
        self._room = self._loop.create_future()
        try:
            async with asyncio.timeout(limit):
                await self._room
        except TimeoutError as error:
            raise httpx.WriteTimeout("The upstream takes no more of the request's body.") from error
        finally:
            self._room = None

    def was_unheard(self, written: int) -> bool:
        """Return whether the upstream closed the connection before it had any of the last `written` bytes."""
        return self.unacknowledged_at_end is not None and self.unacknowledged_at_end >= written

    def drop(self) -> None:
        """Close it now, also if the upstream has not taken what is unsent."""
        self._transport.abort()

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports inherit nothing of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self.reader = ReplyReader(self._loop, self._transport)

    def data_received(self, data: bytes) -> None:
        self.reader.feed(data)

    def eof_received(self) -> None:
        self.unacknowledged_at_end = _unacknowledged(self._transport)

    def connection_lost(self, error: BaseException | None) -> None:
        self.reader.lose(error)
        self._find_room()

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        self._find_room()

    def _find_room(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)


def _unacknowledged(transport: asyncio.Transport) -> int:
    """Bytes that the other side's kernel has not confirmed (ioctl SIOCOUTQ); 0 where that cannot be asked."""
    sock = transport.get_extra_info("socket")
    try:
        (in_kernel,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0" * 4))
    except (OSError, AttributeError):
        return 0
    return int(in_kernel) + transport.get_write_buffer_size()


class ConnectionPool:
    """Opens connections, and keeps those that are idle."""

    def __init__(
        self,
        ssl_context: ssl.SSLContext,
        idle_seconds: float,
        max_age_seconds: float,
        check_address: CheckAddress | None,
    ) -> None:
        self._connector = Connector(ssl_context, check_address)
        self._idle_seconds = idle_seconds
        self._max_age_seconds = max_age_seconds
        #: The freshest last.
        self._idle: dict[Origin, list[Connection]] = {}
        self._sweeping: asyncio.TimerHandle | None = None
        self._is_closed = False

    def take_idle(self, origin: Origin) -> Connection | None:
        """Take the freshest connection that has served, and is open and silent."""
        if idle := self._idle.get(origin):
            now = asyncio.get_running_loop().time()
            while idle:
                candidate = idle.pop()
                if candidate.is_usable and not self._is_stale(candidate, now):
                    return candidate
                candidate.drop()
        return None

    def give_back(self, used: Connection) -> None:
        """Keep a connection for the next request, unless it is too old, or there is none."""
        now = asyncio.get_running_loop().time()
        if self._is_closed or now - used.opened_at >= self._max_age_seconds:
            used.drop()
            return
        used.has_served, used.idle_since = True, now
        self._idle.setdefault(used.origin, []).append(used)
        if self._sweeping is None:
            self._sweep_later()

    def close(self) -> None:
        """Close what is idle, and open nothing more."""
        self._is_closed = True
        if self._sweeping is not None:
            self._sweeping.cancel()
        for idle in self._idle.values():
            while idle:
                idle.pop().drop()

    def _is_stale(self, candidate: Connection, now: float) -> bool:
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

    async def open(self, origin: Origin, limit: float | None) -> Connection:
        """Open a new connection.

        Raises:
            ConnectError, ConnectTimeout: there is none, and nothing was sent.
            ValueError: its address may not be connected to.
        """
        scheme, host, port = origin
        if scheme not in ("http", "https") or not host:
            raise httpx.UnsupportedProtocol("Only http:// and https:// URLs can be sent.")
        make = partial(Connection, asyncio.get_running_loop(), origin)
        try:
            async with asyncio.timeout(limit):
                connection = await self._connector.connect(scheme, host, port, make)
        except TimeoutError as error:
            raise httpx.ConnectTimeout("The upstream could not be reached in time.") from error
        except (OSError, UnicodeError) as error:
            raise httpx.ConnectError(f"The upstream cannot be reached: {error}") from error
        if self._is_closed:
            connection.drop()
            raise httpx.ConnectError("The transport is closed.")
        return connection
