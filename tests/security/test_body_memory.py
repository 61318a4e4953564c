"""Memory that bodies cost a served proxy: resident bytes of its process at the peak."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.security.hostile import NEXT
from tests.security.shape import INPUT, assert_refusal
from tests.security.wire import Answer, Wire
from tests.support.limited import plan
from tests.support.sandbox import running_sandbox
from tests.support.waiting import wait_until
from tests.uploads.served import Served, serving

MIB = 2**20
LARGEST = 12 * MIB
PAGE = "https://app.acme.example"
PLANS = {
    "plans": {"acme": plan()},
    "tenants": [{"id": "acme", "plan": "acme", "allowed_origins": [PAGE], "guests": {"enabled": True}}],
}
#: JSON that takes much more memory parsed than as text.
EXPLOSIVE = {
    "open lists": b"[" * LARGEST,
    "empty lists": b"[" + b"[]," * (LARGEST // 3 - 2) + b"1]",
    "numbers": b"[" + b"1," * (LARGEST // 2 - 2) + b"1]",
    "strings": b"[" + b'"",' * (LARGEST // 3 - 2) + b"1]",
    "keys": b"{" + b",".join(b'"%07d":1' % at for at in range(LARGEST // 12 - 1)) + b"}",
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with running_sandbox() as control, serving(control, tmp_path_factory.mktemp("body-memory"), PLANS) as served:
        # The first call loads modules: that memory does not count below.
        assert run(served, json.dumps(INPUT).encode()).status == 200
        yield served


def run(served: Served, body: bytes, path: str = f"/fal/run/{NEXT}", **headers: str) -> Answer:
    with Wire(served.url, 60) as wire:
        named = {"content-type": "application/json", **(headers or served.bearer)}
        return wire.exchange("POST", path, named.items(), body)


@pytest.fixture
def grown(served: Served) -> Iterator[list[int]]:
    """A list to which the test adds the growth that it allows, in bytes; checked at the end of the test."""
    allowed: list[int] = []
    before = served.memory()
    served.forget_peak()
    yield allowed
    growth = served.memory(peak=True) - before
    assert growth <= allowed[0], f"{growth / MIB:.1f} MiB"


@pytest.mark.parametrize("name", EXPLOSIVE)
def test_a_caller_without_a_credential_costs_almost_no_memory(served: Served, grown: list[int], name: str) -> None:
    grown.append(3 * MIB)
    path = "/v1/sessions/guest"
    with Wire(served.url) as wire:
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {LARGEST}\r\n"
        for origin, status, code in (
            (PAGE, 413, "body_too_large"),
            ("https://evil.example", 403, "origin_not_allowed"),
        ):
            connection = wire.connected()
            connection.sendall(f"{head}origin: {origin}\r\n\r\n".encode() + EXPLOSIVE[name][: MIB // 4])
            assert_refusal(wire.answer(connection, "POST"), status, code)
            wire.close()


@pytest.mark.parametrize("name", EXPLOSIVE)
def test_a_body_beyond_the_bounds_costs_less_than_three_times_its_size(
    served: Served, grown: list[int], name: str
) -> None:
    grown.append(3 * LARGEST)
    assert_refusal(run(served, EXPLOSIVE[name]), 400, "bad_request")


@pytest.mark.parametrize(
    "more", ['"' + "x" * (LARGEST - 1000) + '"', json.dumps(["x" * 120] * 95_000)], ids=["one", "many"]
)
def test_a_body_within_the_bounds_costs_a_few_times_its_size(served: Served, grown: list[int], more: str) -> None:
    grown.append(4 * LARGEST)
    body = json.dumps(INPUT)[:-1] + f', "more": {more}}}'
    assert run(served, body.encode()).status == 200


def test_forty_unfinished_bodies_of_one_address_hold_a_quarter_of_the_bound(served: Served, grown: list[int]) -> None:
    grown.append(64 * MIB + 16 * MIB)
    size = LARGEST - MIB // 10
    body = (json.dumps(INPUT)[:-1] + ', "more": "').encode().ljust(size - 1, b"x")
    named = "".join(f"{name}: {value}\r\n" for name, value in served.bearer.items())
    head = f"POST /fal/run/{NEXT} HTTP/1.1\r\nhost: x\r\n{named}content-length: {size}\r\n\r\n".encode()
    taken = []
    with ExitStack() as open_:
        for _ in range(40):
            connection = open_.enter_context(socket.create_connection(Wire(served.url).address, 60))
            if sent_all(connection, head + body):
                taken.append(connection)
        wait_until(lambda: sum(not is_refused(one) for one in taken) <= 5, "too many bodies are held")
    wait_until(lambda: run(served, body[:-MIB] + b'"}').status == 200, "the memory is still held")


def sent_all(connection: socket.socket, data: bytes) -> bool:
    """Send as much as the proxy accepts; return whether that was everything."""
    connection.settimeout(60)
    try:
        for start in range(0, len(data), 2**18):
            connection.sendall(data[start : start + 2**18])
    except OSError:
        return False
    return True


def is_refused(connection: socket.socket) -> bool:
    """Whether the proxy answered or closed the connection before the body's end."""
    connection.setblocking(False)
    try:
        connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
