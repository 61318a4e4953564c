"""Reads the replies of a connection, one after another, with httptools' parser: whole, or the head of a streamed one.

A reply takes no object of httpx's, no generator and no timer. docs/engine.md says what this saves.
"""

from __future__ import annotations

import asyncio

import httptools
import httpx

from proxy.upstream.engine import WHOLE_BYTES, Reply, ReplyHeaders, ReplyTooLarge
from proxy.upstream.streamed_body import StreamedBody

#: How many headers a reply may have, and how many bytes each of them.
MOST_HEADERS, MOST_HEADER_BYTES = 128, 8190
#: How many bytes in a row may bring no body: a head, or the lines around chunks.
MOST_BARREN_BYTES = 64 * 1024
#: Stands for the headers of a streamed reply whose end is in its bytes.
_WITH_END: ReplyHeaders = {b"transfer-encoding": b"chunked"}


class ReplyReader:
    """Reads the replies of one connection.

    Attributes:
        is_reading: whether a reply is expected, or has not ended yet.
        is_spoiled: whether the connection cannot be used again: the upstream says so, or sends what was not asked for.
        was_closed: whether the upstream closed the connection before the first byte of the reply.
    """

    __slots__ = (
        "_barren",
        "_body",
        "_deadline",
        "_headers",
        "_is_paused",
        "_is_silent",
        "_lines",
        "_loop",
        "_parser",
        "_read_seconds",
        "_size",
        "_status",
        "_streamed",
        "_timer",
        "_timer_at",
        "_transport",
        "_waiting",
        "is_reading",
        "is_spoiled",
        "was_closed",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: asyncio.ReadTransport) -> None:
        self._loop = loop
        self._transport = transport
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        # As other clients: a line may end without a carriage return, and a space may follow the size of a chunk.
        self._parser.set_dangerous_leniencies(lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._waiting: asyncio.Future[Reply] | None = None
        self._is_paused = False
        self.is_reading = self.is_spoiled = self.was_closed = False

    def begin(self, read_seconds: float | None, streamed: StreamedBody | None = None) -> asyncio.Future[Reply]:
        """Expect a reply. The future fails, with an httpx.TransportError, if the head does not come whole.

        Args:
            read_seconds: how long the upstream may be silent; None for any time.
            streamed: gets the body; the future then has the reply's head alone.
        """
        self._headers: ReplyHeaders = {}
        self._lines: list[tuple[bytes, bytes]] = []
        self._body: bytes | bytearray = b""
        self._status = self._size = self._barren = 0
        self._is_silent = self.is_reading = True
        self._streamed = streamed
        self.limit_silence(read_seconds)
        self._waiting = future = self._loop.create_future()
        return future

    def limit_silence(self, read_seconds: float | None) -> None:
        """Let the upstream be silent for this long, from now on; None for any time."""
        self._read_seconds = read_seconds
        if read_seconds is not None:
            self._deadline = deadline = self._loop.time() + read_seconds
            # One timer serves many replies, as most come long before it ends; if it ends too early, it is set again.
            if self._timer is None or self._timer_at > deadline:
                self._set_timer(deadline)

    def feed(self, data: bytes) -> None:
        """Take bytes that arrived."""
        if not self.is_reading:
            # No reply is expected, so these bytes could be taken for the next one.
            self.is_spoiled = True
            return
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
        """End with the connection; `error` is None if the upstream closed it in good order."""
        self._parser = None  # it refers to this object, a cycle
        if self._timer is not None:
            self._timer.cancel()
        self.was_closed = self.is_reading and self._is_silent
        self.is_spoiled = True
        if not self.is_reading:
            return
        if error is not None:
            self.fail(httpx.ReadError("The upstream broke off the connection."))
        elif not self._status:
            self.fail(httpx.RemoteProtocolError("The upstream closed the connection without an answer."))
        elif _ends_with_connection(self._headers):
            self._end(None)
        else:
            self.fail(httpx.RemoteProtocolError("The upstream closed the connection in the middle of its answer."))

    def fail(self, error: httpx.TransportError) -> None:
        """End the reply that is being read with an error."""
        self.is_spoiled = True
        self._end(error)

    def give_up(self, error: Exception) -> None:
        """Wait no longer for a head, as sending the request failed. A body that has begun may still come."""
        self.is_spoiled = True
        future, self._waiting = self._waiting, None
        if future is not None and not future.done():
            self._streamed, self.is_reading = None, False
            future.set_exception(error)

    def pause(self) -> None:
        """Stop reading. Until `resume`, the upstream's silence does not count."""
        self._is_paused = True
        self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        self._is_paused = False
        if self._transport.is_closing():
            return
        self._transport.resume_reading()
        if self._read_seconds is not None:
            self._deadline = self._loop.time() + self._read_seconds
            if self._timer is None:
                self._set_timer(self._deadline)

    def _end(self, error: httpx.TransportError | None) -> None:
        # The future keeps its error, whose frames keep this object; so this object does not keep the future.
        future, self._waiting = self._waiting, None
        streamed, self._streamed = self._streamed, None
        self.is_reading = False
        if future is None:
            if streamed is not None:
                streamed.end(error)
        elif future.done():
            return
        elif error is not None and not self._status:
            future.set_exception(error)
        else:
            future.set_result(Reply(self._status, self._headers, bytes(self._body), error))

    def _set_timer(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = self._loop.call_at(deadline, self._check_silence), deadline

    def _check_silence(self) -> None:
        self._timer = None
        if not self.is_reading or self._is_paused or self._read_seconds is None:
            return
        if self._loop.time() < self._deadline:
            self._set_timer(self._deadline)
        else:
            self.fail(httpx.ReadTimeout("The upstream is silent."))

    # The parser calls these.

    def on_message_begin(self) -> None:
        if not self.is_reading:
            # A second reply to one request.
            self.is_spoiled = True

    def on_header(self, name: bytes, value: bytes) -> None:
        # Behind the head, it is a trailer.
        if not self._status:
            self._lines.append((name, value))

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        status = self._parser.get_status_code()
        headers = _headers_of(self._lines)
        if status >= 200:
            self._headers = headers
            self._status, self._barren = status, 0
            if self._streamed is not None:
                self._begin_stream()
        elif status == 101:
            self.fail(httpx.RemoteProtocolError("The upstream changed the protocol without being asked to."))
        else:
            # An interim reply (1xx): the real one is still to come.
            self._lines.clear()

    def _begin_stream(self) -> None:
        future, self._waiting = self._waiting, None
        if future is not None and not future.done():
            future.set_result(Reply(self._status, self._headers, b""))
        # A stream is open for minutes, so only what says where it ends is kept of its head.
        self._lines = []
        self._headers = {} if _ends_with_connection(self._headers) else _WITH_END

    def on_body(self, piece: bytes) -> None:
        self._barren = 0
        if self._streamed is not None:
            self._streamed.push(piece)
            return
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
    """Return the headers by their names, in small letters; values of the same name are joined.

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
    """Return whether only the end of the connection ends the body (RFC 9112, section 6.3)."""
    last_coding = headers.get(b"transfer-encoding", b"").lower().rpartition(b",")[2].strip()
    return b"content-length" not in headers and last_coding != b"chunked"
