"""Native jobs: the processor time of each from one POST, whose answer is the job's event stream, to its result."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import cast
from urllib.parse import urlsplit

import orjson
import uvloop

from tests.bench.contestants import Contestant
from tests.bench.markdown import write_paragraph
from tests.bench.processes import cpu_seconds
from tests.bench.rounds import ENDPOINT, INPUT

#: Most of a job's time is a pause before the end of its stream.
CONNECTIONS = 128
WARM_JOBS, JOBS = 500, 2_500
PATIENCE_SECONDS = 60.0
_END = b"0\r\n\r\n"


class _Connection(asyncio.Protocol):
    """A connection over which one message at a time is sent, and its answer read as far as it says something."""

    def __init__(self) -> None:
        self._received = b""
        self._news = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._news.set()

    def connection_lost(self, _error: Exception | None) -> None:
        self._news.set()

    def send(self, message: bytes) -> None:
        self._received = b""
        self.transport.write(message)

    async def read_until(self, *words: bytes) -> bytes:
        """What the answer says until all of these words are in it."""
        while not all(word in self._received for word in words):
            if self.transport.is_closing():
                raise RuntimeError(f"the connection closed after {self._received!r}")
            self._news.clear()
            await self._news.wait()
        return self._received


def measure_native_jobs(contestant: Contestant, upstream: str, rounds: int) -> list[float]:
    """Microseconds of the proxy's processor time for a job, in each round.

    Raises:
        RuntimeError: a job did not come to its result.
    """
    uvloop.run(_run_jobs(contestant, upstream, repeat(None, WARM_JOBS)))
    found = []
    for _ in range(rounds):
        before = cpu_seconds(contestant.process)
        uvloop.run(_run_jobs(contestant, upstream, repeat(None, JOBS)))
        found.append(round((cpu_seconds(contestant.process) - before) / JOBS * 1e6, 1))
    return found


def run_native_jobs(contestant: Contestant, upstream: str, seconds: float) -> float:
    """Microseconds of the proxy's processor time for a job, of all that begin in so many seconds.

    Raises:
        RuntimeError: as `measure_native_jobs`.
    """
    before, begun = cpu_seconds(contestant.process), list[None]()
    uvloop.run(_run_jobs(contestant, upstream, _begin_for(seconds, begun)))
    return (cpu_seconds(contestant.process) - before) / len(begun) * 1e6


def _begin_for(seconds: float, begun: list[None]) -> Iterator[None]:
    """Let jobs begin for so many seconds, and note each."""
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at:
        begun.append(None)
        yield


def describe_native_jobs(microseconds: Sequence[float]) -> str:
    """The section of the performance page."""
    words = f"""A native job is one `POST /v1/jobs` whose answer is the job's event stream, up to the result. With
        {CONNECTIONS} of them at a time, one takes {statistics.median(microseconds):.0f} µs of processor time of a
        fresh process."""
    return f"## Native jobs\n\n{write_paragraph(words)}"


async def _run_jobs(contestant: Contestant, upstream: str, waiting: Iterator[None]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS), asyncio.TaskGroup() as group:
        for _ in range(CONNECTIONS):
            group.create_task(_run_some(contestant, upstream, waiting))


async def _run_some(contestant: Contestant, upstream: str, waiting: Iterator[None]) -> None:
    """Run one job after the other until none is waiting."""
    proxy, fal = [await _connect(url) for url in (contestant.url, upstream)]
    body = orjson.dumps({"endpoint": ENDPOINT, "input": INPUT})
    accept = f"authorization: Bearer {contestant.token}\r\naccept: text/event-stream\r\n"
    request = _encode("POST", "/v1/jobs", f"{accept}content-type: application/json\r\n", body)
    for _ in waiting:
        proxy.send(request)
        # Once the job runs, fal is made to end it.
        status = (await proxy.read_until(b'"IN_PROGRESS"')).partition(b'"id":"')[2]
        job = status.partition(b'"')[0].decode()
        fal.send(_encode("POST", f"/finish/{job}", "", b""))
        await proxy.read_until(b"event: result", _END)
    for connection in (proxy, fal):
        connection.transport.close()


async def _connect(url: str) -> _Connection:
    place = urlsplit(url)
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(_Connection, place.hostname or "", place.port or 80)
    return connection


def _encode(method: str, path: str, headers: str, body: bytes) -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nhost: proxy.example\r\n{headers}content-length: {len(body)}\r\n\r\n"
    return head.encode() + body
