"""The interface to the engine under the client: a request in parts, its reply whole, or as a stream.

A whole reply is a status, headers and a body. A stream is an `httpx.Response` whose body is still to be read, because
streams and files go over httpx's transport interface. The plain way to a whole reply goes over that too, whatever the
engine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import NamedTuple

import httpx

#: Up to here a reply is read whole, so that its loss can still be an error.
WHOLE_BYTES = 4 * 1024 * 1024
#: What a compressed reply is decoded in, so that one piece of it stays small when it unfolds.
_ENCODED_PIECE_BYTES = 16 * 1024
#: By their names in lower case; what came several times is joined by commas (RFC 9110, section 5.3).
ReplyHeaders = dict[bytes, bytes]
#: Scheme, host and port, by which connections are kept.
Origin = tuple[str, str, int | None]
Timeouts = Mapping[str, float | None]


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
    timeouts: Timeouts

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


class Engine(ABC):
    """Sends requests to the upstream, each once, by the rules for failures at the head of `transport.py`."""

    async def fetch(self, request: Request) -> Reply:
        """Send a request and read its reply to the end. What goes wrong after the reply's head is its `error`.

        Raises:
            httpx.TransportError: there is no reply.
        """
        return await read_reply(await self.send(to_httpx(request)), WHOLE_BYTES)

    @abstractmethod
    async def send(self, request: httpx.Request) -> httpx.Response:
        """Send a request; return as soon as the reply's head is here.

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

    async def send(self, request: httpx.Request) -> httpx.Response:
        return await self._transport.handle_async_request(request)

    async def aclose(self) -> None:
        await self._transport.aclose()


def to_httpx(request: Request) -> httpx.Request:
    """The same request for httpx's interface.

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


async def read_reply(response: httpx.Response, most: int) -> Reply:
    """Read a response up to `most` bytes of its body, and close it."""
    body = bytearray()
    error: httpx.TransportError | None = None
    assert isinstance(response.stream, httpx.AsyncByteStream)
    try:
        async for chunk in response.stream:
            body += chunk
            if len(body) > most:
                error = ReplyTooLarge("The reply is too large.")
                break
    except httpx.TransportError as problem:
        # Its frames would keep what they hold.
        error = problem.with_traceback(None)
    finally:
        await response.aclose()
    return Reply(response.status_code, by_name(response.headers.raw), bytes(body), error)


def by_name(raw: Iterable[tuple[bytes, bytes]]) -> ReplyHeaders:
    headers: ReplyHeaders = {}
    for given, value in raw:
        name = given.lower()
        headers[name] = headers[name] + b", " + value if name in headers else value
    return headers


async def decode(reply: Reply) -> Reply:
    """The reply with its body as it was before it was compressed; the upstream is asked not to."""
    if b"content-encoding" not in reply.headers:
        return reply
    headers = [(b"content-encoding", reply.headers[b"content-encoding"])]
    response = httpx.Response(reply.status_code, headers=headers, stream=_Pieces(reply.body))
    body = bytearray()
    try:
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > WHOLE_BYTES:
                return reply._replace(body=b"", error=ReplyTooLarge("The reply is too large."))
    except httpx.DecodingError:
        return reply._replace(body=b"", error=reply.error or httpx.RemoteProtocolError("The reply cannot be decoded."))
    return reply._replace(body=bytes(body))


class _Pieces(httpx.AsyncByteStream):
    """A body in pieces that are small enough to decode one by one."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self._body), _ENCODED_PIECE_BYTES):
            yield self._body[start : start + _ENCODED_PIECE_BYTES]
