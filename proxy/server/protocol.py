"""HTTP/1.1 as this server reads it: uvicorn's httptools protocol, with one reading of where a message ends.

A balancer in front may send the requests of many callers over one connection. If it and this server disagree about the
end of a request, one caller's bytes become another's request. So whatever can be read in two ways is refused, and the
connection is closed (RFC 9112, sections 2.2, 3.2, 6.1, 6.3, 7.1 and 11.2; RFC 9110, section 7.8).
"""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.server import ServerState

from proxy.errors import BadRequest, ProxyError, RequestTimeout, TooManyConnections
from proxy.server.asgi import AsgiProtocol
from proxy.server.coalescing import CoalescingTransport
from proxy.server.connections import NEVER, Connections
from proxy.server.direct_body import DirectBody
from proxy.server.exchange import Exchange
from proxy.server.framing import (
    CHUNK_LINE_BYTES,
    MAX_FRAMING_BYTES,
    MAX_HOST_BYTES,
    check_head,
    framing_of,
    framing_too_large,
    is_host,
    with_path,
)
from proxy.server.refusal import raw_response

#: A request line and its headers; fal's own clients send well below one kilobyte beside the session.
MAX_HEAD_BYTES = 64 * 1024
_READ_HERE = frozenset((b"host", b"content-length", b"transfer-encoding", b"expect"))


