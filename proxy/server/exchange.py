"""One request and its answer, between a connection and the application."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from proxy.http.disconnect import Disconnect
from proxy.http.header_lines import write_lines
from proxy.server.heads import begin_head, first_value, values_in

if TYPE_CHECKING:
    from proxy.server.coalescing import CoalescingTransport

_LENGTH, _CODING, _CONNECTION = b"\r\ncontent-length: ", b"\r\ntransfer-encoding: ", b"\r\nconnection: "
#: Answers without a body, and so without a length (RFC 9110, sections 15.3.5 and 15.4.5).
_WITHOUT_BODY = frozenset((204, 304))


class Exchange(RequestResponseCycle):
    """uvicorn's cycle, which writes answers in fewer steps and closes a connection that it cannot read on with.

    When an answer begins before its request has ended, what comes next on the connection is a body that nothing reads.
    The answer says `connection: close`, and the connection is closed once the peer could read that.
    """

    transport: CoalescingTransport  # type: ignore[assignment]
    disconnect: Disconnect
    body: bytes | bytearray | memoryview  # type: ignore[assignment]

    def hold(self, piece: bytes | memoryview) -> int:
        """Keep a piece of the request's body until the application asks for it; return how many bytes are kept."""
        if not self.body:
            # Nearly always the only one; uvicorn would copy it twice.
            self.body = piece
        elif isinstance(self.body, bytearray):
            self.body += piece
        else:
            self.body = bytearray(self.body)
            self.body += piece
        self.message_event.set()
        return len(self.body)

    async def receive(self) -> Any:
        """Receive the next message as ASGI has it, but that pieces of a large body are views (`direct_body.py`)."""
        if self.waiting_for_100_continue and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.waiting_for_100_continue = False
        if not self.disconnected and not self.response_complete:
            self.flow.resume_reading()
            await self.message_event.wait()
            self.message_event.clear()
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        body, self.body = self.body, b""
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    def report_disconnect(self) -> None:
        """Let the application see that the connection is lost, unless the answer is complete."""
        if not self.response_complete:
            self.disconnected = True
            self.message_event.set()
            self.disconnect.happen()

    async def send(self, message: Any) -> None:
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if self.response_complete:
            raise RuntimeError(f"Unexpected ASGI message '{message['type']}' sent, after response already completed.")
        expected = "http.response.body" if self.response_started else "http.response.start"
        if message["type"] != expected:
            raise RuntimeError(f"Expected ASGI message '{expected}', but got '{message['type']}'.")
        if self.response_started:
            self._write_body(message.get("body", b""), more=message.get("more_body", False))
        else:
            self._write_head(message["status"], message.get("headers", ()))

    def _write_head(self, status: int, headers: Any) -> None:
        self.response_started = True
        self.waiting_for_100_continue = False
        if self.more_body:
            self.keep_alive = False
            self.transport.lingers = True
        head = begin_head(status, self.default_headers) + write_lines(headers)
        self._read_length(head)
        if _CONNECTION in head and _closes(head):
            self.keep_alive = False
        elif not self.keep_alive:
            head += b"\r\nconnection: close"
        if self.chunked_encoding is None and self.scope["method"] != "HEAD" and status not in _WITHOUT_BODY:
            head += self._begin_uncounted()
        self.transport.write(head + b"\r\n\r\n")

    def _read_length(self, head: bytes) -> None:
        """Take over what a head says of the answer's end."""
        if _CODING in head and b"chunked" in [value.lower() for value in values_in(head, _CODING)]:
            self.chunked_encoding = True
        elif (length := first_value(head, _LENGTH)) is not None:
            self.expected_content_length = int(length)
            self.chunked_encoding = False

    def _begin_uncounted(self) -> bytes:
        """Begin the body of an answer that does not say its length; the line that says how it ends instead."""
        self.chunked_encoding = True
        return b"\r\ntransfer-encoding: chunked"

    def _write_body(self, body: bytes, *, more: bool) -> None:
        if self.scope["method"] == "HEAD":
            self.expected_content_length = 0
        elif self.chunked_encoding:
            chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            self.transport.write(chunk if more else chunk + b"0\r\n\r\n")
        else:
            self._count(len(body))
            self.transport.write(body)
        if not more:
            self._end()

    def _count(self, size: int) -> None:
        if size > self.expected_content_length:
            raise RuntimeError("Response content longer than Content-Length")
        self.expected_content_length -= size

    def _end(self) -> None:
        if self.expected_content_length:
            raise RuntimeError("Response content shorter than Content-Length")
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()


class UnchunkedExchange(Exchange):
    """An exchange with an HTTP/1.0 client, which cannot read chunks (RFC 9112, section 6.1).

    The end of the connection is the end of an answer whose length is not known when it begins.
    """

    def _begin_uncounted(self) -> bytes:
        return b""

    def _count(self, size: int) -> None:
        if self.chunked_encoding is not None:
            super()._count(size)


def _closes(head: bytes) -> bool:
    """Return whether a head says that its connection ends with the answer."""
    tokens = b",".join(values_in(head, _CONNECTION)).lower().split(b",")
    return b"close" in [token.strip() for token in tokens]
