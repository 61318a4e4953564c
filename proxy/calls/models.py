"""Calls that make a model work: run, stream and submit, each from admission to outcome."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from functools import partial
from typing import Any

from proxy.calls.admission import Admission, Admitted
from proxy.calls.call import UNREAD, Call, Outcome
from proxy.calls.exchange import finish, usage_report
from proxy.calls.idempotency import Idempotency
from proxy.clock import Clock
from proxy.errors import AcceptanceDeferred, NotFound, StoreUnavailable, UpstreamAmbiguous
from proxy.http.disconnect import CallerGone, Disconnect, cancel_on_disconnect
from proxy.jobs.fal_queue import FalQueue
from proxy.jobs.ownership import Ownership
from proxy.jobs.settlement import Settlement, UsageReport, parse_document
from proxy.limits.quotas import Quotas
from proxy.limits.rates import RateLimiter
from proxy.limits.streams import OpenStreams
from proxy.stores.ledger import Job
from proxy.targets import is_request_id
from proxy.upstream import headers
from proxy.upstream.client import Answer, Upstream
from proxy.upstream.event_reader import EventReader
from proxy.upstream.relay import StreamRefused, buffer_response, is_event_stream, with_heartbeat

_DEFERRED = (
    "fal accepted the request, but the proxy's database does not answer, so its id cannot be given yet. Once the "
    "database answers, repeating it with the same Idempotency-Key gets the job, and GET /v1/jobs lists it."
)


class ModelHandler:
    """Makes calls that cost something.

    Every method raises a ProxyError for a refusal or a failure, and CallerGone if the caller hung up.
    """

    def __init__(
        self,
        *,
        admission: Admission,
        upstream: Upstream,
        queue: FalQueue,
        settlement: Settlement,
        quotas: Quotas,
        owners: Ownership,
        idempotency: Idempotency,
        limiter: RateLimiter,
        streams: OpenStreams,
        clock: Clock,
    ) -> None:
        self._admission = admission
        self._upstream = upstream
        self._queue = queue
        self._settlement = settlement
        self._quotas = quotas
        self._owners = owners
        self._idempotency = idempotency
        self._limiter = limiter
        self._streams = streams
        self._clock = clock

    async def run(self, call: Call) -> Outcome:
        """Run a model and wait for its answer."""
        if call.key:
            return await self._call_once(call, self.run)
        job, body = await self._admission.admit_call(call)
        disconnect, started = call.disconnect, self._clock.monotonic()
        await self._free_if_gone(job, disconnect)
        call.mark_sent()
        try:
            sending = self._upstream.fetch(call.target, call.headers, body, (job.tenant, job.subject))
            reply = await cancel_on_disconnect(disconnect, sending)
        except BaseException as error:
            await self._settlement.charge_failed_call(job, error)
            raise
        await self._settlement.charge_call(job, usage_report(reply), started)
        return Outcome(reply.status, reply.headers, reply.body, job=job)

    async def submit(self, call: Call) -> Outcome:
        """Put a job into fal's queue."""
        if call.key:
            return await self._call_once(call, self.submit)
        # Once fal may have the job, its owner must be written down, so a caller who hangs up does not end this.
        return await finish(self._submit(call, await self._admission.admit_call(call)))

    async def _submit(self, call: Call, admitted: Admitted) -> Outcome:
        job = admitted.job
        call.mark_sent()
        try:
            reply = await self._upstream.fetch(call.target, call.headers, admitted.input, (job.tenant, job.subject))
            document = parse_document(reply.body) if reply.is_success else None
            request_id = _request_id_in(document) if reply.is_success else None
        except BaseException as error:
            await self._settlement.charge_failed_submit(job, error)
            raise
        if request_id is None:
            await self._settlement.free(job)
            return Outcome(reply.status, reply.headers, reply.body, job=job)
        self._settlement.hand_over(job)
        job = await self._accept(job, request_id)
        return Outcome(reply.status, reply.headers, reply.body, document, job=job)

    async def _accept(self, job: Job, request_id: str) -> Job:
        """Write down under which id fal has the job, before its caller learns that id.

        Raises:
            AcceptanceDeferred: the database does not answer in time; the id is written down as soon as it does.
            UpstreamAmbiguous: fal has a job that its caller will not be able to see.
        """
        try:
            is_written = await self._quotas.accept(job, request_id)
        except (StoreUnavailable, NotFound):
            await self._settlement.charge_unseen(job)
            raise UpstreamAmbiguous("fal accepted the request, but the proxy could not record its owner.") from None
        if not is_written:
            raise AcceptanceDeferred(_DEFERRED)
        job = job._replace(request_id=request_id, state="accepted")
        self._owners.keep(job)
        return job

    async def _call_once(self, call: Call, execute: Callable[[Call], Awaitable[Outcome]]) -> Outcome:
        """Make a call with an Idempotency-Key once. Its caller may come back for it, so hanging up does not end it."""
        scope = call.request.scope
        self._admission.check_endpoint(call.caller, call.target)
        if call.input is UNREAD:
            await self._limiter.check_repeatable(call.caller, scope)
        once = call._replace(input=await call.read_input(), key=None, ends_with_caller=False)
        await self._admission.check_caller(call.caller)
        key = call.key or ""
        # Calls that would not be sent write no key; one that is known is answered also while fal fails.
        if self._admission.is_shut(call.target) and not await self._idempotency.is_known(key, once):
            once = await self._admission.pass_guard(once)
        # A repetition costs what a poll costs.
        count_replay = partial(self._limiter.hit, call.caller, scope, polls=True)
        return await self._idempotency.run(key, once, execute, count_replay, self._recover)

    async def _recover(self, job: Job) -> Outcome:
        """Answer a repeated submit from the job that fal has."""
        reply, document = await self._queue.status(job, logs=False)
        return Outcome(200 if reply.status < 300 else reply.status, reply.headers, reply.body, document, job=job)

    async def stream(self, call: Call) -> Outcome:
        """Run a model and pass its events on."""
        close = self._streams.take(call.caller)
        try:
            outcome = await self._stream(call)
        except BaseException:
            close()
            raise
        if outcome.events is None:
            close()
            return outcome
        return outcome._replace(on_close=(close,))

    async def _stream(self, call: Call) -> Outcome:
        job, body = await self._admission.admit_call(call)
        disconnect = call.disconnect
        await self._free_if_gone(job, disconnect)
        call.mark_sent()
        async with AsyncExitStack() as bill:
            reports = await bill.enter_async_context(self._settlement.charging_stream(job))
            sending = asyncio.create_task(
                self._upstream.call(call.target, call.headers, body, (job.tenant, job.subject))
            )
            bill.push_async_callback(_break_off, sending)
            await cancel_on_disconnect(disconnect, asyncio.wait({sending}, timeout=self._upstream.stream_head_seconds))
            is_late = not sending.done()
            if not is_late and not is_event_stream(sending.result()):
                reply = await cancel_on_disconnect(disconnect, buffer_response(sending.result(), repeatable=False))
                reports.append(usage_report(reply))
                return Outcome(reply.status, reply.headers, reply.body, job=job)
            # From here on the bill stays open until the stream ends, however it does.
            rest = bill.pop_all()
        head = {} if is_late else headers.to_caller(sending.result().headers)
        events = with_heartbeat(_model_events(sending, rest, reports), is_late=is_late)
        return Outcome(200, head, events=events, release=rest.aclose, job=job)

    async def _free_if_gone(self, job: Job, disconnect: Disconnect | None) -> None:
        """Free a call whose caller hung up before anything of it was sent to fal.

        Raises:
            CallerGone: it did.
        """
        if disconnect is not None and disconnect.has_happened:
            await self._settlement.free(job)
            raise CallerGone


