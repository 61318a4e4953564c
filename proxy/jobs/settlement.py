"""The end of a call that costs something: what it used is booked, once, and its concurrency lease ends.

The call itself, a status, a result and the reconciler all report ends to `Settlement`. Only the first report is booked.
If the database does not answer, the booking follows as soon as it does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeVar

import orjson
from cachetools import LRUCache

from proxy.catalog import Catalog
from proxy.clock import Clock
from proxy.errors import NOTHING_RAN, ProxyError
from proxy.limits.inputs import MAX_TOKENS
from proxy.limits.leases import LEASE_SECONDS, Leases
from proxy.limits.quotas import MILLION, Quotas
from proxy.numbers import number_in_range, parse_decimal
from proxy.stores.ledger import Job

REMEMBERED = 50_000
#: The longest time of fal's machines that a call can use. fal's report of more than this is ignored.
MOST_SECONDS = 86_400.0
_MAX_SHOWN = 40
N = TypeVar("N", int, float)
_log = logging.getLogger(__name__)


class UsageReport(NamedTuple):
    """fal's answer to a run or stream: its status code, its billable units, and its document or last event."""

    status: int
    units: str | None
    document: Any


class Settlement:
    """Books what calls used, and ends their leases.

    Args:
        on_started: called with the seconds from the submit of a job to the first report that it runs.
    """

    def __init__(
        self,
        quotas: Quotas,
        leases: Leases,
        catalog: Catalog,
        clock: Clock,
        on_started: Callable[[float], None] = lambda _seconds: None,
    ) -> None:
        self._quotas = quotas
        self._leases = leases
        self._catalog = catalog
        self._clock = clock
        #: Jobs that are booked; whether their lease was released too.
        self._ended: LRUCache[str, bool] = LRUCache(REMEMBERED)
        #: Bookings under way, by job: a stream and a result often report an end at the same moment.
        self._bookings: dict[str, asyncio.Future[Any]] = {}
        self._renewed: LRUCache[str, float] = LRUCache(REMEMBERED)
        self._on_started = on_started
        self._started: LRUCache[str, bool] = LRUCache(REMEMBERED)

    async def charge(self, job: Job, *, seconds: float | None = None, tokens: int | None = None) -> None:
        """Book a call that ran. Of a unit that fal did not report, the reservation is charged.

        Args:
            seconds: of fal's machines.
            tokens: of the model's output.
        """
        reported: dict[str, int] = {}
        if tokens is not None:
            reported["tokens"] = tokens * MILLION
        if seconds is not None:
            reported["compute_seconds"] = round(seconds * MILLION)
        if job.id not in self._ended and job.id not in self._bookings:
            self._quotas.learned.add(job.size, reported)
        if seconds is not None:
            reported["usd"] = round(seconds * self._catalog.prices.get(job.endpoint, 0) * MILLION)
        await self._end(job, {**job.used, **reported})

    async def charge_unseen(self, job: Job) -> None:
        """Book a job as reserved that fal may run and does not report on: it was cancelled, or its id is lost.

        Its lease ends by itself: not every model heeds a cancellation.
        """
        await self._end(job, job.used, ends_lease=False)

    async def free(self, job: Job) -> None:
        """Free a call that fal refused, or that failed or was cancelled before it used anything."""
        await self._end(job, None)

    async def charge_call(self, job: Job, report: UsageReport | None, started: float) -> None:
        """Book a run or stream by fal's answer; as reserved if there is none.

        Args:
            started: when the call began, by the clock's monotonic time.
        """
        try:
            if report is None:
                await self.charge(job)
            elif report.status >= 400:
                await self.free(job)
            else:
                elapsed = min(self._clock.monotonic() - started, MOST_SECONDS)
                seconds = elapsed if report.units is None else _seconds_of(job, report.units)
                await self.charge(job, seconds=seconds, tokens=_tokens_of(job, report.document))
        except asyncio.CancelledError:
            # The process ends. The caller still gets the answer, and the ledger has the booking.
            _resume_task()

    async def charge_failed_call(self, job: Job, error: BaseException) -> None:
        """Book a run or stream that ended with an error instead of an answer."""
        if isinstance(error, NOTHING_RAN):
            await self.free(job)
        else:
            # fal may have run and billed it.
            await asyncio.shield(self.charge(job))

    @asynccontextmanager
    async def charging_stream(self, job: Job) -> AsyncIterator[list[UsageReport]]:
        """Book a stream at the end of the block, by the last report in the list that the block gets."""
        started = self._clock.monotonic()
        reports: list[UsageReport] = []
        try:
            yield reports
        except BaseException as error:
            await self.charge_failed_call(job, error)
            raise
        await self.charge_call(job, reports[-1] if reports else None, started)

    async def charge_failed_submit(self, job: Job, error: BaseException) -> None:
        """Book a submit that ended with an error instead of an answer."""
        if isinstance(error, NOTHING_RAN):
            await self.free(job)
        else:
            # fal may run it, and cannot be asked about it without an id: its lease ends with its time.
            self.hand_over(job)
            await asyncio.shield(self.charge_unseen(job))

    def hand_over(self, job: Job) -> None:
        """Note that fal has a job: its lease does not end with this process."""
        self._leases.hand_over(job)

    async def _end(self, job: Job, used: Mapping[str, int] | None, *, ends_lease: bool = True) -> None:
        if (earlier := self._bookings.get(job.id)) is not None:
            # Not awaited itself: if this task is cancelled, the other one still waits for it.
            await asyncio.wait({earlier})
        lease_has_ended = self._ended.get(job.id)
        # Begun first, so that it goes on if what follows is cancelled.
        booking = self._quotas.settle(job.id, used) if lease_has_ended is None else None
        if booking is not None:
            self._bookings[job.id] = booking
        try:
            if ends_lease and not lease_has_ended:
                await self.release_lease(job)
            if booking is not None:
                await booking
            self._ended[job.id] = bool(lease_has_ended) or ends_lease
        except ProxyError as problem:
            _log.warning("settlement postponed", extra={"log_fields": {"job": job.id, "problem": problem.code}})
        finally:
            if booking is not None:
                self._bookings.pop(job.id, None)

    def release_lease(self, job: Job) -> Awaitable[None]:
        """End the lease of a job that is over at fal, also if it is not known yet what the job used."""
        return self._leases.release(job)

    async def renew_lease(self, job: Job) -> None:
        """Renew the lease of a job that is queued or runs."""
        if self.is_lease_fresh(job):
            return
        self._renewed[job.id] = self._clock.now()
        try:
            await self._leases.renew(job)
        except ProxyError as problem:
            _log.warning("lease not renewed", extra={"log_fields": {"job": job.id, "problem": problem.code}})

    def is_lease_fresh(self, job: Job) -> bool:
        """Return whether the lease of a job was renewed so lately that it need not be again."""
        # A clock that was set back would otherwise put the next renewal off for as long.
        return 0 <= self._clock.now() - self._renewed.get(job.id, 0.0) < LEASE_SECONDS / 4

    async def record_status(self, job: Job, status: Mapping[str, Any]) -> None:
        """Learn from a status document of fal's queue."""
        if status.get("status") != "COMPLETED":
            if status.get("status") == "IN_PROGRESS" and job.id not in self._started:
                self._started[job.id] = True
                self._on_started(max(0.0, self._clock.now() - job.submitted_at))
            await self.renew_lease(job)
            return
        metrics = status.get("metrics")
        report = metrics.get("inference_time") if isinstance(metrics, dict) else None
        seconds = _accept_report(job, "seconds", report, number_in_range(report, MOST_SECONDS))
        if status.get("error") and not seconds:
            await self.free(job)
        elif self.reports_tokens(job) and not status.get("error"):
            await self.release_lease(job)
        else:
            await self.charge(job, seconds=seconds)

    async def record_result(self, job: Job, status_code: int, units: str | None, body: Any) -> None:
        """Learn from the result of a queued job: its status code, fal's billable units (seconds), its body."""
        if 200 <= status_code < 300:
            await self.charge(job, seconds=_seconds_of(job, units), tokens=_tokens_of(job, body))
        elif status_code in (422, 499):
            await self.free(job)

    def reports_tokens(self, job: Job) -> bool:
        """Return whether the endpoint's result tells how many tokens were used, so that booking waits for it."""
        endpoint = self._catalog.get(job.endpoint)
        return endpoint is not None and "stats" in endpoint.output_schema.get("properties", {})


def _resume_task() -> None:
    """Take back the cancellation of this task, once, so that it goes on."""
    if (task := asyncio.current_task()) is not None:
        task.uncancel()


def parse_document(body: bytes) -> Any:
    """Parse the JSON of a body; None if it is not JSON."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


def _seconds_of(job: Job, units: str | None) -> float | None:
    """Return the seconds that fal's header of billable units reports."""
    return _accept_report(job, "seconds", units, None if units is None else parse_decimal(units, MOST_SECONDS))


def _tokens_of(job: Job, body: Any) -> int | None:
    """Return the output tokens that a model's answer reports."""
    stats = body.get("stats") if isinstance(body, dict) else None
    report = stats.get("num_output_tokens") if isinstance(stats, dict) else None
    number = number_in_range(report, MAX_TOKENS)
    return _accept_report(job, "tokens", report, int(number) if number is not None and number == int(number) else None)


def _accept_report(job: Job, what: str, report: object, number: N | None) -> N | None:
    """Return the number in a report. One that no call can have used is logged, and counts as no report."""
    if number is None and report is not None:
        fields = {"job": job.id, "what": what, "report": repr(report)[:_MAX_SHOWN]}
        _log.warning("usage report ignored", extra={"log_fields": fields})
    return number
