"""Raw bytes over one connection."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import closing

#: Between pieces, so that each arrives in a packet of its own.
_PAUSE_SECONDS = 0.02
#: How long to wait for more of what is enough already.
_QUIET_SECONDS = 0.05
_PATIENCE_SECONDS = 60.0


def talk(port: int, *pieces: bytes, is_enough: Callable[[bytes], bool] | None = None) -> tuple[bytes, bool]:
    """Send pieces one after the other; what came back, and whether the server closed the connection.

    Reading ends when the server closes, so the last request has to ask for it. Where that cannot be, `is_enough` says
    of what came whether it is whole: then reading ends also when no more comes for a moment.
    """
    with closing(socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_SECONDS)) as wire:
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        received = b""
        for piece in pieces:
            try:
                wire.settimeout(_PATIENCE_SECONDS)
                wire.sendall(piece)
            except OSError:
                break
            received += _read(wire, _PAUSE_SECONDS)[0]
        if is_enough is None:
            more, closed = _read(wire, _PATIENCE_SECONDS)
            return received + more, closed
        while True:
            is_whole = is_enough(received)
            more, closed = _read(wire, _QUIET_SECONDS if is_whole else _PATIENCE_SECONDS, _QUIET_SECONDS)
            received += more
            if closed or not more:
                return received, closed


def _read(wire: socket.socket, first: float, then: float | None = None) -> tuple[bytes, bool]:
    """The bytes that arrive until none has come for `first` seconds, or for `then` seconds after others."""
    received = b""
    wire.settimeout(first)
    while True:
        try:
            chunk = wire.recv(65536)
        except TimeoutError:
            return received, False
        except OSError:
            return received, True
        if not chunk:
            return received, True
        received += chunk
        wire.settimeout(then or first)
