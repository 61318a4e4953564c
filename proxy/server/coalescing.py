"""Writing to a connection once where the server writes twice."""

from __future__ import annotations

import asyncio
from typing import Any

#: More than this does not wait for what else is written: it is not the head of an answer.
WAITING_BYTES = 16 * 1024


class CoalescingTransport:
    """A transport that sends what is written within one turn of the event loop in one go.

    uvicorn writes the head and the body of an answer each for itself, and each costs a call of the system that takes
    longer than most of what the proxy does for a poll.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._call_soon = asyncio.get_running_loop().call_soon
        self._waiting: list[bytes] = []
        self._bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._waiting:
            self._call_soon(self._send)
        self._waiting.append(data)
        self._bytes += len(data)
        if self._bytes > WAITING_BYTES:
            self._send()

    def close(self) -> None:
        self._send()
        self._transport.close()

    def _send(self) -> None:
        if self._waiting:
            data = b"".join(self._waiting)
            self._waiting.clear()
            self._bytes = 0
            if not self._transport.is_closing():
                self._transport.write(data)