class LimitedHeadProtocol(AsgiProtocol):
    """One connection of a caller.

    Attributes:
        deadline: when the connection ends if nothing more comes, as a time of the event loop.
    """

    #: Beside uvicorn's attributes: with more than thirty, the dictionary of each connection is six times as large.
    __slots__ = ("_answering", "_coding", "_framing_bytes", "_head_bytes", "_hosts", "_in_head",
        "_is_refused", "_is_replaying", "_limits", "_registry", "_time", "_trailer_bytes", "_unsent",
        "deadline")  # fmt: skip

    transport: CoalescingTransport  # type: ignore[assignment]

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        connections: Connections,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.deadline = NEVER
        self._registry = connections
        self._limits = connections.limits
        self._time = self.loop.time
        self._answering: Exchange | None = None
        self._in_head = self._is_replaying = self._is_refused = False
        self._head_bytes = self._trailer_bytes = self._hosts = 0
        self._coding: bytes | None = None
        #: Bytes of a body in chunks beside its content and the lines that a chunk needs.
        self._framing_bytes = 0
        #: What the caller had still to take when that was looked at last.
        self._unsent: float = NEVER

    # The connection.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(CoalescingTransport(transport, self._registry.outbox))  # type: ignore[arg-type]
        if self._registry.admit(self, self.client):
            self.deadline = self._time() + self._limits.connect_seconds
        elif not self._registry.may_answer_refusal():
            self.transport.abort()
        else:
            self._close_with(TooManyConnections("This server has reached its limit of connections; try again shortly."))

    def connection_lost(self, exc: Exception | None) -> None:
        self._registry.discard(self, self.client)
        super().connection_lost(exc)
        if self._answering is not None:
            # uvicorn only knows the newest request, and others may wait behind this one.
            self._answering.report_disconnect()

    @property
    def is_waiting(self) -> bool:
        """Whether the caller has to send something: no answer is on its way."""
        return self.deadline != NEVER and not self.transport.get_write_buffer_size()

    def evict(self) -> None:
        """Close now, to make room for another connection."""
        self.transport.lingers = False
        self.transport.close()

    def expire(self) -> None:
        """End the connection at its deadline; one in the middle of a head gets the reason."""
        self.deadline = self._time() + self._limits.write_seconds
        if unsent := self.transport.get_write_buffer_size():
            if unsent >= self._unsent:
                self.transport.abort()
            self._unsent = unsent
        elif self._in_head and not self.transport.is_closing():
            seconds = self._limits.head_seconds
            late = f"The head of the request did not end within {seconds:g} seconds; send it again."
            self._refuse(RequestTimeout(late))
        else:
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unsent = self.transport.get_write_buffer_size()
        self.deadline = self._time() + self._limits.write_seconds

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._answering is not None and not self._answering.response_complete:
            self.deadline = NEVER

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        self._unsent = NEVER
        if self.transport.is_closing():
            # The caller has yet to take the answer.
            self.deadline = self._time() + self._limits.write_seconds
            return
        if self.flow.read_paused:
            self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
        else:
            limits = self._limits
            self.deadline = self._time() + (limits.head_seconds if self._in_head else limits.keep_alive_seconds)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle  # type: ignore[assignment]
        self.deadline = NEVER
        super()._start_asgi_task(cycle, app)

    # The bytes of a connection.

    def data_received(self, data: bytes) -> None:
        if self.is_discarding:
            self.transport.discard(len(data))
            return
        headers, in_head = self.headers, self._in_head
        if not in_head:
            self._framing_bytes += len(data)
        try:
            self._feed(data)
        except httptools.HttpParserCallbackError as failure:
            problem = failure.__context__
            self._refuse(problem if isinstance(problem, ProxyError) else BadRequest("This is not an HTTP request."))
        except httptools.HttpParserError as failure:
            self._refuse(BadRequest(f"This HTTP request is malformed or ambiguous ({failure})."))
        if self.body_left > self._limits.direct_bytes and not self.is_discarding:
            self.transport.set_protocol(DirectBody(self, self._registry.body_buffers))
        if self.headers is not headers:
            return  # else all of these bytes belong to one message
        if in_head and self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(BadRequest(f"The head of the request is larger than {MAX_HEAD_BYTES} bytes."))
        elif self._coding is not None:
            if self._framing_bytes > MAX_FRAMING_BYTES:
                self._refuse(framing_too_large())
            self._framing_bytes = max(self._framing_bytes, 0)

    def _feed(self, data: bytes | memoryview) -> None:
        """Feed the parser, and read on behind each upgrade; one packet may hold many, so this is a loop."""
        while True:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                self._ignore_upgrade()
                data = memoryview(data)[upgrade.args[0] :]

    @property
    def is_discarding(self) -> bool:
        """Whether nothing more is read, as the last answer is on its way."""
        return self._is_refused or self.transport.is_closing()

    def _ignore_upgrade(self) -> None:
        """Read on as if no upgrade was asked for: an ignored one is an ordinary request with its body (RFC 9110, 7.8).

        The parser takes what follows for another protocol, so another one reads it. It is given the framing of this
        request first.
        """
        self.renew_parser()
        self._is_replaying = True
        self.parser.feed_data(framing_of(self.headers, self.cycle.keep_alive))
        self._is_replaying = False

    # What the parser finds.

    def on_message_begin(self) -> None:
        if self._is_replaying:
            return
        self._in_head, self._head_bytes, self._hosts, self._coding = True, 0, 0, None
        self._framing_bytes = self._trailer_bytes = self.body_left = 0
        if self._answering is None or self._answering.response_complete:
            self.deadline = self._time() + self._limits.head_seconds
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self._is_replaying:
            self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            # A trailer, or a line that is read again.
            self._trailer_bytes += len(name) + len(value)
            if self._trailer_bytes > MAX_FRAMING_BYTES:
                raise framing_too_large()
            return
        # White space behind a value is no part of it (RFC 9110, section 5.5); the parser leaves it there.
        name, value = name.lower(), value.rstrip(b" \t")
        if name in _READ_HERE:
            self._read_header(name, value)
        self.headers.append((name, value))

    def _read_header(self, name: bytes, value: bytes) -> None:
        if name == b"host":
            self._hosts += 1
            if len(value) > MAX_HOST_BYTES or not is_host(value):
                raise BadRequest("The Host header does not name a host.")
        elif name == b"transfer-encoding":
            self._coding = value.lower() if self._coding is None else b""
        elif name == b"content-length":
            self.body_left = int(value) if value.isdigit() else 0  # which the parser refuses
        elif value.lower() == b"100-continue":
            self.expect_100_continue = True

    def on_headers_complete(self) -> None:
        if self._is_replaying:
            return
        self._in_head = False
        version, method = self.parser.get_http_version(), self.parser.get_method()
        check_head(version, method, len(self.headers), self._hosts, self._coding)
        if self.url[:1] != b"/":
            self.url = with_path(self.url)
        self.begin_exchange(version, method)

    def on_chunk_header(self) -> None:
        self._framing_bytes -= CHUNK_LINE_BYTES

    def on_body(self, body: bytes | memoryview) -> None:
        self._framing_bytes -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            # Not yet: the parser has not looked at the body.
            return
        super().on_message_complete()

    # Refusals of this layer.

    def _refuse(self, error: ProxyError) -> None:
        """Answer what cannot be read on, after the answers to what was read before, and close the connection.

        Nothing is read from here on: while earlier answers are on their way, a head without end would fill the memory.
        """
        if self._is_refused or self.transport.is_closing():
            return
        self._is_refused = True
        self._registry.warn(self.client, error_type=error.code, reason=error.message)
        newest, answering = self.cycle, self._answering
        if newest is None or newest.response_complete:
            self._close_with(error)
        elif not newest.more_body:
            # The newest request is whole; its answer is the last one.
            newest.keep_alive = False
            self.transport.lingers = True
        elif newest is answering:
            newest.report_disconnect()
            self.transport.close() if newest.response_started else self._close_with(error)
        else:
            self.pipeline.popleft()
            last = self.pipeline[0][0] if self.pipeline else answering
            assert last is not None
            last.keep_alive = False
            self.transport.lingers = True

    def _close_with(self, error: ProxyError) -> None:
        self.transport.lingers = True
        self.transport.write(raw_response(error))
        self.transport.close()
