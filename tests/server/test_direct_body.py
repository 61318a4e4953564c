"""A large body is read past the parser: each byte arrives as through the parser, and what follows is read as before."""

from __future__ import annotations

import hashlib
import random
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import cast

import pytest

from proxy.server.coalescing import MAX_DISCARDED_BYTES, CoalescingTransport
from proxy.server.connections import ConnectionLimits
from proxy.server.direct_body import LARGE_BYTES, MOST_LARGE, SMALL_BYTES, BodyBuffers, DirectBody
from tests.server.echo import Echo, bodies_of, echo_server, parse_answers
from tests.server.listening import Listening, listening, read_to_end
from tests.server.talk import talk
from tests.support.waiting import wait_until

MIB = 2**20
HOST = b"Host: proxy.example\r\n"
#: The last request: the server closes the connection behind its answer.
LAST = b"GET /last HTTP/1.1\r\nConnection: close\r\n" + HOST + b"\r\n"
#: Where it is read as a request, the length of the body was not heeded.
TRAP = b"GET /trap HTTP/1.1\r\nHost: x\r\n\r\n"
#: Every body with a length, of which a byte is left when its head was read; and none.
ALWAYS, NEVER = ConnectionLimits(direct_bytes=0), ConnectionLimits(direct_bytes=2**62)


def post(*lines: bytes, path: bytes = b"/first", body: bytes = TRAP, version: bytes = b"1.1") -> bytes:
    length = b"Content-Length: %d" % len(body)
    head = b"\r\n".join((b"POST %s HTTP/%s" % (path, version), HOST.strip(), *lines, length))
    return head + b"\r\n\r\n" + body


UPGRADE = (b"Connection: Upgrade", b"Upgrade: h2c")
CHUNKED = b"POST /chunked HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
CONVERSATIONS = {
    "one after the other": post() + post(path=b"/second") + LAST,
    "an ignored upgrade": post(*UPGRADE) + post(path=b"/second") + LAST,
    "an upgrade that closes": post(b"Connection: upgrade, close", b"Upgrade: h2c") + LAST,
    "a client that waits for 100": post(b"Expect: 100-continue") + LAST,
    "the last request": post(b"Connection: close") + LAST,
    "HTTP/1.0": post(version=b"1.0") + LAST,
    "chunks before and behind": CHUNKED + post() + CHUNKED + LAST,
    "no body": post(body=b"") + post(body=b"1") + LAST,
    "a line break behind the body": post() + b"\r\n" + LAST,
}


@pytest.fixture(scope="module", params=["uvloop", pytest.param("asyncio", marks=pytest.mark.slow)])
def both(request: pytest.FixtureRequest) -> Iterator[tuple[Echo, Echo]]:
    """A server that reads every body directly, and one that reads none so."""
    with echo_server(ALWAYS, loop=request.param) as direct, echo_server(NEVER, loop=request.param) as parsed:
        yield direct, parsed


def converse(echo: Echo, *pieces: bytes) -> tuple[int, list[tuple[int, bytes]], bool]:
    """How many interim answers came, what was answered, and whether the server then closed the connection."""
    data, closed = talk(echo.port, *pieces)
    return data.count(b" 100 Continue"), [(status, body) for status, _, body in parse_answers(data)], closed


#: Each makes hundreds of connections; the fast ones are read as most are, and with another framing around.
FAST = ("one after the other", "an upgrade that closes")


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case in FAST else pytest.mark.slow) for case in CONVERSATIONS]
)
def test_all_splits_of_a_conversation_are_read_as_the_parser_reads_them(both: tuple[Echo, Echo], case: str) -> None:
    direct, parsed = both
    data = CONVERSATIONS[case]
    expected = converse(parsed, data)
    assert expected[1] and not any(b"/trap" in body.partition(b'"body"')[0] for _, body in expected[1])
    splits = [(data[:at], data[at:]) for at in range(1, len(data))]
    with ThreadPoolExecutor(16) as pool:
        found = pool.map(lambda pieces: converse(direct, *pieces), [*splits, [data], cut(data, 1)])
    assert [one for one in found if one != expected] == []


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def test_what_is_wrong_behind_a_body_is_refused(both: tuple[Echo, Echo]) -> None:
    for echo in both:
        echo.requests.clear()
        _, answers, closed = converse(echo, post()[:-5], post()[-5:] + b"garbage\r\n\r\n" + LAST)
        assert closed and [status for status, _ in answers] in ([200], [200, 400])
        assert [one["path"] for one in echo.requests] == ["/first"]


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_pieces_stay_as_they_are_for_as_long_as_they_are_held(loop: str) -> None:
    body = random.Random(5).randbytes(8 * MIB)
    with echo_server(loop=loop) as echo:
        answer, _ = talk(echo.port, post(path=b"/pieces", body=body), post(path=b"/pieces", body=body[::-1]) + LAST)
    first, second, last = bodies_of(parse_answers(answer))
    assert (first["digest"], second["digest"]) == (digest(body), digest(body[::-1]))
    assert "memoryview" in first["kinds"] and "memoryview" in second["kinds"] and last["path"] == "/last"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def server() -> Iterator[Listening]:
    with listening(ConnectionLimits()) as server:
        yield server


