"""A call leaves no objects that only the garbage collector can free, whether the caller, the proxy or fal ends it."""

from __future__ import annotations

import gc
import socket
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

import orjson
import pytest

from proxy.jobs.hub import IDLE_SECONDS
from tests.routes.jobs import JOBS, new
from tests.server.commands import serving
from tests.server.talk import talk
from tests.support.images import png
from tests.support.limited import NEXT, NOTHING, account, asking, limited_proxy, per, plan
from tests.support.sandbox import SandboxControl
from tests.support.servers import free_port
from tests.support.stack import Stack, proxy_in_front_of
from tests.support.waiting import wait_until

COUNT = 20
HELD = "[[pace hold=IN_PROGRESS]]"
SLOW = "[[pace run_seconds=30]]"
RUN, STREAM = f"/fal/run/{NEXT}", f"/fal/run/{NEXT}/stream"
WRONG = "data:image/png;base64,bm8gcGljdHVyZQ=="


class Wire:
    """Calls over plain sockets, whose client side leaves no garbage itself, each on a connection of its own."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self._port = urlsplit(stack.url).port or 0
        self._token = stack.token()

    @contextmanager
    def sent(
        self, method: str, path: str, body: object = None, accept: str = "*/*", key: str = ""
    ) -> Iterator[socket.socket]:
        content = b"" if body is None else orjson.dumps(body)
        lines = [
            f"{method} {path} HTTP/1.1",
            "host: proxy",
            f"authorization: Bearer {self._token}",
            f"accept: {accept}",
        ]
        if content:
            lines += ["content-type: application/json", f"content-length: {len(content)}"]
        if key:
            lines.append(f"idempotency-key: {key}")
        with closing(socket.create_connection(("127.0.0.1", self._port), timeout=60)) as wire:
            wire.sendall("\r\n".join([*lines, "", ""]).encode() + content)
            yield wire

    def ask(
        self, method: str, path: str, body: object = None, *, until: bytes | None, accept: str = "*/*", key: str = ""
    ) -> bytes:
        """Make a call, and hang up once the answer holds these bytes; without any, read it to its end."""
        received = b""
        with self.sent(method, path, body, accept, key) as wire:
            while (until is None or until not in received) and (piece := wire.recv(65536)):
                received += piece
        assert (until or b"HTTP/1.1 200 ") in received, received
        return received

    def leave(self, path: str, body: object) -> None:
        """Make a call, and hang up when fal works on it."""
        known = self._jobs_at_fal()
        with self.sent("POST", path, body):
            wait_until(lambda: self._jobs_at_fal() > known, "the call does not reach fal")

    def cut(self, path: str, file: bytes) -> None:
        """Begin to upload a file, and hang up when fal has half of it."""
        self.control("DELETE", "/requests")
        lines = [
            f"POST {path} HTTP/1.1",
            "host: proxy",
            f"authorization: Bearer {self._token}",
            "content-type: image/png",
            f"content-length: {len(file)}",
        ]
        half = file[: len(file) // 2]
        with closing(socket.create_connection(("127.0.0.1", self._port), timeout=60)) as wire:
            wire.sendall("\r\n".join([*lines, "", ""]).encode() + half)
            wait_until(lambda: self._file_bytes_at_fal() == len(half), "the upload does not reach fal")

    def _file_bytes_at_fal(self) -> int:
        requests = orjson.loads(self.control("GET", "/requests").partition(b"\r\n\r\n")[2])
        return sum(one["body_size"] for one in requests if one["host"] == "cdn")

    def _jobs_at_fal(self) -> int:
        return self.control("GET", "/jobs").count(b'"queue_position"')

    def control(self, method: str, path: str, body: object = None) -> bytes:
        """Ask the sandbox's control routes."""
        content = b"" if body is None else orjson.dumps(body)
        head = f"{method} /_sandbox{path} HTTP/1.1\r\nhost: sandbox\r\nconnection: close\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
        return talk(urlsplit(self.stack.sandbox.url).port or 0, head.encode() + content)[0]

    def create(self, prompt: str) -> str:
        answer = self.ask("POST", JOBS, new(prompt), until=b"}")
        id_: str = orjson.loads(answer.partition(b"\r\n\r\n")[2])["id"]
        return id_

    def metric(self, name: str) -> float:
        """The sum of a metric's samples, without those of this question."""
        answer, _ = talk(self._port, b"GET /metrics HTTP/1.1\r\nhost: proxy\r\nconnection: close\r\n\r\n")
        lines = [line for line in answer.decode().splitlines() if 'surface="/metrics"' not in line]
        return sum(float(line.split()[-1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    """A proxy in this process, whose garbage is counted, before a sandbox in another one."""
    folder = tmp_path_factory.mktemp("hang-ups")
    port = free_port()
    with (
        serving(
            "sandbox", "--port", str(port), environ={}, folder=folder, live_at="/_sandbox/jobs", port=port
        ) as server,
        proxy_in_front_of(SandboxControl(server.url), folder) as stack,
    ):
        yield Wire(stack)


@pytest.fixture(scope="module")
def held(wire: Wire) -> str:
    """A job that does not end."""
    return wire.create(HELD)


@pytest.fixture(scope="module")
def ended(wire: Wire) -> str:
    id_ = wire.create("What is this?")
    wire.ask("GET", f"{JOBS}/{id_}/events", until=b"event: result")
    return id_


def objects_left(wire: Wire, call: Callable[[], object]) -> int:
    """How many objects each call leaves to the collector.

    A statement leaves some when it is compiled, once and at an unpredictable call. What each call leaves is there in
    every round.
    """
    call()
    return min(_objects_of_round(wire, call) for _ in range(2))


def _objects_of_round(wire: Wire, call: Callable[[], object]) -> int:
    _settle(wire)
    gc.collect()
    gc.disable()
    try:
        before = wire.metric("fal_proxy_requests_total")
        for _ in range(COUNT):
            call()
        wait_until(lambda: wire.metric("fal_proxy_requests_total") >= before + COUNT, "calls go on without a caller")
        _settle(wire)
        return gc.collect() // COUNT
    finally:
        gc.enable()


def _settle(wire: Wire) -> None:
    """Wait until only this caller is connected, and no job without readers is followed."""
    wait_until(lambda: wire.metric("fal_proxy_connections") <= 1, "connections stay open")
    wire.stack.clock.advance(IDLE_SECONDS + 1)
    wait_until(lambda: wire.metric("fal_proxy_watched_jobs") == 0, "jobs are followed for ever")


@pytest.mark.parametrize("path", [JOBS + "/{}/events", f"/fal/queue/{NEXT}/requests/{{}}/status/stream"])
def test_a_stream_leaves_nothing_behind(wire: Wire, held: str, ended: str, path: str) -> None:
    assert objects_left(wire, lambda: wire.ask("GET", path.format(held), until=b"data: ")) == 0
    assert objects_left(wire, lambda: wire.ask("GET", path.format(ended), until=b"\r\n0\r\n\r\n")) == 0


def test_an_open_stream_holds_two_deques(wire: Wire) -> None:
    """Each takes 0.7 KiB, also while it is empty."""
    jobs = [wire.create(HELD) for _ in range(COUNT)]
    wire.ask("GET", f"{JOBS}/{jobs[0]}/events", until=b"data: ")
    _settle(wire)
    before = _count_deques()
    with ExitStack() as streams:
        for job in jobs:
            stream = streams.enter_context(wire.sent("GET", f"{JOBS}/{job}/events"))
            received = b""
            while b"data: " not in received:
                piece = stream.recv(65536)
                assert piece, received
                received += piece
        assert (_count_deques() - before) / COUNT < 2.5


def _count_deques() -> int:
    gc.collect()
    return sum(type(one) is deque for one in gc.get_objects())


def test_a_stream_that_begins_with_its_job_leaves_nothing_behind(wire: Wire) -> None:
    def watch() -> None:
        wire.ask("POST", JOBS, new(HELD), until=b"data: ", accept="text/event-stream")

    assert objects_left(wire, watch) == 0


@pytest.mark.parametrize(
    ("path", "body", "until"),
    [
        pytest.param(RUN, asking("What is this?"), b'"output"', id="run"),
        pytest.param(f"/fal/queue/{NEXT}", asking("What is this?"), b'"request_id"', id="submit"),
        pytest.param(STREAM, asking("What is this?"), b"\r\n0\r\n\r\n", id="stream"),
        pytest.param(STREAM, asking(SLOW), b"data: ", id="stream that is left"),
        pytest.param(
            STREAM,
            asking("What is this?", image_url=WRONG),
            b'"image_url"',
            id="stream that is refused",
        ),
    ],
)
def test_a_call_leaves_nothing_behind(wire: Wire, path: str, body: object, until: bytes) -> None:
    assert objects_left(wire, lambda: wire.ask("POST", path, body, until=until)) == 0


def test_a_call_with_a_key_leaves_nothing_behind(wire: Wire) -> None:
    keys = count()

    def run(path: str, until: bytes) -> None:
        wire.ask("POST", path, asking("What is this?"), until=until, key=f"{path}-{next(keys)}")

    assert objects_left(wire, lambda: run(RUN, b'"output"')) == 0
    assert objects_left(wire, lambda: run(f"/fal/queue/{NEXT}", b'"request_id"')) == 0
    wire.ask("POST", RUN, asking("What is this?"), until=b'"output"', key="again")
    assert (
        objects_left(wire, lambda: wire.ask("POST", RUN, asking("What is this?"), until=b"replayed", key="again")) == 0
    )


@pytest.mark.parametrize("path", [JOBS, "/v1/usage"])
def test_a_listing_leaves_nothing_behind(wire: Wire, ended: str, path: str) -> None:
    assert ended
    assert objects_left(wire, lambda: wire.ask("GET", path, until=b"}")) == 0


def test_a_run_that_is_left_leaves_nothing_behind(wire: Wire) -> None:
    assert objects_left(wire, lambda: wire.leave(RUN, asking(SLOW))) == 0


def test_an_upload_that_is_left_in_the_middle_leaves_nothing_behind(wire: Wire) -> None:
    assert objects_left(wire, lambda: wire.cut("/v1/uploads", png(400_000))) == 0


@pytest.mark.parametrize(
    ("fault", "path", "until"),
    [
        pytest.param({"fault": "drop_at", "bytes": 400, "on": {"operation": "stream"}}, STREAM, None, id="stream"),
        pytest.param({"fault": "drop", "when": "before", "on": {"operation": "run"}}, RUN, b'"message"', id="run"),
    ],
)
def test_a_call_that_fal_breaks_off_leaves_nothing_behind(
    wire: Wire, fault: dict[str, object], path: str, until: bytes | None
) -> None:
    wire.control("POST", "/faults", fault)
    try:
        assert objects_left(wire, lambda: wire.ask("POST", path, asking("What is this?"), until=until)) == 0
    finally:
        wire.control("DELETE", "/faults")


@pytest.mark.parametrize("path", [RUN, STREAM])
def test_a_call_whose_caller_left_before_it_was_sent_is_free(
    sandbox: SandboxControl, tmp_path: Path, path: str
) -> None:
    limits = {"acme": plan(quotas=[per("subject", "requests", 1)], concurrency={"subject": 1})}
    with limited_proxy(sandbox, tmp_path, limits) as stack, closing(sqlite3.connect(tmp_path / "proxy.db")) as database:
        wire = Wire(stack)
        # While another process writes, the reservation waits.
        database.execute("BEGIN IMMEDIATE")
        with wire.sent("POST", path, asking("What is this?")):
            wait_until(lambda: wire.metric("fal_proxy_connections") == 2, "the call does not arrive")
        wait_until(lambda: wire.metric("fal_proxy_connections") == 1, "the end of the connection is not seen")
        database.rollback()
        wait_until(lambda: wire.metric("fal_proxy_requests_total") >= 1, "the call goes on")
        assert account(tmp_path, "acme", "requests", "alice") == NOTHING
        assert sandbox.requests() == []
        wire.ask("POST", path, asking("What is this?"), until=b'"output"')
