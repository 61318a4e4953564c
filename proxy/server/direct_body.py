"""The rest of a large body, read past the parser and without a copy.

There is nothing to parse in a body whose length is known. So a connection reads what is left of a large one into
buffers of its own, never beyond its end, and the application gets views of these.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from proxy.server.coalescing import CoalescingTransport

#: A body of which more than this is left is read directly; what it takes to begin does not pay for less.
LEAST_DIRECT_BYTES = 1024 * 1024
#: What is read at once: a large buffer saves calls of the system, and both sides of a connection wake up less often.
LARGE_BYTES = 1024 * 1024
#: Large buffers of all bodies together; while all are in use, what comes is read into small ones.
MOST_LARGE = 8
SMALL_BYTES = 256 * 1024


class BodyBuffers:
    """The buffers of all bodies. One is in use while there is a view of it, so a body that waits has none.

    Attributes:
        bodies: how many are read directly now.
    """

    def __init__(self) -> None:
        self.bodies = 0
        self._large: list[bytearray] = []

    def begin(self) -> None:
        self.bodies += 1

    def end(self) -> None:
        self.bodies -= 1
        if not self.bodies:
            self._large.clear()

    def take(self) -> bytearray:
        """Take a buffer that is not in use."""
        for buffer in self._large:
            if _is_free(buffer):
                return buffer
        if len(self._large) >= MOST_LARGE:
            return bytearray(SMALL_BYTES)
        buffer = bytearray(LARGE_BYTES)
        self._large.append(buffer)
        return buffer


def _is_free(buffer: bytearray) -> bool:
    """Return whether no view of a buffer exists: its size cannot change while one does (`memoryview.release`)."""
    try:
        last = buffer.pop()
    except BufferError:
        return False
    buffer.append(last)
    return True


class Connection(Protocol):
    """A connection as `DirectBody` sees it.

    Attributes:
        body_left: bytes of the body that are still to come.
    """

    body_left: int
    transport: CoalescingTransport

    @property
    def is_discarding(self) -> bool:
        """Whether nothing more is read, as the last answer is on its way."""

    def on_body(self, body: bytes | memoryview) -> None:
        """Take a piece of the body."""

    def end_direct_body(self) -> None:
        """Read the next message: the body is whole."""

    def eof_received(self) -> None: ...

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...

    def connection_lost(self, exc: Exception | None) -> None: ...


class DirectBody(asyncio.BufferedProtocol):
    """The protocol of a connection while the rest of a body arrives.

    A piece that fills less than half of its buffer is copied, so that what is small keeps nothing large.
    """

    __slots__ = ("_buffers", "_connection", "_reading")

    def __init__(self, connection: Connection, buffers: BodyBuffers) -> None:
        self._connection = connection
        self._buffers = buffers
        buffers.begin()
        self._reading: bytearray | None = None

    def get_buffer(self, sizehint: int) -> memoryview:
        self._reading = self._buffers.take()
        return memoryview(self._reading)[: self._connection.body_left]

    def buffer_updated(self, nbytes: int) -> None:
        connection, buffer = self._connection, self._reading
        assert buffer is not None
        self._reading = None
        if connection.is_discarding:
            connection.transport.discard(nbytes)
            return
        piece = memoryview(buffer)[:nbytes].toreadonly()
        connection.on_body(piece if 2 * nbytes >= len(buffer) else bytes(piece))
        if not connection.body_left:
            self._buffers.end()
            connection.end_direct_body()

    def eof_received(self) -> None:
        self._connection.eof_received()

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._buffers.end()
        self._connection.connection_lost(exc)
