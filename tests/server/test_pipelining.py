"""Requests that follow each other on one connection: a bad one ends the reading and costs no other its answer."""

from __future__ import annotations

import logging
import tracemalloc
from collections.abc import Iterator

import pytest

from proxy.server.coalescing import MAX_DISCARDED_BYTES
from proxy.server.connections import ConnectionLimits
from proxy.server.protocol import MAX_HEAD_BYTES
from tests.server.echo import Echo, bodies_of, echo_server, parse_answers
from tests.server.listening import Listening, listening, read_to_end
from tests.server.talk import talk
from tests.support.waiting import wait_until

UPGRADE = b"GET /first HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"
LATE = b"POST /late HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
NEXT = b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n"
#: The server closes the connection behind its answer.
LAST = b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
CHUNKED = b"POST /chunked HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def echo() -> Iterator[Echo]:
    with echo_server() as echo:
        yield echo


@pytest.fixture
def server() -> Iterator[Listening]:
    with listening(ConnectionLimits()) as server:
        yield server


def test_a_packet_may_hold_many_ignored_upgrades(echo: Echo, caplog: pytest.LogCaptureFixture) -> None:
    answer, _ = talk(echo.port, UPGRADE * 1000 + LAST)
    assert [one["path"] for one in bodies_of(parse_answers(answer))] == ["/first"] * 1000 + ["/last"]
    assert [one for one in caplog.records if one.levelno >= logging.ERROR] == []


def test_a_bad_request_costs_no_earlier_one_its_answer(server: Listening, caplog: pytest.LogCaptureFixture) -> None:
    with server.connect(LATE + NEXT + CHUNKED + b"zz\r\n") as wire:
        wait_until(lambda: server.application.paths == ["/late"], "the first request does not arrive")
        # It is read once the application asks for the body of its request.
        wire.sendall(b"more\r\n" * 100)
        server.application.released.set()
        answers = parse_answers(read_to_end(wire))
    assert [body for status, _, body in answers if status == 200] == [b"/late", b"/next"]
    assert [one for one in caplog.records if one.levelno >= logging.ERROR] == []


def test_a_head_is_bounded_while_an_earlier_request_is_answered(server: Listening) -> None:
    with server.connect(b"GET /hold HTTP/1.1\r\nHost: x\r\n\r\n") as wire:
        wait_until(lambda: server.application.paths == ["/hold"], "the first request does not arrive")
        with pytest.raises(ConnectionError):
            wire.sendall(b"GET /next HTTP/1.1\r\nHost: x\r\nX: ")
            for _ in range(10 * MAX_DISCARDED_BYTES // MIB):
                wire.sendall(b"x" * MIB)


def test_a_client_of_http_1_0_gets_no_interim_answer(echo: Echo) -> None:
    head = b"POST /old HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    answer, closed = talk(echo.port, head, b"{}")
    assert closed and answer.startswith(b"HTTP/1.1 200 ")


def test_trailers_within_the_bound_are_counted_once(echo: Echo) -> None:
    lines = [b"x: " + b"y" * 1000 + b"\r\n"] * 15
    answer, _ = talk(echo.port, CHUNKED + b"2\r\n{}\r\n0\r\n", *lines, b"\r\n" + LAST)
    assert [one["body"] for one in bodies_of(parse_answers(answer))] == ["{}", ""]


def test_trailers_of_one_packet_are_bounded(echo: Echo) -> None:
    lines = (b"x: " + b"y" * 1000 + b"\r\n") * 20
    answer, closed = talk(echo.port, CHUNKED + b"2\r\n{}\r\n0\r\n" + lines + b"\r\n" + NEXT)
    assert closed and [status for status, _, _ in parse_answers(answer)] == [400]


def test_a_host_that_is_too_long_is_not_remembered(echo: Echo) -> None:
    name = b"a" * (MAX_HEAD_BYTES - 1000)
    tracemalloc.start()
    try:
        for number in range(100):
            answer, _ = talk(echo.port, b"GET / HTTP/1.1\r\nHost: %d%s\r\n\r\n" % (number, name))
            assert answer.startswith(b"HTTP/1.1 400 ")
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 4 * MIB, "six megabytes would be all of them"
