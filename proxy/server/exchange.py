"""One request and its answer, as uvicorn carries them between a connection and the application."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from proxy.http.disconnect import Disconnect

if TYPE_CHECKING:
    from proxy.server.coalescing import CoalescingTransport


class Exchange(RequestResponseCycle):
    """uvicorn's cycle, which closes a connection that it cannot read on with.

    When an answer begins before its request has ended, what comes next on the connection is a body that nothing reads.
    The answer says `connection: close`, and the connection is closed once the peer could read that.
    """

    transport: CoalescingTransport  # type: ignore[assignment]
    disconnect: Disconnect

    def report_disconnect(self) -> None:
        """Let the application see that the connection is lost, unless the answer is complete."""
        if not self.response_complete:
            self.disconnected = True
            self.message_event.set()
            self.disconnect.happen()

    def send(self, message: Any) -> Coroutine[Any, Any, None]:
        if self.more_body and not self.response_started:
            self.keep_alive = False
            self.transport.lingers = True
        return super().send(message)


class UnchunkedExchange(Exchange):
    """An exchange with an HTTP/1.0 client, which cannot read chunks (RFC 9112, section 6.1).

    The end of the connection is the end of an answer whose length is not known when it begins.
    """

    _is_counted = False

    def send(self, message: Any) -> Coroutine[Any, Any, None]:
        if not self.response_started:
            self._is_counted = any(name == b"content-length" for name, _ in message.get("headers", ()))
            if not self._is_counted:
                self.chunked_encoding = False
        elif not self._is_counted:
            self.expected_content_length = len(message.get("body", b""))
        return super().send(message)
