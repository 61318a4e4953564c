"""One connection to the upstream: writes requests, and knows how much of them had arrived when it was closed."""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios
from typing import cast

import httpx

from proxy.upstream.engine import Origin
from proxy.upstream.reply_reader import ReplyReader


class Connection(asyncio.Protocol):
    """A connection in use or idle. When the upstream closes it, it knows how many bytes had not arrived.

    Every TCP segment acknowledges all that its sender has received. Bytes that are still unacknowledged after the
    upstream's last segment had not arrived when it stopped sending, so it cannot have acted on them.

    Attributes:
        reader: reads one reply after another from it.
        has_served: whether it has brought a reply before.
        idle_since, opened_at: times of the event loop.
        unacknowledged_at_end: bytes on the wire; None if the connection is open, or was reset.
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
        """Whether it can send a request: what came unasked on an idle one would be taken for the next reply."""
        return not self.reader.is_spoiled and not self._transport.is_closing()

    def write(self, data: bytes) -> None:
        """Send the first bytes of a request.

        Raises:
            ConnectError: the connection is closed; nothing was sent.
        """
        transport = self._transport
        if not transport.is_closing():
            transport.write(data)
            if not transport.is_closing():
                return
        raise httpx.ConnectError("The upstream closed the connection before the request was sent.")

    async def write_more(self, data: bytes | memoryview, limit: float | None) -> None:
        """Send more bytes, and wait until there is room for the next ones.

        Args:
            limit: seconds for which the upstream may take nothing; None for any number.

        Raises:
            WriteError: the connection is closed.
            WriteTimeout: the limit has passed.
        """
        if not self._transport.is_closing():
            self._transport.write(data)
            # Mostly the system takes all at once; a timer for nothing would cost as much as the rest.
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
        """Close it at once; what is still unsent is lost."""
        self._transport.abort()

    # The event loop calls these.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not subclasses of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self.reader = ReplyReader(self._loop, self._transport)

    def data_received(self, data: bytes) -> None:
        self.reader.feed(data)

    def eof_received(self) -> None:
        self.unacknowledged_at_end = _count_unacknowledged(self._transport)

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


def _count_unacknowledged(transport: asyncio.Transport) -> int:
    """Count the bytes that the other side has not acknowledged (ioctl SIOCOUTQ, tcp(7)); 0 where that is not known."""
    sock = transport.get_extra_info("socket")
    try:
        (in_kernel,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0" * 4))
    except (OSError, AttributeError):
        return 0
    return int(in_kernel) + transport.get_write_buffer_size()
