"""The interface of the engine under `Upstream`: a request in parts, and its reply, whole or as a stream.

A whole reply is a status, headers and a body; the body of a streamed one is still to be read. Files go as requests of
httpx's, and so does any request for which an engine has no faster way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import httpx

#: The largest reply that is read whole, so that its loss can still become an error.
WHOLE_BYTES = 4 * 1024 * 1024
#: A compressed reply is decoded in pieces of this size, so that what each unfolds to stays small.
_ENCODED_PIECE_BYTES = 16 * 1024
#: Values by names in lower case; several values of one name are joined by commas (RFC 9110, section 5.3).
ReplyHeaders = dict[bytes, bytes]
#: Scheme, host and port: the key of idle connections.
Origin = tuple[str, str, int | None]
#: Seconds by phase, as `transport.py` describes them; None for no limit.
PhaseTimeouts = Mapping[str, float | None]


class ReplyTooLarge(httpx.TransportError):
    """The reply has more than `WHOLE_BYTES`."""


class Host(NamedTuple):
    """A host of the upstream, parsed once.

    Attributes:
        netloc: the value of the Host header.
        prefix: the path of the base URL, without a slash at the end.
    """

    url: httpx.URL
    origin: Origin
    netloc: str
    prefix: str


class Request(NamedTuple):
    """A request in parts: what leaves is exactly this.

    Attributes:
        method: not HEAD.
        target: path and query.
        headers: all of them, in their order.
        body: all of it; a GET has none.
        timeouts: seconds for `pool`, `connect`, `write` and `read`, as `transport.py` describes them.
    """

    method: str
    host: Host
    target: str
    headers: dict[str, str]
    body: bytes
    timeouts: PhaseTimeouts

    def __repr__(self) -> str:
        # One of the headers is the key.
        return f"<Request {self.method}>"


class Reply(NamedTuple):
    """The upstream's reply as it came, not decoded.

    Attributes:
        error: why the body is not whole; None if it is.
    """

    status_code: int
    headers: ReplyHeaders
    body: bytes
    error: httpx.TransportError | None = None


class Body(ABC):
    """The body of a reply, not decoded, as it comes."""

    @abstractmethod
    async def read(self) -> bytes:
        """Read what has arrived, at least a byte; none at the end of the body.

        Raises:
            httpx.TransportError: it broke off.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Break the reply off, unless all of it has arrived."""


@dataclass(slots=True, eq=False)
class StreamedReply:
    """The upstream's reply. Its body is still to be read, and it has to be closed."""

    status_code: int
    headers: ReplyHeaders
    body: Body

    @property
    def is_success(self) -> bool:
        return 200 <= self.status_code < 300

    async def aclose(self) -> None:
        await self.body.aclose()


class Engine(ABC):
    """Sends requests to the upstream, each once. `transport.py` says what the class of a failure means.

    A request that leaves in pieces is one of httpx's; for one that leaves whole an engine may have a faster way.
    """

    async def fetch(self, request: Request) -> Reply:
        """Send a request and read its reply to the end. A failure after the reply's head is the `error` of the reply.

        Raises:
            httpx.TransportError: there is no reply.
        """
        return await read_reply(await self.open(request), WHOLE_BYTES)

    async def open(self, request: Request) -> StreamedReply:
        """Send a request; return as soon as the reply's head is here.

        Raises:
            httpx.TransportError: there is no reply.
        """
        return await self.send(to_httpx(request))

    @abstractmethod
    async def send(self, request: httpx.Request) -> StreamedReply:
        """Send a request whose body may come in pieces; return as soon as the reply's head is here.

        Raises:
            httpx.TransportError: there is no reply.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Break off what is on its way, and close what is idle."""


