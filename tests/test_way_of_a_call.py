"""The figures of docs/architecture.md about the way of a call: its hops, and how often JSON is read and written."""

from __future__ import annotations

import asyncio
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CoroutineType, FrameType
from typing import Any

import orjson
import pytest

import proxy
from proxy.upstream.engine import Reply, Request, StreamedReply
from proxy.upstream.transport import EngineTransport
from tests.support.limited import HOSTS, NEXT, PROTOCOL, Client, asking
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack, proxy_in_front_of

PROGRAM = str(Path(proxy.__file__).parent)
DOCUMENT = Path(__file__).parent.parent / "docs" / "architecture.md"
#: Where the way of a call begins and ends.
ROUTES, CALLS_FAL = f"{PROGRAM}/routes/", ("Upstream.call", "Upstream.fetch")


class Tracing(EngineTransport):
    """Notes through which functions each call came, over the tasks that wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.ways: list[list[str]] = []

    async def fetch(self, request: Request) -> Reply:
        self._note_way()
        return await super().fetch(request)

    async def open(self, request: Request) -> StreamedReply:
        self._note_way()
        return await super().open(request)

    def _note_way(self) -> None:
        task: asyncio.Task[Any] | None = asyncio.current_task()
        names = [_name(frame) for frame in _stack_of(sys._getframe())]
        while task is not None and (task := _waiting_for(task)) is not None:
            names = [_name(frame) for frame in _awaited_by(task.get_coro())] + names
        self.ways.append(names)

    def awaited(self) -> list[list[str]]:
        return [way for way in self.ways if any(name.startswith(ROUTES) for name in way)]

    def hops(self) -> int:
        """Of the last call that a route waited for: from its function to `Upstream.call` or `Upstream.fetch`."""
        way = [name for name in self.awaited()[-1] if name]
        first = next(number for number, name in enumerate(way) if name.startswith(ROUTES))
        last = next(number for number, name in enumerate(way) if name.endswith(CALLS_FAL))
        return last - first


def _stack_of(frame: FrameType | None) -> list[FrameType]:
    frames = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames[::-1]


def _awaited_by(awaitable: object) -> Iterator[FrameType]:
    """The frames of a coroutine and of those that it waits for."""
    while isinstance(awaitable, CoroutineType) and awaitable.cr_frame is not None:
        yield awaitable.cr_frame
        awaitable = awaitable.cr_await


def _waiting_for(task: asyncio.Task[Any]) -> asyncio.Task[Any] | None:
    """The task that waits until this one is done, or for something that is done then."""
    waited = {id(task)}
    for callback, *_ in task._callbacks or []:  # type: ignore[attr-defined]
        cells = [cell.cell_contents for cell in getattr(callback, "__closure__", None) or ()]
        waited |= {id(one) for one in cells if isinstance(one, asyncio.Future)}
    for other in asyncio.all_tasks() - {task}:
        if id(other._fut_waiter) in waited:  # type: ignore[attr-defined]
            return other
    return None


def _name(frame: FrameType) -> str:
    """The function of a frame, if it is one of the program's."""
    code = frame.f_code
    return f"{code.co_filename}:{code.co_qualname}" if code.co_filename.startswith(PROGRAM) else ""


@pytest.fixture(scope="module")
def transport() -> Tracing:
    return Tracing()


@pytest.fixture(scope="module")
def traced(
    shared_sandbox: SandboxControl, transport: Tracing, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    with proxy_in_front_of(shared_sandbox, tmp_path_factory.mktemp("traced"), transport=transport) as stack:
        yield stack


@pytest.fixture
def stack(traced: Stack, sandbox: SandboxControl) -> Stack:
    return traced


def figure(name: str) -> int:
    """A figure that the document states, in the row of a table."""
    (found,) = re.findall(rf"^\| {re.escape(name)} \| (\d+) \|", DOCUMENT.read_text(), re.MULTILINE)
    return int(found)


def run(alice: Client) -> None:
    assert alice.call("POST", f"run/{NEXT}", asking("?")).status_code == 200


def stream(alice: Client) -> int:
    answer = alice.call("POST", f"run/{NEXT}/stream", asking("?"))
    assert answer.status_code == 200
    return answer.text.count("data:")


def submit(alice: Client) -> None:
    alice.submitted()


def status(alice: Client) -> int:
    # Without a stream to follow, a poll itself asks fal.
    job = alice.submitted("[[pace hold=IN_QUEUE]] [[fault status=503 on=status-stream]] ?")
    assert alice.status(job).status_code == 202
    # Two answers: to the submit, and to the poll.
    return 2


def native_job(alice: Client) -> None:
    body = {"endpoint": NEXT, "input": asking("?")}
    with alice.stack.client(alice.token) as client:
        assert client.post("/v1/jobs", json=body).status_code == 202


def native_job_with_events(alice: Client) -> int:
    body = {"endpoint": NEXT, "input": asking("[[pace hold=IN_QUEUE]] ?")}
    with (
        alice.stack.client(alice.token, headers={"accept": "text/event-stream"}) as client,
        client.stream("POST", "/v1/jobs", json=body) as answer,
    ):
        assert answer.status_code == 200
    # Two answers: to the submit, and the first event of the job's stream.
    return 2


#: Each kind of call, with a row of the document's table, and what fal's answer has and no other JSON.
CALLS = [
    (run, "run", b'"output"'),
    (stream, "stream", b'"output"'),
    (submit, "submit", b'"IN_QUEUE"'),
    (status, "status", b'"IN_QUEUE"'),
    (native_job, "native job", b'"IN_QUEUE"'),
    (native_job_with_events, "native job with its events", b'"IN_QUEUE"'),
]


@pytest.fixture(params=[HOSTS, PROTOCOL])
def alice(stack: Stack, request: pytest.FixtureRequest) -> Iterator[Client]:
    with Client(stack, stack.token(), request.param) as client:
        yield client


@pytest.mark.parametrize(("call", "name", "_"), CALLS)
def test_from_a_route_to_fal_there_are_few_hops(
    alice: Client, transport: Tracing, call: Callable[[Client], int | None], name: str, _: bytes
) -> None:
    transport.ways.clear()
    call(alice)
    assert transport.hops() == figure(name) <= 5, transport.awaited()


@pytest.mark.parametrize(("call", "_", "mark"), CALLS)
def test_the_json_of_an_answer_is_read_and_written_once_at_most(
    alice: Client, call: Callable[[Client], int | None], _: str, mark: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: Counter[str] = Counter()
    loads, dumps = orjson.loads, orjson.dumps
    # The sandbox runs in another thread of this process.
    own = f"uvicorn-{alice.stack.settings.server.port}"

    def count(what: str, text: bytes) -> None:
        counted[what] += threading.current_thread().name == own and mark in text

    def counting_loads(text: Any) -> Any:
        count("read", text.encode() if isinstance(text, str) else bytes(text))
        return loads(text)

    def counting_dumps(*given: Any, **options: Any) -> bytes:
        text = dumps(*given, **options)
        count("written", text)
        return text

    monkeypatch.setattr(orjson, "loads", counting_loads)
    monkeypatch.setattr(orjson, "dumps", counting_dumps)
    # A stream is an answer in parts, each with its own JSON.
    most = call(alice) or 1
    assert counted["read"] <= most and counted["written"] <= most, counted
