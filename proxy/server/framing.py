"""Where a request ends: the rules that hold for a head, and what must not be read in two ways (RFC 9112)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from proxy.errors import BadRequest

MAX_HEADERS = 256
#: Chunk extensions, and trailers behind the last chunk. They are read to find the end of the message, and dropped.
MAX_FRAMING_BYTES = 16 * 1024
#: A chunk's size and its line breaks take less; what is more counts as extensions.
CHUNK_LINE_BYTES = 20
#: A name of DNS has 255 bytes at most, and a port follows. The names seen last are remembered, so they are short.
MAX_HOST_BYTES = 300
_ORIGIN = re.compile(rb"https?://[^/?#]+", re.IGNORECASE)
#: `Host` as a URL has it (RFC 3986, section 3.2.2), with a port or without.
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+(?:%25[\w.~-]+)?\]|[\w.~!$&'()*+,;=%-]+)(?::[0-9]{0,5})?", re.ASCII)


def check_head(version: str, method: bytes, headers: int, hosts: int, coding: bytes | None) -> None:
    """Refuse a head that others may read in another way.

    Args:
        headers: how many it has, and `hosts`, how many of them are `Host`.
        coding: the value of `Transfer-Encoding`, empty for more than one; None without it.

    Raises:
        BadRequest: it asks for a tunnel, has too many headers, or its version, host or length is not clear.
    """
    if method == b"CONNECT":
        raise BadRequest("This server does not support CONNECT.")
    if version not in ("1.1", "1.0"):
        raise BadRequest("This server speaks HTTP/1.1 and HTTP/1.0 only.")
    if headers > MAX_HEADERS:
        raise BadRequest(f"The request has more than {MAX_HEADERS} headers.")
    if hosts != 1 and (version == "1.1" or hosts):
        raise BadRequest("A request must have one Host header (RFC 9112, section 3.2).")
    if coding is not None and (version == "1.0" or coding != b"chunked"):
        raise BadRequest("Send a body with content-length or in HTTP/1.1 chunks, and with no other transfer coding.")


@lru_cache(maxsize=1024)
def is_host(value: bytes) -> bool:
    """Return whether a short text is the value of a `Host` header."""
    return _HOST.fullmatch(value) is not None


def with_path(url: bytes) -> bytes:
    """Return a target in absolute form, with the path that an origin alone implies (RFC 9112, section 3.2.2)."""
    origin = _ORIGIN.match(url)
    if origin is None or url[origin.end() : origin.end() + 1] == b"/":
        return url
    return url[: origin.end()] + b"/" + url[origin.end() :]


def framing_too_large() -> BadRequest:
    return BadRequest(f"The chunk extensions and trailers of the body are larger than {MAX_FRAMING_BYTES} bytes.")


def framing_of(headers: Sequence[tuple[bytes, bytes]], keep_alive: bool) -> bytes:
    """Make a head that says of its message's end what these headers say, and nothing else."""
    framing = [pair for pair in headers if pair[0] in (b"content-length", b"transfer-encoding")]
    lines = [b"%s: %s\r\n" % pair for pair in framing or [(b"content-length", b"0")]]
    if not keep_alive:
        lines.append(b"connection: close\r\n")
    return b"POST / HTTP/1.1\r\n%s\r\n" % b"".join(lines)
