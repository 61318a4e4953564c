"""Connections have deadlines and bounds: none holds the server for longer than it may, and no answer is lost for it."""

from __future__ import annotations

import logging
import math
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest
from starlette.types import Receive, Scope, Send
from uvicorn import Config
from uvicorn.server import ServerState

from proxy.server.connections import MAX_ANSWERED_REFUSALS, SWEEP_SECONDS, ConnectionLimits
from proxy.server.factory import ProtocolFactory
from proxy.server.open_files import max_connections_within
from proxy.telemetry.log_limit import SECONDS, LogLimit
from tests.server.listening import LARGE_BYTES, Listening, listening, read_answer, read_to_end, refusal, trickle
from tests.support.waiting import wait_until

GET = b"GET %s HTTP/1.1\r\nhost: server\r\n\r\n"
HALF_A_HEAD = b"GET /half HTTP/1.1\r\nhost: ser"
LIMITS = ConnectionLimits()
#: After this time each deadline of a connection has passed, but none that lasts an hour.
SOON = LIMITS.connect_seconds + LIMITS.head_seconds + LIMITS.keep_alive_seconds + LIMITS.write_seconds


@pytest.fixture
def server() -> Iterator[Listening]:
    """A server whose clock a test moves."""
    with listening(LIMITS, loop="tests.server.listening:MovableLoop") as server:
        yield server


# Deadlines


def test_a_connection_that_sends_nothing_is_closed(server: Listening) -> None:
    with server.connect() as wire:
        server.wait_for(1)
        server.pass_time(LIMITS.connect_seconds - 5)
        server.wait_for(1)
        server.pass_time(5 + SWEEP_SECONDS)
        assert read_to_end(wire) == b""


def test_half_a_head_is_answered_408_and_closed(server: Listening) -> None:
    with server.connect(HALF_A_HEAD) as wire:
        server.wait_for(1)
        server.pass_time(0)
        server.pass_time(LIMITS.head_seconds + SWEEP_SECONDS)
        assert refusal(read_to_end(wire)) == (408, "request_timeout")


@pytest.mark.parametrize(
    ("first", "more"),
    [(b"", b"\r\n"), (HALF_A_HEAD, b"x"), (GET % b"/", b"\r\n"), (GET % b"/" + HALF_A_HEAD, b"x")],
    ids=["new", "in a head", "idle", "in the head of the next"],
)
def test_a_trickle_extends_no_deadline(server: Listening, first: bytes, more: bytes) -> None:
    with server.connect(first) as wire:
        server.wait_for(1)
        assert trickle(server, wire, more, 5, SOON)


def test_an_idle_connection_is_closed(server: Listening) -> None:
    with server.connect(GET % b"/") as wire:
        assert read_answer(wire)[1] == b"/"
        server.pass_time(LIMITS.keep_alive_seconds + SWEEP_SECONDS)
        assert read_to_end(wire) == b""


def test_the_head_of_a_later_request_has_the_same_deadline(server: Listening) -> None:
    with server.connect(GET % b"/") as wire:
        read_answer(wire)
        wire.sendall(HALF_A_HEAD)
        server.pass_time(0)
        server.pass_time(LIMITS.head_seconds + SWEEP_SECONDS)
        assert refusal(read_to_end(wire)) == (408, "request_timeout")


def test_a_connection_in_use_is_kept_open_for_longer_than_it_may_be_idle(server: Listening) -> None:
    with server.connect() as wire:
        for _ in range(5):
            wire.sendall(GET % b"/")
            assert read_answer(wire)[1] == b"/"
            server.pass_time(LIMITS.keep_alive_seconds - 5)


def test_a_request_that_takes_its_time_is_answered_also_with_half_a_head_behind_it(server: Listening) -> None:
    with server.connect(GET % b"/hold" + HALF_A_HEAD) as wire, server.connect(GET % b"/hold") as other:
        wait_until(lambda: server.application.paths == ["/hold"] * 2, "the requests do not arrive")
        server.pass_time(2 * SOON)
        server.application.released.set()
        assert (read_answer(wire)[1], read_answer(other)[1]) == (b"/hold", b"/hold")
        server.pass_time(LIMITS.head_seconds + SWEEP_SECONDS)
        assert refusal(read_to_end(wire)) == (408, "request_timeout")


def test_a_caller_that_reads_nothing_of_its_answer_is_cut() -> None:
    with listening(replace(LIMITS, write_seconds=0.5)) as server, socket.socket() as wire:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wire.connect(("127.0.0.1", server.port))
        wire.sendall(GET % b"/large")
        wait_until(lambda: server.application.paths == ["/large"], "the request does not arrive")
        server.wait_for(0)


def test_a_caller_that_reads_slowly_gets_its_whole_answer() -> None:
    """It takes longer than a caller may take nothing, which is the system's time."""
    write_seconds = 5
    with listening(replace(LIMITS, write_seconds=write_seconds)) as server, socket.socket() as wire:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 256 * 1024)
        wire.connect(("127.0.0.1", server.port))
        wire.sendall(GET % b"/large")
        received = 0
        while received < LARGE_BYTES and (chunk := wire.recv(1 << 20)):
            received += len(chunk)
            time.sleep(1.5 * write_seconds * len(chunk) / LARGE_BYTES)
        assert received >= LARGE_BYTES


