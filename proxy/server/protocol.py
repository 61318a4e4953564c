"""HTTP/1.1 as this server reads it: uvicorn's httptools protocol, with one reading of where a message ends.

A balancer in front may send the requests of many callers over one connection. If it and this server disagree about the
end of a request, one caller's bytes become another's request. So whatever can be read in two ways is refused, and the
connection is closed (RFC 9112, sections 2.2, 3.2, 6.1, 6.3, 7.1 and 11.2; RFC 9110, section 7.8).
"""

from __future__ import annotations

from typing import Any

import httptools

from proxy.errors import BadRequest, ProxyError
from proxy.server.connections import Connections
from proxy.server.direct_body import DirectBody
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
from proxy.server.timed_connection import TimedConnection

#: A request line and its headers; fal's own clients send well below one kilobyte beside the session.
MAX_HEAD_BYTES = 64 * 1024
_READ_HERE = frozenset((b"host", b"content-length", b"transfer-encoding", b"expect"))


class LimitedHeadProtocol(TimedConnection):
    """Reads the requests of a connection, and refuses what is too large or can be read in two ways."""

    __slots__ = ("_coding", "_framing_bytes", "_head_bytes", "_hosts", "_is_replaying", "_trailer_bytes")

    def __init__(self, *options: Any, connections: Connections) -> None:
        super().__init__(*options, connections=connections)
        self._is_replaying = False
        self._head_bytes = self._trailer_bytes = self._hosts = 0
        self._coding: bytes | None = None
        #: Bytes of a body in chunks beside its content and the lines that a chunk needs.
        self._framing_bytes = 0

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
