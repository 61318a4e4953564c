"""Questions about a caller's own job, and its cancellation."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial

from proxy.calls.admission import Admission
from proxy.calls.call import Call, Outcome
from proxy.calls.exchange import UNITS, finish
from proxy.calls.poll_cache import PollCache
from proxy.calls.polls import StatusQuery, answer_status
from proxy.errors import ProxyError
from proxy.http.disconnect import cancel_on_disconnect
from proxy.jobs.events import status_events, wait_for_first_update
from proxy.jobs.fal_queue import FalQueue
from proxy.jobs.hub import Hub
from proxy.jobs.results import ResultCache
from proxy.jobs.settlement import Settlement, parse_document
from proxy.jobs.watch import Watch
from proxy.limits.streams import OpenStreams
from proxy.log_context import quiet
from proxy.stores.ledger import Job
from proxy.targets import Kind, Target
from proxy.upstream import headers
from proxy.upstream.client import Upstream
from proxy.upstream.relay import BufferedResponse

Events = Callable[[Watch], AsyncGenerator[bytes, None]]


class JobHandler:
    """Answers what callers ask about their jobs.

    Every method raises a ProxyError for a refusal or a failure, and CallerGone if the caller hung up.
    """

    def __init__(
        self,
        *,
        admission: Admission,
        upstream: Upstream,
        queue: FalQueue,
        settlement: Settlement,
        hub: Hub,
        results: ResultCache,
        streams: OpenStreams,
        poll_cache: PollCache,
    ) -> None:
        self._admission = admission
        self._upstream = upstream
        self._queue = queue
        self._settlement = settlement
        self._hub = hub
        self._results = results
        self._streams = streams
        self._poll_cache = poll_cache

    async def status(self, call: Call) -> Outcome:
        """Answer a poll, from memory if the job is followed."""
        job = await self._admission.admit_job(call)
        update = self._hub.find_cached(job)
        if update is None:
            update = await cancel_on_disconnect(call.disconnect, self._hub.get_or_watch(job))
        else:
            quiet(call.request.scope)
        if update is not None:
            query = StatusQuery(job, call.target.logs, call.form)
            self._poll_cache.remember(call, query)
            return answer_status(query, update)
        asking = self._queue.status(job, logs=call.target.logs)
        reply, document = await cancel_on_disconnect(call.disconnect, asking)
        status = call.form.pending_status if reply.status == 202 else reply.status
        return Outcome(status, reply.headers, reply.body, document, job=job)

    async def status_stream(self, call: Call) -> Outcome:
        """Stream the states of a job in fal's own form."""
        return await self.watch(call, partial(status_events, logs=call.target.logs, rewrite=call.form.rewrite))

    async def watch(self, call: Call, events: Events) -> Outcome:
        """Stream the events of a job's watch. The stream begins soon, also while fal is silent.

        Raises:
            RateLimited: too many streams are open; nothing was asked.
            NotFound, BadUpstream: as `wait_for_first_update`.
        """
        close = self._streams.take(call.caller)
        try:
            job = await self._admission.admit_job(call)
            watch = self._hub.join(job)
        except BaseException:
            close()
            raise
        on_close = (partial(self._hub.leave, watch), close)
        try:
            await cancel_on_disconnect(call.disconnect, wait_for_first_update(watch))
        except BaseException:
            for end in on_close:
                end()
            raise
        return Outcome(
            200, {headers.REQUEST_ID: job.request_id or ""}, events=events(watch), on_close=on_close, job=job
        )

    async def result(self, call: Call) -> Outcome:
        """Fetch the result of a job: the model's own status and body."""
        job = await self._admission.admit_job(call)
        if (reply := self._results.find_cached(call.target.request_id)) is not None:
            quiet(call.request.scope)
        else:
            reply = await cancel_on_disconnect(call.disconnect, self.fetch_result(job, call.headers))
        return Outcome(reply.status, reply.headers, reply.body, job=job)

    def fetch_result(self, job: Job, sent: dict[str, str]) -> Awaitable[BufferedResponse]:
        """Get the result of a job, from memory or from fal."""
        return self._results.get(job.request_id or "", partial(self._fetch_result, job, sent))

    async def _fetch_result(self, job: Job, sent: dict[str, str]) -> BufferedResponse:
        target = Target(Kind.RESULT, app=job.app, request_id=job.request_id or "")
        reply = await self._upstream.fetch(target, sent)
        await self._settlement.record_result(job, reply.status, reply.headers.get(UNITS), parse_document(reply.body))
        return reply

    async def cancel(self, call: Call) -> Outcome:
        """Cancel a job."""
        return await self.cancel_job(await self._admission.admit_job(call), call.headers)

    def cancel_job(self, job: Job, sent: dict[str, str]) -> Awaitable[Outcome]:
        """Ask fal to cancel a job. The caller has checked who may."""
        # What it used until then is booked.
        return finish(self._cancel(job, sent))

    async def _cancel(self, job: Job, sent: dict[str, str]) -> Outcome:
        """Ask fal whether a job runs, then cancel it: one that ran is charged, and fal does not tell afterwards."""
        ran = bool(job.charges) and await self._is_running(job)
        try:
            target = Target(Kind.CANCEL, app=job.app, request_id=job.request_id or "")
            reply = await self._upstream.fetch(target, sent)
        except ProxyError:
            if ran:
                await self._settlement.charge_unseen(job)
            raise
        if ran and reply.status < 300:
            await self._settlement.charge_unseen(job)
        return Outcome(reply.status, reply.headers, reply.body, job=job)

    async def _is_running(self, job: Job) -> bool:
        """Return whether fal runs the job now; True if fal does not say."""
        if (update := self._hub.find_cached(job)) is not None:
            return update.state == "IN_PROGRESS"
        try:
            report = await self._queue.status(job, logs=False)
        except ProxyError:
            return True
        return report.state not in ("IN_QUEUE", "COMPLETED")
