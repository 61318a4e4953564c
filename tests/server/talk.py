"""Raw bytes over one connection."""

from __future__ import annotations

import socket
from contextlib import closing


def talk(port: int, *pieces: bytes, seconds: float = 10.0, quiet: float = 0.3, ends: bool = True) -> tuple[bytes, bool]:
    """Send pieces one after the other; what came back, and whether the server closed the connection.

    Reading ends when the server closes, or when nothing came for `quiet` seconds after something had come; without
    `ends`, also when nothing comes at all for so long.
    """
    with closing(socket.create_connection(("127.0.0.1", port), timeout=seconds)) as wire:
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        received = b""
        for piece in pieces:
            try:
                wire.sendall(piece)
            except OSError:
                break
            received += _read(wire, 0.02)[0]
        more, closed = _read(wire, quiet if received or not ends else seconds, quiet)
        return received + more, closed


def _read(wire: socket.socket, first: float, then: float | None = None) -> tuple[bytes, bool]:
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
