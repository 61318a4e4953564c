"""Settles jobs that no caller watches: the caller went away, or a crash cut the call off.

It takes the open jobs of which nothing was heard for a while, and asks fal about those that are in fal's queue. A job
without an id there, or older than any job can be, is over. fal may have run it, so it is booked as reserved; only an
upload, which fal does not bill, is freed. So no reservation stays for ever, and none is freed that fal may bill.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from proxy.clock import Clock
from proxy.errors import ProxyError
from proxy.jobs.fal_queue import FalQueue
from proxy.jobs.settlement import Settlement, parse_document
from proxy.jobs.updates import COMPLETED
from proxy.limits.leases import Leases
from proxy.limits.quotas import JOB_SECONDS, UPLOAD
from proxy.recurring import Recurring
from proxy.stores.ledger import Job, Ledger
from proxy.targets import Kind, Target
from proxy.upstream import headers
from proxy.upstream.client import Upstream

#: After how long without news of a job it is looked after, and how often the ledger is asked for such jobs.
QUIET_SECONDS = 60.0
EVERY_SECONDS = 15.0
#: Jobs of one round; of these, how many fal is asked about at once; the pause between two jobs; the pause before the
#: next round if there may be more. With answers in 0.2 s these are 67 jobs a second. All at once, they would hold up
#: calls for 20 ms each second, and 20,000 queued jobs without a pause would use up the processor time of the calls.
MOST_AT_ONCE = 100
SIDE_BY_SIDE = 40
SPACING_SECONDS = 0.01
PAUSE_SECONDS = 0.3
_log = logging.getLogger(__name__)


class Reconciler:
    """Looks after open jobs.

    Args:
        is_watching: whether this process follows a job's stream anyway, so that fal is not asked about it.
    """

    def __init__(
        self,
        ledger: Ledger,
        upstream: Upstream,
        queue: FalQueue,
        settlement: Settlement,
        leases: Leases,
        clock: Clock,
        is_watching: Callable[[Job], bool] = lambda _: False,
    ) -> None:
        self._ledger = ledger
        self._upstream = upstream
        self._queue = queue
        self._settlement = settlement
        self._leases = leases
        self._clock = clock
        self._is_watching = is_watching
        self._running = Recurring("reconciliation", self.run_once, lambda: self.wait_seconds)
        #: How long to wait before the next round.
        self.wait_seconds = EVERY_SECONDS

    def start(self) -> None:
        """Begin to look after jobs, until `close`."""
        self._running.start()

    async def close(self) -> None:
        await self._running.close()

    async def run_once(self) -> int:
        """Look after the jobs that are due now, and return how many there were.

        Raises:
            StoreUnavailable: the ledger does not answer.
        """
        now = self._clock.now()
        self.wait_seconds = EVERY_SECONDS
        due = await self._ledger.take_due(now - QUIET_SECONDS, now, MOST_AT_ONCE)
        if len(due) == MOST_AT_ONCE:
            self.wait_seconds = PAUSE_SECONDS
        places, alive = asyncio.Semaphore(SIDE_BY_SIDE), list[str]()
        async with asyncio.TaskGroup() as group:
            for job in due:
                await places.acquire()
                group.create_task(self._look_after(job, alive)).add_done_callback(lambda _: places.release())
                await asyncio.sleep(SPACING_SECONDS)
        if alive:
            now = self._clock.now()
            await self._ledger.renew_jobs(alive, now, now + JOB_SECONDS)
        return len(due)

    async def _look_after(self, job: Job, alive: list[str]) -> None:
        """Look after one job, and add its id to `alive` if fal still has it."""
        try:
            if await self._is_alive(job):
                alive.append(job.id)
                await self._leases.restore(job)
        except ProxyError as problem:
            _log.info("job not reconciled", extra={"log_fields": {"job": job.id, "problem": problem.code}})
        except Exception:
            _log.exception("job not reconciled", extra={"log_fields": {"job": job.id}})

    async def _is_alive(self, job: Job) -> bool:
        """Settle a job that is over; True if fal still has it in its queue."""
        if job.expires_at <= self._clock.now() and job.kind == UPLOAD:
            # It broke off before fal had the file; otherwise it would be booked.
            await self._settlement.free(job)
        elif job.expires_at <= self._clock.now():
            await self._settlement.charge(job)
        elif job.request_id is not None:
            return self._is_watching(job) or await self._is_queued(job, job.request_id)
        return False

    async def _is_queued(self, job: Job, request_id: str) -> bool:
        """Ask fal about a job, and settle it if fal knows its end."""
        report = await self._queue.status(job, logs=False)
        if report.reply.status == 404:
            # fal does not know it any more, so it has ended.
            await self._settlement.charge(job)
        elif report.state is None or report.document is None:
            # fal is asked again, until it says more or the time of the job is over.
            _log.warning("state of a job unknown", extra={"log_fields": {"job": job.id, "status": report.reply.status}})
        elif report.state != COMPLETED:
            return True
        elif self._settlement.reports_tokens(job) and not report.document.get("error"):
            await self._record_result(job, request_id)
        return False

    async def _record_result(self, job: Job, request_id: str) -> None:
        target = Target(Kind.RESULT, app=job.app, request_id=request_id)
        reply = await self._upstream.fetch(target, headers.to_fal((), streams=False))
        await self._settlement.record_result(job, reply.status, None, parse_document(reply.body))
