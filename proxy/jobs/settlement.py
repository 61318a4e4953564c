"""The end of a call that costs something: what it used is booked once, and its slot is returned.

Whoever learns of the end calls here: the call itself, a status, a result, or the reconciler. Only the first one books.
If the database does not answer then, the booking follows as soon as it does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import orjson
from cachetools import LRUCache

from proxy.catalog import Catalog
from proxy.clock import Clock
from proxy.errors import NOTHING_RAN, ProxyError
from proxy.numbers import bounded, parse_decimal
from proxy.policy.inputs import MAX_TOKENS
from proxy.policy.leases import LEASE_SECONDS, Leases
from proxy.policy.quota import MILLION, Bookkeeper
from proxy.stores.base import Job

REMEMBERED = 50_000
#: The longest that a call can take of fal's machines, and so the most that fal's own word about it counts.
MOST_SECONDS = 86_400.0
_MAX_SHOWN = 40
N = TypeVar("N", int, float)
#: fal's answer: its status code, its billable units, its body.
_Answer = tuple[int, str | None, bytes | memoryview]
Bill = Callable[[int, str | None, bytes | memoryview], None]
_log = logging.getLogger(__name__)


class Settlement:
    def __init__(self, bookkeeper: Bookkeeper, leases: Leases, catalog: Catalog, clock: Clock) -> None:
        self._bookkeeper = bookkeeper
        self._leases = leases
        self._catalog = catalog
        self._clock = clock
        #: The jobs that are booked, with whether their slot was returned too.
        self._ended: LRUCache[str, bool] = LRUCache(REMEMBERED)
        self._renewed: LRUCache[str, float] = LRUCache(REMEMBERED)

    async def used(self, job: Job, *, seconds: float | None = None, tokens: int | None = None) -> None:
        """Book a call that ran. What fal did not report counts as reserved; seconds are those of its machines."""
        amounts = dict(job.used)
        if tokens is not None:
            amounts["tokens"] = tokens * MILLION
        if seconds is not None:
            price = getattr(self._catalog.get(job.endpoint), "price_per_compute_second", None) or 0
            amounts |= {"compute_seconds": round(seconds * MILLION), "usd": round(seconds * price * MILLION)}
        await self._end(job, amounts)

    async def stopped(self, job: Job) -> None:
        """Book a job that ran and was told to stop, as reserved: fal will not say what it used. Its slot is not free
        yet: not every model heeds it."""
        await self._end(job, job.used, frees_slot=False)

    async def unused(self, job: Job) -> None:
        """Free a call that fal refused, or that failed or was cancelled before it used anything."""
        await self._end(job, None)

    @asynccontextmanager
    async def costing(self, job: Job) -> AsyncIterator[Bill]:
        """The time of a run or stream. The block tells fal's answer; what happens without one is decided here."""
        answers: list[_Answer] = []
        started = self._clock.now()
        try:
            yield lambda status, units, body: answers.append((status, units, body))
        except NOTHING_RAN:
            await self.unused(job)
            raise
        except BaseException:
            # fal may have run it: then it is billed, and so it is booked.
            await asyncio.shield(self.used(job))
            raise
        try:
            await self._charge(job, answers, started)
        except asyncio.CancelledError:
            # The process ends. The answer is there and is given; its booking has been handed to the ledger.
            _resume_task()

    async def _charge(self, job: Job, answers: list[_Answer], started: float) -> None:
        if not answers:
            await self.used(job)
            return
        status, units, body = answers[-1]
        if status >= 400:
            await self.unused(job)
            return
        elapsed = min(max(self._clock.now() - started, 0.0), MOST_SECONDS)
        seconds = elapsed if units is None else _seconds_of(job, units)
        await self.used(job, seconds=seconds, tokens=_tokens_of(job, parsed(bytes(body))))

    @asynccontextmanager
    async def submitting(self, job: Job) -> AsyncIterator[Callable[[], None]]:
        """The time of a submit. The block calls what it is given when fal refused; otherwise fal has the job."""
        refused = False

        def refuse() -> None:
            nonlocal refused
            refused = True

        try:
            yield refuse
        except NOTHING_RAN:
            await self.unused(job)
            raise
        except BaseException:
            # fal may have it and run it, and nobody can ask: it is booked, and its slot is free when its time is over.
            self._leases.hand_over(job)
            await asyncio.shield(self.lost(job))
            raise
        if refused:
            await self.unused(job)
        else:
            self._leases.hand_over(job)

    async def lost(self, job: Job) -> None:
        """Book a job that fal may have and run, and that nobody can ask about, as reserved. Its slot is free when its
        time is over."""
        await self._end(job, job.used, frees_slot=False)

    async def _end(self, job: Job, used: Mapping[str, int] | None, *, frees_slot: bool = True) -> None:
        slot_is_free = self._ended.get(job.id, False)
        # First, so that it is on its way even if what follows is cancelled.
        booking = None if job.id in self._ended else self._bookkeeper.settle(job.id, used)
        if frees_slot and not slot_is_free:
            await self.returned(job)
        try:
            if booking is not None:
                await booking
            self._ended[job.id] = slot_is_free or frees_slot
        except ProxyError as problem:
            _log.warning("job %s is settled later: %s", job.id, problem.code)

    async def returned(self, job: Job) -> None:
        """The job is over at fal, and its slot free, whether or not it is known already what it used."""
        await self._leases.release(job)

    async def lives(self, job: Job) -> None:
        """fal told that the job is still queued or running: its slot is kept."""
        now = self._clock.now()
        if now - self._renewed.get(job.id, 0.0) < LEASE_SECONDS / 4:
            return
        self._renewed[job.id] = now
        try:
            await self._leases.renew(job)
        except ProxyError as problem:
            _log.warning("the slot of job %s could not be kept: %s", job.id, problem.code)

    async def saw_status(self, job: Job, status: Mapping[str, Any]) -> None:
        """Learn from a status document of fal's queue."""
        if status.get("status") != "COMPLETED":
            await self.lives(job)
            return
        metrics = status.get("metrics")
        report = metrics.get("inference_time") if isinstance(metrics, dict) else None
        seconds = _believed(job, "seconds", report, bounded(report, MOST_SECONDS))
        if status.get("error") and not seconds:
            await self.unused(job)
        elif self.reports_tokens(job) and not status.get("error"):
            await self.returned(job)
        else:
            await self.used(job, seconds=seconds)

    async def saw_result(self, job: Job, status_code: int, units: str | None, body: Any) -> None:
        """Learn from the result of a queued job: its status code, fal's billable units (seconds), its body."""
        if 200 <= status_code < 300:
            await self.used(job, seconds=_seconds_of(job, units), tokens=_tokens_of(job, body))
        elif status_code in (422, 499):
            await self.unused(job)

    def reports_tokens(self, job: Job) -> bool:
        """Whether the endpoint's result tells how many tokens were used, so that booking waits for it."""
        endpoint = self._catalog.get(job.endpoint)
        return endpoint is not None and "stats" in endpoint.output_schema.get("properties", {})


def _resume_task() -> None:
    """Take back the cancellation of this task, once, so that it goes on."""
    if (task := asyncio.current_task()) is not None:
        task.uncancel()


def parsed(body: bytes) -> Any:
    """The JSON of a body, or None for what is not JSON."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


def _seconds_of(job: Job, units: str | None) -> float | None:
    """The seconds that fal's header of billable units reports."""
    return _believed(job, "seconds", units, None if units is None else parse_decimal(units, MOST_SECONDS))


def _tokens_of(job: Job, body: Any) -> int | None:
    """The output tokens that a model's answer reports."""
    stats = body.get("stats") if isinstance(body, dict) else None
    report = stats.get("num_output_tokens") if isinstance(stats, dict) else None
    number = bounded(report, MAX_TOKENS)
    return _believed(job, "tokens", report, int(number) if number is not None and number == int(number) else None)


def _believed(job: Job, what: str, report: object, number: N | None) -> N | None:
    """The number in a report. One that no call can have used is logged, and booked as if fal had reported none."""
    if number is None and report is not None:
        facts = {"job": job.id, "what": what, "report": repr(report)[:_MAX_SHOWN]}
        _log.warning("usage report ignored", extra={"facts": facts})
    return number
