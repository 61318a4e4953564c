"""Reads whole replies off a connection, one after another, with httptools' parser.

The plain way to a whole reply costs a message, a header map, a stream and a timer of aiohttp's, a response with another
header map of httpx's, and two generators to read it. A whole reply needs none of these. What this saves is in
docs/engine.md; tests/upstream/transport/test_whole_replies.py compares both ways.
"""

from __future__ import annotations

import asyncio

import httptools
import httpx

from proxy.upstream.engine import WHOLE_BYTES, Reply, ReplyHeaders, ReplyTooLarge

#: aiohttp's bounds, which hold for streams: of headers, and of bytes in one of them.
MOST_HEADERS, MOST_HEADER_BYTES = 128, 8190
#: Bytes in a row that bring no body: a head, or what surrounds chunks.
MOST_BARREN_BYTES = 64 * 1024


class ReplyReader:
    """Reads the replies of one connection.

    Attributes:
        awaited: what is to get the reply; None once it has.
        is_spoiled: whether the connection cannot serve again: the upstream says so, or says more than it was asked.
        was_closed: whether the upstream closed the connection without a byte of the reply.
    """

    __slots__ = (
        "_barren",
        "_body",
        "_deadline",
        "_headers",
        "_is_silent",
        "_lines",
        "_loop",
        "_parser",
        "_read_seconds",
        "_size",
        "_status",
        "_timer",
        "_timer_at",
        "awaited",
        "is_spoiled",
        "was_closed",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        # As aiohttp sets them for its own.
        self._parser.set_dangerous_leniencies(lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self.awaited: asyncio.Future[Reply] | None = None
        self.is_spoiled = self.was_closed = False

    def begin(self, read_seconds: float | None) -> asyncio.Future[Reply]:
        """Expect a reply. The future fails if its head does not come whole."""
        self._headers: ReplyHeaders = {}
        self._lines: list[tuple[bytes, bytes]] = []
        self._body: bytes | bytearray = b""
        self._status = self._size = self._barren = 0
        self._is_silent = True
        self._read_seconds = read_seconds
        if read_seconds is not None:
            self._deadline = deadline = self._loop.time() + read_seconds
            # One timer serves many replies: most come long before, and one that fires too early is set again.
            if self._timer is None or self._timer_at > deadline:
                self._set_timer(deadline)
        self.awaited = future = self._loop.create_future()
        return future

    def feed(self, data: bytes) -> None:
        """Take what arrived while a reply is awaited."""
        assert self._parser is not None
        self._is_silent = False
        if self._read_seconds is not None:
            self._deadline = self._loop.time() + self._read_seconds
        self._barren += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._barren = MOST_BARREN_BYTES + 1
        if self._barren > MOST_BARREN_BYTES:
            self.fail(httpx.RemoteProtocolError("The upstream's answer is not HTTP."))

    def lose(self, error: BaseException | None) -> None:
        """End with the connection, which was closed, or broken off by an error."""
        self._parser = None  # the parser holds this object
        if self._timer is not None:
            self._timer.cancel()
        self.was_closed = self._is_silent and self.awaited is not None
        self.is_spoiled = True
        if error is not None:
            self.fail(httpx.ReadError("The upstream broke off the connection."))
        elif not self._status:
            self.fail(httpx.RemoteProtocolError("The upstream closed the connection without an answer."))
        elif _ends_with_connection(self._headers):
            self._end(None)
        else:
            self.fail(httpx.RemoteProtocolError("The upstream closed the connection in the middle of its answer."))

    def fail(self, error: httpx.TransportError) -> None:
        """End the reply that is awaited."""
        self.is_spoiled = True
        self._end(error)

    def _end(self, error: httpx.TransportError | None) -> None:
        # Kept here, the future would keep its error, whose frames would keep this object.
        future, self.awaited = self.awaited, None
        if future is None or future.done():
            return
        if error is not None and not self._status:
            future.set_exception(error)
        else:
            future.set_result(Reply(self._status, self._headers, bytes(self._body), error))

    def _set_timer(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = self._loop.call_at(deadline, self._check_silence), deadline

    def _check_silence(self) -> None:
        self._timer = None
        if self.awaited is None or self._read_seconds is None:
            return
        if self._loop.time() < self._deadline:
            self._set_timer(self._deadline)
        else:
            self.fail(httpx.ReadTimeout("The upstream is silent."))

    # What the parser calls.

    def on_message_begin(self) -> None:
        if self.awaited is None:
            # Behind a whole reply there is nothing to come.
            self.is_spoiled = True

    def on_header(self, name: bytes, value: bytes) -> None:
        # What comes after the head is a trailer.
        if not self._status:
            self._lines.append((name, value))

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        status = self._parser.get_status_code()
        headers = _headers_of(self._lines)
        if status >= 200:
            self._headers = headers
            self._status, self._barren = status, 0
        elif status == 101:
            self.fail(httpx.RemoteProtocolError("The upstream changed the protocol without being asked to."))
        else:
            # An interim reply: the one that is asked for is still to come.
            self._lines.clear()

    def on_body(self, piece: bytes) -> None:
        self._barren = 0
        self._size += len(piece)
        if not self._body:
            self._body = piece
        elif self._size > WHOLE_BYTES:
            self.fail(ReplyTooLarge("The reply is too large."))
        else:
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += piece

    def on_message_complete(self) -> None:
        if not self._status:
            return
        assert self._parser is not None
        if not self._parser.should_keep_alive():
            self.is_spoiled = True
        self._end(None)


def _headers_of(lines: list[tuple[bytes, bytes]]) -> ReplyHeaders:
    """The headers of a head by their names, in small letters.

    Raises:
        ValueError: there are too many, or one is too long.
    """
    if len(lines) > MOST_HEADERS:
        raise ValueError("too many headers")
    headers: ReplyHeaders = {}
    for given, value in lines:
        if len(given) + len(value) > MOST_HEADER_BYTES:
            raise ValueError("a long header")
        name, value = given.lower(), value.rstrip(b" \t")
        headers[name] = headers[name] + b", " + value if name in headers else value
    return headers


def _ends_with_connection(headers: ReplyHeaders) -> bool:
    """Whether a body has no other end than that of its connection."""
    last_coding = headers.get(b"transfer-encoding", b"").lower().rpartition(b",")[2].strip()
    return b"content-length" not in headers and last_coding != b"chunked"