def _request_id_in(document: Any) -> str:
    """Read the id by which fal has a job.

    Raises:
        UpstreamAmbiguous: there is none: fal has a job that its caller will not be able to see.
    """
    request_id = document.get("request_id") if isinstance(document, dict) else None
    if not is_request_id(request_id):
        raise UpstreamAmbiguous("fal accepted the request but returned no valid id for it.")
    return request_id


async def _model_events(
    sending: asyncio.Task[Answer], bill: AsyncExitStack, reports: list[UsageReport]
) -> AsyncGenerator[bytes, None]:
    """Yield a model's events, and close its bill at their end; the last event may say what was used.

    Raises:
        StreamRefused: fal answers with something else, which is billed as that.
    """
    async with bill:
        response = await sending
        if is_event_stream(response):
            last: Any = None
            reader = EventReader(response)
            async with aclosing(response):
                while events := await reader.read():
                    for event in events:
                        last = event.document
                        yield event.data
            reports.append(UsageReport(200, None, last))
            return
        reply = await buffer_response(response, repeatable=False)
        reports.append(usage_report(reply))
    raise StreamRefused(reply.body)


async def _break_off(sending: asyncio.Task[Answer]) -> None:
    """End a call to fal wherever it stands."""
    sending.cancel()
    await asyncio.wait({sending})
    if not sending.cancelled() and sending.exception() is None:
        await sending.result().aclose()
