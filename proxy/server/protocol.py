"""HTTP/1.1 as this server reads it: uvicorn's httptools protocol with a bound on the head of a request."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from proxy.server.coalescing import CoalescingTransport

#: A request line and its headers; fal's own clients send well below one kilobyte beside the session.
MAX_HEAD_BYTES = 64 * 1024


class LimitedHeadProtocol(HttpToolsProtocol):
    """Hangs up on a request whose head does not end: httptools itself would collect it without a bound."""

    _in_head = False
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(CoalescingTransport(transport))  # type: ignore[arg-type]

    def on_message_begin(self) -> None:
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.send_400_response("The head of the request is too large.")
