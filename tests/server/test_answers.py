"""Answers are written byte for byte as uvicorn itself writes them, and what uvicorn refuses to write is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from proxy.server.factory import ProtocolFactory
from tests.server.talk import talk
from tests.support.servers import running

Headers = list[tuple[bytes, bytes]]


def answer(headers: Headers, *pieces: bytes, status: int = 200) -> list[dict[str, Any]]:
    """The messages of an answer whose body comes in these pieces."""
    bodies = [
        {"type": "http.response.body", "body": piece, "more_body": number < len(pieces)}
        for number, piece in enumerate(pieces, 1)
    ]
    return [{"type": "http.response.start", "status": status, "headers": headers}, *bodies]


EVERY_VALUE = bytes(byte for byte in range(256) if byte == 0x09 or (byte >= 0x20 and byte != 0x7F))
COUNTED: Headers = [(b"content-length", b"5")]
WRITTEN = {
    "counted": answer(COUNTED, b"hello"),
    "counted, in pieces": answer(COUNTED, b"he", b"", b"llo"),
    "an empty body": answer([(b"content-length", b"0")], b""),
    "of no known length": answer([], b"hello", b"", b"world", b""),
    "of no known length, empty": answer([], b""),
    "in chunks that the application announces": answer([(b"Transfer-Encoding", b"Chunked")], b"hello"),
    "another coding beside a length": answer([(b"transfer-encoding", b"gzip"), *COUNTED], b"hello"),
    "chunks announced before a length": answer([(b"transfer-encoding", b"chunked"), *COUNTED], b"hello"),
    "names in capitals": answer([(b"Content-Length", b"5"), (b"X-Fal-Request-ID", b"One")], b"hello"),
    "many headers of one name": answer([(b"set-cookie", b"%d" % n) for n in range(40)] + COUNTED, b"hello"),
    "every byte that a value may have": answer([(b"x-all", EVERY_VALUE), *COUNTED], b"hello"),
    "an empty value": answer([(b"x-empty", b""), *COUNTED], b"hello"),
    "closing": answer([(b"Connection", b"upgrade, Close "), *COUNTED], b"hello"),
    "not closing": answer([(b"connection", b"keep-alive"), *COUNTED], b"hello"),
    "204": answer([], b"", status=204),
    "304 with a length": answer([(b"content-length", b"0")], b"", status=304),
    "a status without a phrase": answer(COUNTED, b"hello", status=299),
    "499": answer(COUNTED, b"hello", status=499),
    "503": answer(COUNTED, b"hello", status=503),
    "without headers": [{"type": "http.response.start", "status": 200}, {"type": "http.response.body"}],
}
REFUSED = {
    **{f"a name with {byte:#04x}": answer([(b"x-a%c" % byte, b"v"), *COUNTED], b"hello")
       for byte in [*range(0x21), 0x7F, *b'()<>@,;:[]={}\\"']},
    **{f"a value with {byte:#04x}": answer([(b"x-a", b"v%cw" % byte), *COUNTED], b"hello")
       for byte in [*range(9), *range(10, 0x20), 0x7F]},
    "a value that is another header": answer([(b"x-a", b"v\r\nset-cookie: a=b"), *COUNTED], b"hello"),
    "a value that ends the head": answer([(b"x-a", b"v\r\n\r\n"), *COUNTED], b"hello"),
    "a length that is none": answer([(b"content-length", b"five")], b"hello"),
    "a status that is none": answer(COUNTED, b"hello", status=1000),
    "a body before the head": answer(COUNTED, b"hello")[1:],
    "two heads": [*answer(COUNTED)[:1], *answer(COUNTED, b"hello")],
    "longer than it says": answer(COUNTED, b"hello", b"!"),
    "shorter than it says": answer(COUNTED, b"hell"),
    "going on after its end": [*answer(COUNTED, b"hello"), *answer(COUNTED, b"hello")[1:]],
    "no end": answer(COUNTED, b"hello")[:1],
}  # fmt: skip
#: Lists, so that a path names a case by its number.
CASES = [*WRITTEN.values(), *REFUSED.values(), answer([(b"x-last", b"yes"), *COUNTED], b"hello")]


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        for event in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{event}.complete"})
        return
    for message in CASES[int(scope["path"][1:])]:
        await send(message)


@pytest.fixture(scope="module")
def ports() -> Iterator[tuple[int, int]]:
    """Of this program's server, and of uvicorn as it is, before the same application."""
    with ExitStack() as stack:
        urls = [stack.enter_context(running(application, http=http)) for http in (ProtocolFactory(), "httptools")]
        ours, theirs = (int(url.rpartition(":")[2]) for url in urls)
        yield ours, theirs


def ask(port: int, case: int, method: bytes = b"GET", version: bytes = b"1.1", more: bytes = b"") -> tuple[bytes, bool]:
    """What a server answers to two requests on one connection, without the time; and whether it closes.

    A third request asks for the end of the connection: it is answered if the connection has lived so long.
    """
    last = b"GET /%d HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % (len(CASES) - 1)
    request = b"%b /%d HTTP/%b\r\nHost: x\r\n%b\r\n" % (method, case, version, more)
    received, closed = talk(port, request + request + last)
    assert closed
    return re.sub(rb"date: [^\r]+", b"date: now", received), b"x-last" not in received


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
def test_an_answer_is_written_as_uvicorn_writes_it(ports: tuple[int, int], name: str, method: bytes) -> None:
    ours, theirs = (ask(port, list(WRITTEN).index(name), method) for port in ports)
    assert ours == theirs and ours[0].startswith(b"HTTP/1.1 ")


def test_the_last_answer_of_a_connection_says_that_it_closes(ports: tuple[int, int]) -> None:
    ours, theirs = (ask(port, 0, more=b"Connection: close\r\n") for port in ports)
    assert ours == theirs and ours[1] and ours[0].count(b"\r\nconnection: close\r\n") == 1


@pytest.mark.parametrize("name", ["counted", "counted, in pieces", "closing", "204"])
def test_an_answer_to_an_old_client_is_written_as_uvicorn_writes_it(ports: tuple[int, int], name: str) -> None:
    ours, theirs = (ask(port, list(WRITTEN).index(name), version=b"1.0") for port in ports)
    assert ours == theirs and ours[1]


@pytest.mark.parametrize("name", REFUSED)
def test_an_answer_that_uvicorn_refuses_to_write_is_not_written(ports: tuple[int, int], name: str) -> None:
    number = len(WRITTEN) + list(REFUSED).index(name)
    ours, theirs = (ask(port, number) for port in ports)
    assert ours == theirs
    assert b"set-cookie" not in ours[0]
