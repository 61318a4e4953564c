"""Byte streams of one connection: what honest and dishonest callers send, made by a small grammar."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

HOST = "Host: proxy.example"
#: The last request of a stream: the server closes the connection after its answer.
LAST = b"GET /last HTTP/1.1\r\nHost: proxy.example\r\nConnection: close\r\n\r\n"
#: A body that would be a request of its own if its end were missed.
SMUGGLED = "GET /smuggled HTTP/1.1\r\nHost: proxy.example\r\n\r\n"

_CONNECTIONS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "h2c": ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"),
    "websocket": ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"),
    "upgrade to nothing": ("Connection: upgrade", "Upgrade: x"),
    "upgrade without connection": ("Upgrade: h2c",),
    "keep-alive and upgrade": ("Connection: keep-alive, Upgrade", "Upgrade: websocket"),
}
_POST = f"POST /first HTTP/1.1\r\n{HOST}\r\n"
_OLD = f"POST /first HTTP/1.0\r\n{HOST}\r\n"
_LENGTH = f"Content-Length: {len(SMUGGLED)}"
_CHUNKS = f"{len(SMUGGLED):x}\r\n{SMUGGLED}\r\n0\r\n"
_BODIES: dict[str, tuple[tuple[str, ...], str]] = {
    "no body": ((), ""),
    "counted": ((_LENGTH,), SMUGGLED),
    "chunked": (("Transfer-Encoding: chunked",), f"{_CHUNKS}\r\n"),
    "chunked with trailers": (
        ("Transfer-Encoding: chunked", "Trailer: X-T"),
        f"{_CHUNKS}X-T: 1\r\nAuthorization: x\r\n\r\n",
    ),
    "chunked with extensions": (
        ("Transfer-Encoding: chunked",),
        f"{_CHUNKS.replace(chr(13), ';a=b' + chr(13), 1)}\r\n",
    ),
    "length and chunks": ((_LENGTH, "Transfer-Encoding: chunked"), f"{_CHUNKS}\r\n"),
    "chunks and length 0": (("Transfer-Encoding: chunked", "Content-Length: 0"), f"{_CHUNKS}\r\n"),
    "two lengths": (("Content-Length: 0", _LENGTH), SMUGGLED),
    "a length with a sign": ((_LENGTH.replace(": ", ": +"),), SMUGGLED),
    "a space before the colon": ((_LENGTH.replace(":", " :"),), SMUGGLED),
    "an unknown coding": (("Transfer-Encoding: xchunked",), f"{_CHUNKS}\r\n"),
    "a folded coding": (("Transfer-Encoding:\r\n chunked",), f"{_CHUNKS}\r\n"),
    "a coding in quotes": (('Transfer-Encoding: "chunked"',), f"{_CHUNKS}\r\n"),
    "a coding and identity": (("Transfer-Encoding: chunked, identity",), f"{_CHUNKS}\r\n"),
    "a vertical tab": (("Transfer-Encoding: \x0bchunked",), f"{_CHUNKS}\r\n"),
    "a bad chunk size": (("Transfer-Encoding: chunked",), f"0x{_CHUNKS}\r\n"),
}
_METHODS = ("POST", "GET")


@dataclass(frozen=True)
class Stream:
    """One connection's bytes, in the pieces in which they are sent."""

    name: str
    pieces: tuple[bytes, ...]


def every_stream() -> list[Stream]:
    """All streams, in one order."""
    streams = []
    for (connection, more), (body, (framing, text)), method in itertools.product(
        _CONNECTIONS.items(), _BODIES.items(), _METHODS
    ):
        head = [f"{method} /first HTTP/1.1", HOST, *more, *framing]
        request = ("\r\n".join(head) + "\r\n\r\n").encode("latin-1")
        whole = (request + text.encode("latin-1") + LAST,)
        apart = (request, text.encode("latin-1") + LAST) if text else whole
        streams.append(Stream(f"{method}, {connection}, {body}", apart if method == "POST" else whole))
    return streams + _more_streams()


def _more_streams() -> list[Stream]:
    others: dict[str, str] = {
        "http/1.0 with chunks": f"{_OLD}Transfer-Encoding: chunked\r\n\r\n{_CHUNKS}\r\n",
        "http/1.0 kept alive": f"{_OLD}Connection: keep-alive\r\n{_LENGTH}\r\n\r\n{SMUGGLED}",
        "line feeds": f"POST /first HTTP/1.1\n{HOST}\n{_LENGTH}\n\n{SMUGGLED}",
        "two hosts": f"GET /first HTTP/1.1\r\n{HOST}\r\nHost: b\r\n\r\n",
        "no host": "GET /first HTTP/1.1\r\n\r\n",
        "a tunnel": "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n",
        "an absolute target": f"GET http://proxy.example/first HTTP/1.1\r\n{HOST}\r\n\r\n",
        "a zero byte": f"{_POST}X: a\0b\r\n{_LENGTH}\r\n\r\n{SMUGGLED}",
        "a carriage return": f"{_POST}X: a\r{_LENGTH}\r\n\r\n{SMUGGLED}",
        "empty lines first": f"\r\n\r\nGET /first HTTP/1.1\r\n{HOST}\r\n\r\n",
        "connection: content-length": f"{_POST}Connection: Content-Length\r\n{_LENGTH}\r\n\r\n{SMUGGLED}",
        "white space behind a length": f"{_POST}{_LENGTH} \t\r\n\r\n{SMUGGLED}",
        "white space behind a coding": f"{_POST}Transfer-Encoding: chunked \r\n\r\n{_CHUNKS}\r\n",
        "white space behind a host": f"GET /first HTTP/1.1\r\n{HOST} \t\r\n\r\n",
        "a body that is not announced": f"{_POST}\r\n{SMUGGLED}",
    }
    return [Stream(name, (text.encode("latin-1") + LAST,)) for name, text in others.items()]
