"""A hub in front of a scripted fal, and readers of every form."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import orjson

from proxy.drain import Drain
from proxy.jobs.events import job_events, status_events
from proxy.jobs.fal_queue import FalQueue
from proxy.jobs.hub import Hub
from proxy.jobs.watch import BACKOFF_SECONDS, Watch
from proxy.routes.jobs import as_job
from proxy.settings import Settings, read
from proxy.stores.ledger import Job
from proxy.targets import Kind, Target
from proxy.upstream.client import Upstream
from proxy.upstream.relay import BufferedResponse
from proxy.upstream.timeouts import Timeouts
from tests.support.clock import MovableClock
from tests.support.scripted import APP, ID, ScriptedFal
from tests.support.secrets import SECRET

JOB = Job("1", "submit", APP, "acme", "alice", submitted_at=0.0, expires_at=1e12, request_id=ID, state="accepted")


class SettlementRecorder:
    """Records what a settlement receives."""

    def __init__(self) -> None:
        self.saw: list[dict[str, Any]] = []
        self.living: list[str] = []

    async def record_status(self, job: Job, document: dict[str, Any]) -> None:
        self.saw.append({"job": job.id, "status": document["status"]})

    async def renew_lease(self, job: Job) -> None:
        self.living.append(job.id)


@dataclass
class Bench:
    hub: Hub
    queue: FalQueue
    fal: ScriptedFal
    upstream: Upstream
    clock: MovableClock
    drain: Drain
    recorder: SettlementRecorder = field(default_factory=SettlementRecorder)

    async def fetch(self) -> BufferedResponse:
        return await self.upstream.fetch(Target(Kind.RESULT, app=APP, request_id=ID), {})

    async def native(self, after: str | None = None) -> list[dict[str, str]]:
        """The events of the native stream to its end, without comments."""
        with reading(self.hub) as watch:
            await watch.first_update(3)
            events = [event async for event in job_events(watch, as_job, self.fetch, self.drain, after, "request")]
        return [found for event in events if (found := fields(event))]

    async def fal_form(self, *, logs: bool = True) -> list[dict[str, Any]]:
        with reading(self.hub) as watch:
            await watch.first_update(3)
            return [orjson.loads(one["data"]) async for one in _parse(status_events(watch, logs=logs, rewrite=None))]


def settings() -> Settings:
    return read({"FAL_KEY": "a:b", "PROXY_SESSION_SECRETS": SECRET})


@contextlib.asynccontextmanager
async def hub_before(
    fal: ScriptedFal,
    *,
    silence_seconds: float = 20.0,
    backoff: Sequence[float] = BACKOFF_SECONDS,
    turns_per_second: float = 1000,
    most_watches: tuple[int, int] = (100_000, 100_000),
) -> AsyncIterator[Bench]:
    upstream = Upstream(settings().fal, fal, Timeouts(status_stream=silence_seconds))
    most, per_tenant = most_watches
    clock, drain, recorder = MovableClock(), Drain(10), SettlementRecorder()
    queue = FalQueue(upstream, recorder)  # type: ignore[arg-type]
    hub = Hub(upstream, queue, recorder, clock, drain, backoff, turns_per_second, most, lambda: per_tenant)  # type: ignore[arg-type]
    try:
        yield Bench(hub, queue, fal, upstream, clock, drain, recorder)
    finally:
        await hub.close()


@contextlib.contextmanager
def reading(hub: Hub) -> Iterator[Watch]:
    """Read the job's watch during the block, as an event stream does."""
    watch = hub.join(JOB)
    try:
        yield watch
    finally:
        hub.leave(watch)


def is_reading(watch: Watch, count: int) -> bool:
    return watch.readers == count


def fields(event: bytes) -> dict[str, str]:
    """The fields of one event; empty for a comment."""
    pairs = [line.partition(": ") for line in event.decode().splitlines() if line and not line.startswith(":")]
    return {name: value for name, _, value in pairs}


async def _parse(events: AsyncIterator[bytes]) -> AsyncIterator[dict[str, str]]:
    async for event in events:
        if found := fields(event):
            yield found


def lines_of(documents: list[dict[str, Any]]) -> list[str]:
    return [line["message"] for document in documents for line in document["logs"] or ()]


async def cut_at(left: int, pieces: AsyncIterator[bytes], then: str) -> AsyncIterator[bytes]:
    """The first bytes of a stream, which then breaks, ends or stalls."""
    async for piece in pieces:
        if len(piece) > left:
            yield piece[:left]
            break
        left -= len(piece)
        yield piece
    if then == "drop":
        raise httpx.ReadError("cut")
    if then == "stall":
        await asyncio.Event().wait()
