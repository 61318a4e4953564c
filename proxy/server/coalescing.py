"""A transport that sends what is written within one turn of the event loop at once, and closes so that the last answer
arrives.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

#: More than this is sent without waiting for what is written next.
WAITING_BYTES = 16 * 1024
#: How long a connection with an unread request stays half open. If it were closed at once, the system would reset it,
#: and the peer might lose the answer (RFC 9112, section 9.6).
LINGER_SECONDS = 2.0
#: How many bytes a peer may still send behind its last answer. They are thrown away.
MAX_DISCARDED_BYTES = 8 * 1024 * 1024
#: Linux has it. Elsewhere only bytes that wait in this process are watched.
_USER_TIMEOUT: int | None = getattr(socket, "TCP_USER_TIMEOUT", None)


_log = logging.getLogger(__name__)


class Outbox:
    """Sends what all connections of a listener wrote within one turn of the event loop, one after the other.

    The system spends less on calls in a row than on as many between which requests are worked on.

    Attributes:
        write_seconds: how long a peer may take nothing of what was written to it.
    """

    def __init__(self, write_seconds: float) -> None:
        self.write_seconds = write_seconds
        self._call_soon = asyncio.get_running_loop().call_soon
        self._waiting: list[CoalescingTransport] = []

    def add(self, transport: CoalescingTransport) -> None:
        """Send what waits at a transport at the end of this turn of the event loop."""
        if not self._waiting:
            self._call_soon(self._send)
        self._waiting.append(transport)

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        for transport in waiting:
            try:
                transport.send_waiting()
            except Exception:
                # The other connections still get their answers.
                _log.exception("answer not sent")
                transport.abort()


class CoalescingTransport:
    """Sends what is written within one turn of the event loop with one call of the system.

    The head and the body of an answer are written one by one, and a call of the system for each would take longer than
    most of what the proxy does for a poll.

    The system watches the peer: if it takes nothing of what is in the system's buffer, or is out of reach, the
    connection ends (tcp(7), TCP_USER_TIMEOUT).

    Args:
        outbox: of the listener.

    Attributes:
        lingers: whether `close` waits until the peer has read the last answer, and discards what it still sends.
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
        """Count bytes that came behind the last answer and are not wanted; a peer that sends too many is cut off."""
        self._discarded += size
        if self._discarded > MAX_DISCARDED_BYTES:
            self._transport.abort()
