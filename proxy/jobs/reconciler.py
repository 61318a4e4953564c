"""Settles what no caller watched: jobs whose caller went away, and calls that a crash cut off.

Regularly it takes the open jobs that nothing was heard of for a while. What fal has in its queue is asked for; what has
no id there, or is older than any job can be, is over: fal may have run it, so it is booked as reserved. No reservation
outlives this, and none is freed that fal may bill; uploads it does not.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator

from starlette.datastructures import Headers

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
from proxy.upstream.relay import read_body

#: How long nothing must have been heard of a job, and how often is looked.
QUIET_SECONDS = 60.0
EVERY_SECONDS = 15.0
#: Jobs that a process takes from the ledger at once, and how many of them it asks fal about side by side: at 0.2 s an
#: answer that is 100 jobs a second.
MOST_AT_ONCE = 200
SIDE_BY_SIDE = 20
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
        self._running = Recurring("reconciliation", self._run_to_the_end, lambda: EVERY_SECONDS)

    def start(self) -> None:
        """Begin to look after jobs, until `close`."""
        self._running.start()

    async def close(self) -> None:
        await self._running.close()

    async def _run_to_the_end(self) -> None:
        while await self.run_once() == MOST_AT_ONCE:
            # There are more.
            continue

    async def run_once(self) -> int:
        """Look after what is due now; how many jobs that were.

        Raises:
            StoreUnavailable: the ledger does not answer.
        """
        now = self._clock.now()
        due = await self._ledger.take_due(now - QUIET_SECONDS, now, MOST_AT_ONCE)
        waiting = iter(due)
        async with asyncio.TaskGroup() as group:
            for _ in range(min(SIDE_BY_SIDE, len(due))):
                group.create_task(self._look_after_each(waiting))
        return len(due)

    async def _look_after_each(self, waiting: Iterator[Job]) -> None:
        """Take one job after the other, until none is left."""
        for job in waiting:
            try:
                await self._look_after(job)
            except ProxyError as problem:
                _log.info("job not reconciled", extra={"log_fields": {"job": job.id, "problem": problem.code}})
            except Exception:
                _log.exception("job not reconciled", extra={"log_fields": {"job": job.id}})

    async def _look_after(self, job: Job) -> None:
        if job.expires_at <= self._clock.now() and job.kind == UPLOAD:
            # It broke off before fal had the file, or it would be booked.
            await self._settlement.free(job)
        elif job.expires_at <= self._clock.now():
            await self._settlement.charge(job)
        elif job.request_id is not None and self._is_watching(job):
            await self._lives(job)
        elif job.request_id is not None:
            await self._ask(job, job.request_id)

    async def _lives(self, job: Job) -> None:
        now = self._clock.now()
        await self._ledger.heard_of(job.id, now, now + JOB_SECONDS)
        await self._leases.restore(job)

    async def _ask(self, job: Job, request_id: str) -> None:
        report = await self._queue.status(job, logs=False)
        if report.reply.status == 404:
            # fal does not know it any more: it ended, unseen, and is booked as reserved.
            await self._settlement.charge(job)
        elif report.state is None or report.document is None:
            # No word of the job: it is asked again, and if none ever comes, its time ends.
            _log.warning("state of a job unknown", extra={"log_fields": {"job": job.id, "status": report.reply.status}})
        elif report.state != COMPLETED:
            await self._lives(job)
        elif self._settlement.reports_tokens(job) and not report.document.get("error"):
            await self._record_result(job, request_id)

    async def _record_result(self, job: Job, request_id: str) -> None:
        target = Target(Kind.RESULT, app=job.app, request_id=request_id)
        response = await self._upstream.call(target, headers.to_fal(Headers({}), streams=False))
        body = await read_body(response, repeatable=True)
        await self._settlement.record_result(job, response.status_code, None, parse_document(body))
