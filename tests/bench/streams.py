"""Open status streams: the memory of each, and the time until the last of many watchers gets a job's end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

import httpx
import uvloop

from tests.bench.contestants import Contestant
from tests.bench.processes import resident_bytes
from tests.bench.rounds import ENDPOINT, submitted_job, submitted_jobs

SETTLE_SECONDS = 3.0
SAMPLE_SECONDS = 10.0
#: Connections that are opened at a time: no more than the queue of those that wait to be accepted.
AT_ONCE = 100
PATIENCE_SECONDS = 60.0
#: Streams that are opened and left before memory is looked at, and how often it is looked at afterwards.
HANG_UPS_WARM, HANG_UP_SAMPLES = 2_000, 5
KIB = 1024


@dataclass
class _Watcher(asyncio.Protocol):
    """One client of one status stream; knows when its first event came, and when the job's end did."""

    request: bytes
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    ended_at: float = 0.0
    refusal: bytes = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        if not self.refusal and data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 200 "):
            self.refusal = data
            self.opened.set()
        if b'"IN_PROGRESS"' in data:
            self.opened.set()
        if b'"COMPLETED"' in data:
            self.ended_at = time.perf_counter()
            self.ended.set()


def hang_ups(contestant: Contestant, streams: int) -> dict[str, Any]:
    """MiB that a process takes more after so many streams of one job whose clients hang up; samples on the way."""
    job = submitted_job(contestant)

    async def open_and_leave() -> list[float]:
        await _open_and_leave(contestant, job, HANG_UPS_WARM)
        before, samples = resident_bytes(contestant.process), []
        for _ in range(HANG_UP_SAMPLES):
            await _open_and_leave(contestant, job, streams // HANG_UP_SAMPLES)
            samples.append(round((resident_bytes(contestant.process) - before) / KIB / KIB, 1))
        return samples

    return {"streams": streams, "mib_more": uvloop.run(open_and_leave())}


async def _open_and_leave(contestant: Contestant, job: str, streams: int) -> None:
    for start in range(0, streams, AT_ONCE):
        async with _watch_all(contestant, [job] * min(AT_ONCE, streams - start)):
            continue


@contextlib.asynccontextmanager
async def _watch_all(contestant: Contestant, jobs: Sequence[str]) -> AsyncIterator[list[_Watcher]]:
    """A watcher for each job named, all of them past their first event."""
    watchers: list[_Watcher] = []
    try:
        for start in range(0, len(jobs), AT_ONCE):
            some = [await _watch(contestant, job) for job in jobs[start : start + AT_ONCE]]
            watchers += some
            async with asyncio.timeout(PATIENCE_SECONDS):
                await asyncio.gather(*(one.opened.wait() for one in some))
            if refused := next((one.refusal for one in some if one.refusal), None):
                raise RuntimeError(f"a status stream was refused: {refused.decode(errors='replace')}")
        yield watchers
    finally:
        for one in watchers:
            one.transport.abort()


async def _watch(contestant: Contestant, job: str) -> _Watcher:
    url = urlsplit(contestant.url)
    head = (
        f"GET {url.path} HTTP/1.1\r\nhost: {url.netloc}\r\nauthorization: Bearer {contestant.token}\r\n"
        "accept: text/event-stream\r\n"
        f"x-fal-target-url: https://queue.fal.run/{ENDPOINT}/requests/{job}/status/stream\r\n\r\n"
    )
    loop = asyncio.get_running_loop()
    _, watcher = await loop.create_connection(lambda: _Watcher(head.encode()), url.hostname or "", url.port or 80)
    return watcher


def memory(contestant: Contestant, streams: int, hold_seconds: float) -> dict[str, Any]:
    """KiB for each open stream, one watcher each on as many jobs; with `hold_seconds`, how it goes on from there."""
    jobs = submitted_jobs(contestant, streams)
    before = resident_bytes(contestant.process)

    async def held() -> list[float]:
        async with _watch_all(contestant, jobs):
            await asyncio.sleep(SETTLE_SECONDS)
            samples = [_per_stream(contestant, before, streams)]
            for _ in range(int(hold_seconds // SAMPLE_SECONDS)):
                await asyncio.sleep(SAMPLE_SECONDS)
                samples.append(_per_stream(contestant, before, streams))
            return samples

    samples = uvloop.run(held())
    over_time = {"seconds_between": SAMPLE_SECONDS, "kib_each_over_time": samples}
    return {"streams": streams, "kib_each": samples[0], **over_time}


def _per_stream(contestant: Contestant, before: int, streams: int) -> float:
    return round((resident_bytes(contestant.process) - before) / streams / KIB, 2)


def fan_out(contestant: Contestant, upstream: str, watchers: int) -> dict[str, Any]:
    """Milliseconds between the first and the last of many watchers of one job to hear of its end."""
    job = submitted_job(contestant)

    async def spread() -> float:
        async with (
            _watch_all(contestant, [job] * watchers) as all_of_them,
            httpx.AsyncClient(trust_env=False) as client,
        ):
            (await client.post(f"{upstream}/finish/{job}")).raise_for_status()
            async with asyncio.timeout(PATIENCE_SECONDS):
                await asyncio.gather(*(one.ended.wait() for one in all_of_them))
            heard = [one.ended_at for one in all_of_them]
            return max(heard) - min(heard)

    return {"watchers": watchers, "last_after_first_ms": round(uvloop.run(spread()) * 1000, 1)}