class HttpxEngine(Engine):
    """An engine over any httpx transport."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport

    async def send(self, request: httpx.Request) -> StreamedReply:
        return from_httpx(await self._transport.handle_async_request(request))

    async def aclose(self) -> None:
        await self._transport.aclose()


class _HttpxBody(Body):
    """What is left to read of one of httpx's responses."""

    def __init__(self, response: httpx.Response, pieces: AsyncIterator[bytes]) -> None:
        self._response = response
        self._pieces = pieces

    async def read(self) -> bytes:
        async for piece in self._pieces:
            if piece:
                return piece
        return b""

    async def aclose(self) -> None:
        await self._response.aclose()


def from_httpx(response: httpx.Response) -> StreamedReply:
    """Make a reply of one of httpx's responses, not decoded."""
    assert isinstance(response.stream, httpx.AsyncByteStream)
    body = _HttpxBody(response, aiter(response.stream))
    return StreamedReply(response.status_code, by_name(response.headers.raw), body)


def to_httpx(request: Request) -> httpx.Request:
    """Make the same request for httpx's interface.

    With a `stream` of its own, httpx looks for nothing to add to it; with a `target`, it has no path to examine
    (https://www.python-httpx.org/advanced/extensions/#target).
    """
    return httpx.Request(
        request.method,
        request.host.url,
        headers=request.headers,
        stream=httpx.ByteStream(request.body),
        extensions={"timeout": dict(request.timeouts), "target": request.target.encode("ascii")},
    )


async def read_reply(reply: StreamedReply, most: int) -> Reply:
    """Read a reply up to `most` bytes of its body, and close it."""
    content = bytearray()
    error: httpx.TransportError | None = None
    try:
        while piece := await reply.body.read():
            content += piece
            if len(content) > most:
                error = ReplyTooLarge("The reply is too large.")
                break
    except httpx.TransportError as problem:
        # Its frames would keep what they hold.
        error = problem.with_traceback(None)
    finally:
        await reply.aclose()
    return Reply(reply.status_code, reply.headers, bytes(content), error)


def by_name(raw: Iterable[tuple[bytes, bytes]]) -> ReplyHeaders:
    headers: ReplyHeaders = {}
    for given, value in raw:
        name = given.lower()
        headers[name] = headers[name] + b", " + value if name in headers else value
    return headers


def text_of(headers: ReplyHeaders) -> dict[str, str]:
    """Return the headers of a reply as text."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in headers.items()}


async def decode(reply: Reply) -> Reply:
    """Decode the body of a reply, should it be compressed: the upstream is asked not to do that."""
    if b"content-encoding" not in reply.headers:
        return reply
    body = bytearray()
    try:
        async for chunk in _decode(reply, _Pieces(reply.body)).aiter_bytes():
            body += chunk
            if len(body) > WHOLE_BYTES:
                return reply._replace(body=b"", error=ReplyTooLarge("The reply is too large."))
    except httpx.DecodingError:
        return reply._replace(body=b"", error=reply.error or httpx.RemoteProtocolError("The reply cannot be decoded."))
    return reply._replace(body=bytes(body))


def decoded_body(reply: StreamedReply) -> Body:
    """Return the body of a reply, decoded as it is read. Reading it may raise an `httpx.DecodingError`, too."""
    if b"content-encoding" not in reply.headers:
        return reply.body
    response = _decode(reply, BodyStream(reply.body))
    return _HttpxBody(response, response.aiter_bytes())


def _decode(reply: Reply | StreamedReply, stream: httpx.AsyncByteStream) -> httpx.Response:
    headers = [(b"content-encoding", reply.headers[b"content-encoding"])]
    return httpx.Response(reply.status_code, headers=headers, stream=stream)


class BodyStream(httpx.AsyncByteStream):
    """A body as httpx reads it."""

    def __init__(self, body: Body) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while piece := await self._body.read():
            yield piece

    async def aclose(self) -> None:
        await self._body.aclose()


class _Pieces(httpx.AsyncByteStream):
    """A body in pieces that are small enough to decode one by one."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self._body), _ENCODED_PIECE_BYTES):
            yield self._body[start : start + _ENCODED_PIECE_BYTES]
