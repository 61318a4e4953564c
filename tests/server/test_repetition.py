"""Requests that are answered by their bytes, before they are parsed: only whole ones, and only between others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from proxy.http.repetition import MOST_BYTES, Answer, WholeRequest
from proxy.server.connections import ConnectionLimits
from tests.server.echo import parse_answers
from tests.server.listening import Listening, listening, read_answer, read_to_end
from tests.server.talk import talk
from tests.support.waiting import wait_until

POLL = b"GET /poll HTTP/1.1\r\nHost: x\r\n\r\n"
NEXT = b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n"
#: The server closes the connection behind its answer.
LAST = b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@dataclass
class Answers:
    """Answers `POLL` by its bytes; `asked` has all that the server asked about."""

    asked: list[WholeRequest] = field(default_factory=list)

    def find(self, request: WholeRequest) -> Answer | None:
        self.asked.append(request)
        is_known = request.data == POLL
        return Answer(202, b"\r\ncontent-length: 5", b"again") if is_known else None


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest.fixture
def server(answers: Answers) -> Iterator[Listening]:
    with listening(ConnectionLimits(), answer_again=answers.find) as server:
        yield server


def said(data: bytes) -> list[tuple[int, bytes]]:
    return [(status, body) for status, _, body in parse_answers(data)]


def test_a_known_request_is_answered_between_others(server: Listening, answers: Answers) -> None:
    received, closed = talk(server.port, POLL, NEXT, POLL, POLL, LAST)
    again = (202, b"again")
    assert said(received) == [again, (200, b"/next"), again, again, (200, b"/last")] and closed
    assert server.application.paths == ["/next", "/last"]
    assert {request.host for request in answers.asked} == {"127.0.0.1"}
    assert b"\r\ndate: " in received.partition(b"\r\n\r\n")[0]


def test_the_bytes_of_a_whole_request_are_handed_over(server: Listening) -> None:
    talk(server.port, NEXT, LAST)
    assert server.application.whole == [WholeRequest(NEXT, "127.0.0.1"), WholeRequest(LAST, "127.0.0.1")]


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([NEXT[:9], NEXT[9:]], id="in pieces"),
        pytest.param([NEXT + LAST], id="two at once"),
        pytest.param([NEXT + LAST[:5], LAST[5:]], id="with the beginning of another"),
        pytest.param([b"\r\n" + NEXT], id="behind an empty line"),
        pytest.param([NEXT + b"\r\n"], id="before an empty line"),
        pytest.param([b"POST /next HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"], id="another method"),
        pytest.param([b"GET /next HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"], id="with a body"),
    ],
)
def test_bytes_that_are_not_one_whole_request_are_parsed(server: Listening, pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    talk(server.port, *pieces, *([] if LAST in data else [LAST]))
    assert server.application.paths == ["/next", "/last"]
    assert server.application.whole[0] is None


def test_a_body_is_not_taken_for_a_request(server: Listening, answers: Answers) -> None:
    head = b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (2 * len(POLL))
    received, _ = talk(server.port, head, POLL, POLL, LAST)
    assert said(received) == [(200, b"/read"), (200, b"/last")]
    assert POLL not in [request.data for request in answers.asked]


def test_the_rest_of_a_head_is_not_taken_for_a_request(server: Listening, answers: Answers) -> None:
    received, _ = talk(server.port, b"POST /next HTTP/1.1\r\nHost: x\r\nX: ", POLL, LAST)
    assert [status for status, _ in said(received)] == [400]
    assert POLL not in [request.data for request in answers.asked]


def test_a_request_behind_one_that_is_being_answered_waits(server: Listening) -> None:
    with server.connect(b"GET /hold HTTP/1.1\r\nHost: x\r\n\r\n") as wire:
        wait_until(lambda: server.application.paths == ["/hold"], "the first request does not arrive")
        wire.sendall(POLL + LAST)
        server.application.released.set()
        assert said(read_to_end(wire)) == [(200, b"/hold"), (200, b"/poll"), (200, b"/last")]


def test_behind_bytes_that_belong_to_no_request_each_is_parsed(server: Listening) -> None:
    received, _ = talk(server.port, b"\r\n", POLL, LAST)
    assert said(received) == [(200, b"/poll"), (200, b"/last")]


def test_nothing_is_answered_behind_a_refusal(server: Listening) -> None:
    received, closed = talk(server.port, b"GET /x HTTP/1.1\r\n\r\n", POLL)
    assert [status for status, _ in said(received)] == [400] and closed


def test_a_long_request_is_not_looked_up(server: Listening, answers: Answers) -> None:
    long = NEXT[:-2] + b"x: " + b"y" * MOST_BYTES + b"\r\n\r\n"
    with server.connect(long) as wire:
        assert read_answer(wire)[1] == b"/next"
    assert answers.asked == [] and server.application.whole == [None]


def test_the_text_of_a_request_shows_no_session() -> None:
    request = WholeRequest(b"GET / HTTP/1.1\r\nAuthorization: Bearer secret\r\n\r\n", "127.0.0.1")
    assert repr(request) == str(request) == "WholeRequest(48 bytes from 127.0.0.1)"
