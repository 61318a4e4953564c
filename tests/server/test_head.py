"""The head of a request has a bound: beyond it the caller is cut off, before any credential is checked."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing

import pytest
from starlette.applications import Starlette

from proxy.server.factory import ProtocolFactory
from proxy.server.protocol import MAX_HEAD_BYTES
from tests.support.servers import running


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with running(Starlette(), http=ProtocolFactory()) as url:
        yield int(url.rpartition(":")[2])


def answer_to(port: int, pieces: Iterator[bytes]) -> bytes:
    """The bytes that come back until the server hangs up, even if not all could be sent."""
    with closing(socket.create_connection(("127.0.0.1", port), timeout=60)) as wire:
        try:
            for piece in pieces:
                wire.sendall(piece)
        except OSError:
            pass
        answer = b""
        try:
            while chunk := wire.recv(65536):
                answer += chunk
        except ConnectionResetError:
            pass
        return answer


@pytest.mark.parametrize(
    "start",
    [b"GET / HTTP/1.1\r\nX-Long: ", b"GET /", b"GET / HTTP/1.1\r\nHost: x\r\nX"],
    ids=["header value", "path", "header name"],
)
def test_a_head_without_end_is_cut_off(port: int, start: bytes) -> None:
    sent = 0

    def pieces() -> Iterator[bytes]:
        nonlocal sent
        yield start
        for _ in range(640):
            yield b"a" * 65536
            sent += 65536

    answer = answer_to(port, pieces())
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")
    assert sent < 40 * 1024 * 1024, "forty megabytes were read"


def test_many_headers_are_cut_off(port: int) -> None:
    head = b"GET / HTTP/1.1\r\n" + b"".join(b"x-%d: %s\r\n" % (n, b"v" * 1000) for n in range(200))
    answer = answer_to(port, (head[at : at + 4096] for at in range(0, len(head), 4096)))
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")


def test_a_head_within_the_bound_is_answered_and_bodies_do_not_count(port: int) -> None:
    body = b"x" * (2 * MAX_HEAD_BYTES)
    head = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Long: %s\r\nContent-Length: %d\r\n\r\n"
    request = head % (b"v" * (MAX_HEAD_BYTES // 2), len(body)) + body
    assert answer_to(port, iter([request])).startswith(b"HTTP/1.1 404 ")