def test_a_caller_that_hangs_up_in_its_body_is_gone(server: Listening) -> None:
    with server.connect(post(path=b"/read", body=bytes(4 * MIB))[: 2 * MIB]):
        server.wait_for(1)
        wait_until(lambda: server.application.paths == ["/read"], "the request does not arrive")
    server.wait_for(0)


def test_a_body_behind_an_unanswered_request_waits_for_its_turn(server: Listening) -> None:
    large = post(path=b"/read", body=bytes(4 * MIB))
    with server.connect(b"GET /hold HTTP/1.1\r\nHost: x\r\n\r\n" + large[: MIB // 2]) as wire:
        wait_until(lambda: server.application.paths == ["/hold"], "the request does not arrive")
        with ThreadPoolExecutor(1) as pool:
            sent = pool.submit(wire.sendall, large[MIB // 2 :] + LAST)
            server.application.released.set()
            answers = parse_answers(read_to_end(wire))
            sent.result(60)
    assert [body for _, _, body in answers] == [b"/hold", b"/read", b"/last"]


def test_a_body_that_goes_on_without_end_behind_its_answer_is_cut_off(server: Listening) -> None:
    begun = post(path=b"/now", body=bytes(64 * MIB))[: 3 * MIB]
    with server.connect(begun) as wire, pytest.raises(ConnectionError):
        for _ in range(10 * MAX_DISCARDED_BYTES // MIB):
            wire.sendall(bytes(MIB))


# The buffers.


@dataclass
class Receiver:
    """A connection that keeps the pieces of a body until `take`."""

    body_left: int
    pieces: list[bytes | memoryview] = field(default_factory=list)
    is_discarding: bool = False
    has_ended: bool = False
    #: Nothing is discarded here.
    transport: CoalescingTransport = field(default=cast(CoalescingTransport, None))

    def on_body(self, body: bytes | memoryview) -> None:
        self.pieces.append(body)
        self.body_left -= len(body)

    def end_direct_body(self) -> None:
        self.has_ended = True

    def eof_received(self) -> None: ...

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...

    def connection_lost(self, exc: Exception | None) -> None: ...


def receive(body: DirectBody, content: bytes) -> None:
    """Let so much arrive, in one piece."""
    buffer = body.get_buffer(-1)
    buffer[: len(content)] = content
    del buffer
    body.buffer_updated(len(content))


def test_a_buffer_is_used_again_when_nothing_has_a_view_of_it() -> None:
    connection = Receiver(100 * LARGE_BYTES)
    body = DirectBody(connection, BodyBuffers())
    used = set()
    for number in range(50):
        receive(body, bytes([number]) * LARGE_BYTES)
        piece = connection.pieces[-1]
        assert isinstance(piece, memoryview) and piece.readonly and piece[0] == piece[-1] == number
        used.add(id(piece.obj))
        # The application asks for the next while it still has this one.
        del connection.pieces[:-1], piece
    assert len(used) == 2


def test_a_small_piece_keeps_no_buffer() -> None:
    connection = Receiver(MIB)
    body = DirectBody(connection, BodyBuffers())
    for _ in range(10):
        receive(body, b"a")
    assert connection.pieces == [b"a"] * 10 and all(isinstance(piece, bytes) for piece in connection.pieces)


def test_nothing_is_read_beyond_the_body() -> None:
    connection = Receiver(LARGE_BYTES + 7)
    body = DirectBody(connection, BodyBuffers())
    receive(body, bytes(LARGE_BYTES))
    assert len(body.get_buffer(-1)) == 7 and not connection.has_ended
    receive(body, b"seven .")
    assert connection.has_ended and connection.pieces[-1] == b"seven ."


def test_bodies_share_the_large_buffers_and_have_small_ones_beside() -> None:
    buffers = BodyBuffers()
    connections = [Receiver(4 * LARGE_BYTES) for _ in range(2 * MOST_LARGE)]
    bodies = [DirectBody(connection, buffers) for connection in connections]
    sizes = [len(body.get_buffer(-1)) for body in bodies]
    assert sizes == [LARGE_BYTES] * 2 * MOST_LARGE, "none is in use while all wait"
    for number, body in enumerate(bodies):
        receive(body, bytes([number]) * len(body.get_buffer(-1)))
    sizes = [len(connection.pieces[0]) for connection in connections]
    assert sizes == [LARGE_BYTES] * MOST_LARGE + [SMALL_BYTES] * MOST_LARGE
    assert [connection.pieces[0][-1] for connection in connections] == list(range(2 * MOST_LARGE))


def test_the_buffers_go_with_the_last_body() -> None:
    buffers = BodyBuffers()
    tracemalloc.start()
    try:
        lost, whole = DirectBody(Receiver(MIB), buffers), DirectBody(Receiver(1), buffers)
        receive(lost, b"x")
        lost.connection_lost(None)
        assert tracemalloc.get_traced_memory()[0] > LARGE_BYTES
        receive(whole, b"x")
        assert tracemalloc.get_traced_memory()[0] < LARGE_BYTES and buffers.bodies == 0
    finally:
        tracemalloc.stop()
