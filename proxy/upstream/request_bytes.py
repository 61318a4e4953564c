"""The bytes of a request: its head, and its body in pieces."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator

import httpx

from proxy.upstream.engine import Origin, Request

#: A body up to this size leaves together with the head.
SMALL_BYTES = 64 * 1024
#: A larger one leaves in pieces of this size, each with one call of the system and a timeout of its own.
PIECE_BYTES = 256 * 1024
Headers = list[tuple[bytes, bytes]]
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_HEAD = re.compile(_TOKEN + rb" [!-~\x80-\xff]+ HTTP/1\.1\r\n(?:" + _TOKEN + rb": [\t -~\x80-\xff]*\r\n)*\r\n")


def encode_head(request: httpx.Request, headers: Headers) -> bytes:
    """Encode the request line and the headers (RFC 9112, sections 3 and 5).

    Raises:
        LocalProtocolError: it is a HEAD, or a character in it may not be sent.
    """
    target: bytes = request.extensions.get("target", request.url.raw_path)
    lines = [b"%b %b HTTP/1.1\r\n" % (request.method.encode("ascii"), target)]
    lines += [b"%b: %b\r\n" % header for header in headers]
    head = b"".join(lines) + b"\r\n"
    if request.method == "HEAD":
        # The reply to it does not say where it ends.
        raise httpx.LocalProtocolError("HEAD is not sent; use GET.")
    # The count finds a part that holds a whole line, which makes the head well-formed all the same.
    if not _HEAD.fullmatch(head) or head.count(b"\n") != len(lines) + 1:
        raise httpx.LocalProtocolError("The request's method, path or headers hold a character that may not be sent.")
    return head


def encode_whole(request: Request) -> bytes | None:
    """Encode a whole request; None if its body is to leave in pieces, or `encode_head` is to look at it."""
    method, _, target, headers, body, _ = request
    if len(body) > SMALL_BYTES:
        return None
    lines = [f"{method} {target} HTTP/1.1", *[f"{name}: {value}" for name, value in headers.items()]]
    text = "".join(lines)
    # Characters that end a line, or can be read in two ways, are not printable.
    if " " in target or not (text.isascii() and text.isprintable()):
        return None
    lines.append("\r\n")
    return "\r\n".join(lines).encode("ascii") + body


def body_length(headers: Headers) -> int | None:
    """Return the number of bytes of the body by its headers; None if it goes in chunks."""
    lengths = [value for name, value in headers if name.lower() == b"content-length"]
    codings = [value for name, value in headers if name.lower() == b"transfer-encoding"]
    if codings == [b"chunked"] and not lengths:
        return None
    if codings or len(lengths) > 1 or not all(length.isdigit() for length in lengths):
        raise httpx.LocalProtocolError("The request's headers do not say where its body ends.")
    return int(lengths[0]) if lengths else 0


def origin_of(request: httpx.Request) -> Origin:
    url = request.url
    return url.scheme, url.raw_host.decode("ascii"), url.port


def is_in_memory(request: httpx.Request) -> bool:
    return isinstance(request.stream, httpx.ByteStream)


def small_body(request: httpx.Request, length: int | None) -> bytes | None:
    """Return the body, if it is in memory and small enough to leave together with the head."""
    if not is_in_memory(request):
        return None
    assert isinstance(request.stream, httpx.ByteStream)
    body = b"".join(request.stream)
    return body if len(body) == length and length <= SMALL_BYTES else None


async def body_pieces(stream: object, length: int | None) -> AsyncGenerator[bytes | memoryview, None]:
    """Yield the body in pieces of at most PIECE_BYTES, or in chunks of them if it has no length.

    Raises:
        LocalProtocolError: it is not as long as its header says.
    """
    assert isinstance(stream, httpx.AsyncByteStream)
    sent = 0
    async for chunk in stream:
        sent += len(chunk)
        if length is not None and sent > length:
            raise httpx.LocalProtocolError("The request's body is longer than its content-length.")
        for start in range(0, len(chunk), PIECE_BYTES):
            piece = memoryview(chunk)[start : start + PIECE_BYTES]
            yield piece if length is not None else b"".join((b"%x\r\n" % len(piece), piece, b"\r\n"))
    if length is None:
        yield b"0\r\n\r\n"
    elif sent < length:
        raise httpx.LocalProtocolError("The request's body is shorter than its content-length.")
