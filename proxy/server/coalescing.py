"""Writing to a connection once where the server writes twice, for as long as its peer reads, and closing it so that the
last answer arrives."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

#: More than this does not wait for what else is written: it is not the head of an answer.
WAITING_BYTES = 16 * 1024
#: How long a connection with an unread request stays half open. Closed at once, the system would reset it, and a reset
#: overtakes the answer (RFC 9112, section 9.6).
LINGER_SECONDS = 2.0
#: What may come, and is thrown away, behind a last answer.
MAX_DISCARDED_BYTES = 8 * 1024 * 1024
#: Of Linux; elsewhere only what waits in this process is watched.
_USER_TIMEOUT: int | None = getattr(socket, "TCP_USER_TIMEOUT", None)


_log = logging.getLogger(__name__)


class Outbox:
    """Sends what all connections of a listener wrote within one turn of the event loop, one behind the other.

    The system spends less on these calls than on as many between which requests are worked on: its peers are awake.

    Attributes:
        write_seconds: how long what is written may wait for the peer to take any of it.
    """

    def __init__(self, write_seconds: float) -> None:
        self.write_seconds = write_seconds
        self._call_soon = asyncio.get_running_loop().call_soon
        self._waiting: list[CoalescingTransport] = []

    def add(self, transport: CoalescingTransport) -> None:
        """Send what waits at a transport soon."""
        if not self._waiting:
            self._call_soon(self._send)
        self._waiting.append(transport)

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        for transport in waiting:
            try:
                transport.send_waiting()
            except Exception:
                # The others' answers are not to wait for it.
                _log.exception("answer not sent")
                transport.abort()


class CoalescingTransport:
    """A transport that sends what is written within one turn of the event loop in one go.

    uvicorn writes the head and the body of an answer each for itself, and each costs a call of the system that takes
    longer than most of what the proxy does for a poll.

    What waits in the system's buffer for a peer that takes nothing, or is out of reach, is for the system to watch
    (tcp(7), TCP_USER_TIMEOUT).

    Args:
        outbox: of the listener.

    Attributes:
        lingers: whether `close` waits for the peer to read the last answer; what the peer still sends is discarded.
    """

    def __init__(self, transport: asyncio.Transport, outbox: Outbox) -> None:
        self._transport = transport
        self._outbox = outbox
        self._waiting: list[bytes] = []
        self._bytes = self._discarded = 0
        self._closing: asyncio.TimerHandle | None = None
        self.lingers = False
        connection = transport.get_extra_info("socket")
        if _USER_TIMEOUT is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.IPPROTO_TCP, _USER_TIMEOUT, int(outbox.write_seconds * 1000))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._waiting:
            self._outbox.add(self)
        self._waiting.append(data)
        self._bytes += len(data)
        if self._bytes > WAITING_BYTES:
            self.send_waiting()

    def send_waiting(self) -> None:
        """Send what waits, unless the connection is closing."""
        if self._waiting:
            data = b"".join(self._waiting)
            self._waiting.clear()
            self._bytes = 0
            if not self.is_closing():
                self._transport.write(data)

    def is_closing(self) -> bool:
        return self._closing is not None or self._transport.is_closing()

    def close(self) -> None:
        self.send_waiting()
        if not self.lingers or self.is_closing():
            self._transport.close()
            return
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._transport.resume_reading()
        self._closing = asyncio.get_running_loop().call_later(LINGER_SECONDS, self._transport.close)

    def discard(self, size: int) -> None:
        """Read on for a moment behind a last answer, so that it arrives; a peer that sends without end is cut off."""
        self._discarded += size
        if self._discarded > MAX_DISCARDED_BYTES:
            self._transport.abort()