# Bodies that are not read


def test_an_answer_before_the_end_of_its_request_arrives_and_closes(server: Listening) -> None:
    size = 8 * 1024 * 1024
    with server.connect(b"POST /early HTTP/1.1\r\nhost: server\r\ncontent-length: %d\r\n\r\n" % size) as wire:
        for _ in range(size // 65536):
            wire.sendall(bytes(65536))
        answer = read_to_end(wire)
    assert answer.startswith(b"HTTP/1.1 200 ") and b"\r\nconnection: close\r\n" in answer and answer.endswith(b"/early")


def test_an_unread_body_does_not_hold_its_connection(server: Listening) -> None:
    with server.connect(b"POST /early HTTP/1.1\r\nhost: server\r\ncontent-length: 1000000\r\n\r\n") as wire:
        read_answer(wire)
        assert trickle(server, wire, b"x", 1, SOON)
    server.wait_for(0)


def test_what_comes_after_an_early_answer_is_not_taken_for_a_request(server: Listening) -> None:
    with server.connect(b"POST /early HTTP/1.1\r\nhost: server\r\ntransfer-encoding: chunked\r\n\r\n") as wire:
        read_answer(wire)
        wire.sendall(b"0\r\n\r\n" + GET % b"/smuggled")
        assert read_to_end(wire) == b""
    assert "/smuggled" not in server.application.paths


def test_a_connection_whose_body_was_read_is_kept_open(server: Listening) -> None:
    with server.connect(b"POST /read HTTP/1.1\r\nhost: server\r\ncontent-length: 4\r\n\r\n") as wire:
        wire.sendall(b"body")
        assert b"connection: close" not in read_answer(wire)[0]
        wire.sendall(GET % b"/next")
        assert read_answer(wire)[1] == b"/next"


# Bounds


def test_one_address_cannot_take_more_than_its_share(caplog: pytest.LogCaptureFixture) -> None:
    with listening(ConnectionLimits(most_per_address=3)) as server, ExitStack() as held:
        first = [held.enter_context(server.connect(GET % b"/")) for _ in range(3)]
        for wire in first:
            read_answer(wire)
        for _ in range(4):
            with server.connect(GET % b"/refused") as wire:
                assert refusal(read_to_end(wire)) == (503, "too_many_connections")
        with server.connect(GET % b"/other", source="127.0.0.2") as wire:
            assert read_answer(wire)[1] == b"/other"
        first[0].close()
        server.wait_for(2)
        with server.connect(GET % b"/again") as wire:
            assert read_answer(wire)[1] == b"/again"
        assert "/refused" not in server.application.paths
        assert server.count("fal_proxy_connections_refused_total", limit="address") == 4
    (line,) = warnings(caplog)
    assert line.log_fields == {"address": "127.0.0.1", "limit": "address", "most": 3, "connections": 3}  # type: ignore[attr-defined]


def warnings(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.message == "connection limit reached"]


@pytest.mark.parametrize(
    "limits",
    [
        ConnectionLimits(most_per_address=1, trusted=("127.0.0.0/8",)),
        ConnectionLimits(most=3),
    ],
    ids=["trusted", "private, by default"],
)
def test_a_balancer_is_not_bounded_as_one_caller(limits: ConnectionLimits) -> None:
    with (
        listening(limits) as server,
        server.connect(GET % b"/one") as one,
        server.connect(GET % b"/two") as two,
    ):
        assert (read_answer(one)[1], read_answer(two)[1]) == (b"/one", b"/two")


@pytest.mark.parametrize(
    ("limits", "host", "most"),
    [
        (ConnectionLimits(most=300), "8.8.8.8", 100),
        (ConnectionLimits(most=300), "2001:4860::1", 100),
        (ConnectionLimits(most=300), "::ffff:8.8.8.8", 100),
        (ConnectionLimits(most=1), "8.8.8.8", 1),
        (ConnectionLimits(most=300), "10.1.2.3", math.inf),
        (ConnectionLimits(most=300), "::ffff:10.1.2.3", math.inf),
        (ConnectionLimits(most=300), "fd00::1", math.inf),
        (ConnectionLimits(most=300), "127.0.0.1", math.inf),
        (ConnectionLimits(most_per_address=7), "10.1.2.3", 7),
        (ConnectionLimits(most_per_address=7), "8.8.8.8", 7),
    ],
)
def test_how_many_connections_an_address_may_have(limits: ConnectionLimits, host: str, most: float) -> None:
    assert limits.most_from((host, 1)) == most


@pytest.mark.parametrize(
    ("limits", "files", "expected"),
    [
        (ConnectionLimits(), 1_048_576, (12_000, None)),
        (ConnectionLimits(), 4096, (2016, None)),
        (ConnectionLimits(most_per_address=600), 4096, (2016, 100)),
        (ConnectionLimits(most_per_address=2), 90, (13, 1)),
        (ConnectionLimits(), 20, (8, None)),
    ],
)
def test_few_files_mean_few_connections(limits: ConnectionLimits, files: int, expected: tuple[int, int | None]) -> None:
    within = limits.scale_to(max_connections_within(files))
    assert (within.most, within.most_per_address) == expected


@pytest.mark.parametrize("waiting", [b"", HALF_A_HEAD, GET % b"/"], ids=["new", "in a head", "idle"])
def test_a_full_server_lets_a_new_caller_in_for_one_that_waits(
    waiting: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with listening(ConnectionLimits(most=4)) as server, ExitStack() as held:
        for _ in range(20):
            wire = held.enter_context(server.connect(waiting))
            if waiting.endswith(b"\r\n\r\n"):
                read_answer(wire)
        with server.connect(GET % b"/new") as wire:
            assert read_answer(wire)[1] == b"/new"
            server.wait_for(4)
        assert server.count("fal_proxy_connections_evicted_total") == 17
        assert server.count("fal_proxy_connections_refused_total", limit="process") == 0
    (line,) = warnings(caplog)
    assert line.log_fields == {"address": "127.0.0.1", "limit": "process", "most": 4, "connections": 4}  # type: ignore[attr-defined]


def test_a_full_server_closes_none_that_it_owes_an_answer() -> None:
    with (
        listening(ConnectionLimits(most=2)) as server,
        server.connect(GET % b"/hold") as one,
        server.connect(GET % b"/hold") as two,
    ):
        server.wait_for(2)
        wait_until(lambda: len(server.application.paths) == 2, "the requests did not arrive")
        for _ in range(2):
            with server.connect(GET % b"/refused") as wire:
                assert refusal(read_to_end(wire)) == (503, "too_many_connections")
        server.application.released.set()
        assert (read_answer(one)[1], read_answer(two)[1]) == (b"/hold", b"/hold")
        assert server.count("fal_proxy_connections_refused_total", limit="process") == 2
        wait_until(lambda: is_let_in(server), "a connection that waits makes no room")
    assert "/refused" not in server.application.paths


def is_let_in(server: Listening) -> bool:
    with server.connect(GET % b"/") as wire:
        return read_answer(wire)[1] == b"/"


def test_many_refused_connections_at_once_are_not_all_answered() -> None:
    with listening(ConnectionLimits(most_per_address=1)) as server, ExitStack() as held:
        read_answer(held.enter_context(server.connect(GET % b"/")))
        # All of them come before the first refusal has been read for long enough.
        server.hold_up(until=(may_go_on := threading.Event()))
        refused = [held.enter_context(server.connect()) for _ in range(MAX_ANSWERED_REFUSALS + 20)]
        may_go_on.set()
        answers = [first_bytes(wire) for wire in refused]
    assert answers.count(b"HTTP") >= 1 and answers.count(b"") >= 1
    assert answers.count(b"HTTP") <= MAX_ANSWERED_REFUSALS


def first_bytes(wire: socket.socket) -> bytes:
    try:
        return wire.recv(4)
    except ConnectionError:
        return b""


# What strangers can make the log say


def test_bad_requests_are_logged_once_a_minute_with_their_address(caplog: pytest.LogCaptureFixture) -> None:
    with listening(ConnectionLimits()) as server:
        for source in ("127.0.0.1", "127.0.0.1", "127.0.0.2", "127.0.0.1"):
            with server.connect(b"\x16\x03\x01 hello\r\n\r\n", source=source) as wire:
                assert refusal(read_to_end(wire)) == (400, "bad_request")
            upgrade = b"GET /up HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
            with server.connect(upgrade, source=source) as wire:
                read_answer(wire)
    lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [(line.message, line.log_fields["address"]) for line in lines] == [  # type: ignore[attr-defined]
        ("bad request", "127.0.0.1"),
        ("bad request", "127.0.0.2"),
    ]
    assert all(line.log_fields["error_type"] == "bad_request" and line.log_fields["reason"] for line in lines)  # type: ignore[attr-defined]


def test_the_log_does_not_grow_with_the_number_of_addresses() -> None:
    now = 0.0
    limit = LogLimit(most=3, timer=lambda: now)
    assert [number for number in range(100) if limit.admits(f"10.0.0.{number}")] == [0, 1, 2]
    now = SECONDS + 1
    assert limit.admits("10.0.0.0") and not limit.admits("10.0.0.0")


# Memory


async def ignore(_scope: Scope, _receive: Receive, _send: Send) -> None:
    raise AssertionError("nothing is asked")


@pytest.mark.anyio
async def test_a_connection_keeps_its_attributes_in_a_small_dictionary() -> None:
    """Beyond thirty names CPython gives each object a dictionary of its own, of 1.5 kilobytes."""
    config = Config(ignore)
    config.load()
    factory, state = ProtocolFactory(), ServerState()
    # Those of one class share their names from the second one on.
    protocols = [factory(config, state, {}) for _ in range(2)]
    assert sys.getsizeof(vars(protocols[-1])) < 500
