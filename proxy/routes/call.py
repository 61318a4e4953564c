"""One admitted call on its way to fal and back, and what its end means for the reservation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from functools import partial
from typing import Any

import orjson
from starlette.responses import Response

from proxy.errors import AcceptanceDeferred, NotFound, ProxyError, StoreUnavailable, UpstreamAmbiguous
from proxy.http.disconnect import CallerGone, Disconnect, cancel_on_disconnect
from proxy.http.event_stream import EventStream
from proxy.jobs.settlement import Bill, parsed
from proxy.jobs.updates import Rewrite
from proxy.policy.gate import Admission
from proxy.routes.events import status_events, stream_of
from proxy.routes.polls import Asked, Told
from proxy.routes.services import Services
from proxy.stores.base import Job
from proxy.targets import Kind, is_request_id
from proxy.upstream import headers
from proxy.upstream.client import Answer
from proxy.upstream.relay import (
    HEAD_SECONDS,
    StreamRefused,
    Whole,
    events_of,
    is_event_stream,
    pass_on,
    pinged,
    whole,
)

UNITS = "x-fal-billable-units"
LAST_SECONDS = 0.2
_DEFERRED = (
    "fal accepted the request, but the proxy's database does not answer, so its id cannot be given yet. Once the "
    "database answers, repeating it with the same Idempotency-Key gets the job, and GET /v1/jobs lists it."
)


class Call:
    """One admitted call on its way to fal and back."""

    def __init__(
        self,
        services: Services,
        admission: Admission,
        disconnect: Disconnect | None,
        sent: dict[str, str],
        rewrite: Rewrite | None,
    ) -> None:
        self._services = services
        self._disconnect = disconnect
        self._target = admission.target
        self._job = admission.job
        self._input = admission.input
        self._headers = sent
        self._rewrite = rewrite

    async def answer(self) -> Response:
        match self._target.kind:
            case Kind.SUBMIT:
                # Once fal may have the job, it is noted who owns it.
                return await _finished(self._submit())
            case Kind.RUN:
                return await self._run()
            case Kind.STREAM:
                return await self._stream()
            case Kind.STATUS_STREAM:
                return await self._status_stream()
            case Kind.STATUS:
                return await cancel_on_disconnect(self._disconnect, self._status())
            case Kind.RESULT:
                return await cancel_on_disconnect(self._disconnect, self._result())
            case Kind.CANCEL:
                # What it used until then is booked.
                return await _finished(self._cancel())
            case _:
                return await cancel_on_disconnect(self._disconnect, self._relay())

    @property
    def job(self) -> Job:
        if self._job is None:
            raise NotFound
        return self._job

    async def _send(self) -> Answer:
        job = self._job
        caller = None if job is None else (job.tenant, job.subject)
        return await self._services.upstream.call(self._target, self._headers, self._input, caller)

    async def _relay(self) -> Response:
        return await pass_on(await self._send(), repeatable=self._target.kind.repeatable)

    async def _free_if_left(self) -> None:
        """Free a call whose caller hung up before anything of it was sent to fal.

        Raises:
            CallerGone: it did.
        """
        if self._disconnect is not None and self._disconnect.has_happened:
            await self._services.settlement.unused(self.job)
            raise CallerGone

    async def _run(self) -> Response:
        await self._free_if_left()
        async with self._services.settlement.costing(self.job) as bill:
            answer = await cancel_on_disconnect(self._disconnect, self._relay())
            bill(answer.status_code, answer.headers.get(UNITS), answer.body)
        return answer

    async def _status(self) -> Response:
        if (update := await self._services.hub.poll(self.job)) is not None:
            return Told(Asked(self.job, self._target, self._rewrite), update)
        answer = await self._services.hub.ask(self.job, logs=self._target.logs)
        return rewritten(answer.response(), self.job.endpoint, self._rewrite)

    async def _result(self) -> Response:
        return (await self.result()).response()

    async def result(self) -> Whole:
        """What came of the job: the model's own status and body."""
        return await self._services.results.get(self._target.request_id, self._fetched_result)

    async def _fetched_result(self) -> Whole:
        result = await whole(await self._send(), repeatable=True)
        await self._services.settlement.saw_result(
            self.job, result.status, result.headers.get(UNITS), parsed(result.body)
        )
        return result

    async def _cancel(self) -> Response:
        """fal says of a cancelled job only that it was: whether it ran, and is to be charged, must be asked before."""
        ran = bool(self.job.charges) and await self._runs()
        try:
            answer = await self._relay()
        except ProxyError:
            if ran:
                await self._services.settlement.stopped(self.job)
            raise
        if ran and answer.status_code < 300:
            await self._services.settlement.stopped(self.job)
        return answer

    async def _runs(self) -> bool:
        """Whether fal runs the job now; if fal does not tell, it may."""
        if (update := self._services.hub.known(self.job)) is not None:
            return update.state == "IN_PROGRESS"
        try:
            document = parsed((await self._services.hub.ask(self.job, logs=False)).body)
        except ProxyError:
            return True
        return not isinstance(document, dict) or document.get("status") not in ("IN_QUEUE", "COMPLETED")

    async def _submit(self) -> Response:
        async with self._services.settlement.submitting(self.job) as refused:
            response = await self._send()
            if not response.is_success:
                refused()
                return await pass_on(response, repeatable=True)
            answer = await whole(response, repeatable=False)
            request_id = _request_id_in(answer.body)
        await self._accept(request_id)
        return rewritten(answer.response(), self.job.endpoint, self._rewrite)

    async def _accept(self, request_id: str) -> None:
        """Note under which id fal has the job, before anybody learns that id.

        Raises:
            AcceptanceDeferred: the database does not answer in time; the id is written down as soon as it does.
            UpstreamAmbiguous: fal has a job that nobody will be able to see.
        """
        try:
            is_written = await self._services.bookkeeper.accept(self.job, request_id)
        except (StoreUnavailable, NotFound):
            await self._services.settlement.lost(self.job)
            raise UpstreamAmbiguous("fal accepted the request, but it could not be noted whose it is.") from None
        if not is_written:
            raise AcceptanceDeferred(_DEFERRED)
        self._services.owners.keep(replace(self.job, request_id=request_id, state="accepted"))

    async def _stream(self) -> Response:
        await self._free_if_left()
        async with AsyncExitStack() as bill:
            told = await bill.enter_async_context(self._services.settlement.costing(self.job))
            sending = asyncio.create_task(self._send())
            bill.push_async_callback(_break_off, sending)
            await cancel_on_disconnect(self._disconnect, asyncio.wait({sending}, timeout=HEAD_SECONDS))
            is_late = not sending.done()
            if not is_late and not is_event_stream(sending.result()):
                answer = await cancel_on_disconnect(self._disconnect, pass_on(sending.result(), repeatable=False))
                told(answer.status_code, answer.headers.get(UNITS), answer.body)
                return answer
            # From here on the bill stays open until the stream ends, however it does.
            rest = bill.pop_all()
        head = {} if is_late else headers.to_caller(sending.result().headers)
        events = pinged(_billed(sending, rest, told), is_late=is_late)
        return EventStream(events, head, rest.aclose, ends_with_result=True)

    async def _status_stream(self) -> Response:
        events = partial(status_events, logs=self._target.logs, rewrite=self._rewrite)
        return await stream_of(self._services.hub, self.job, self._disconnect, events)


def _request_id_in(body: bytes) -> str:
    """The id by which fal has a job.

    Raises:
        UpstreamAmbiguous: there is none: fal has a job that nobody will be able to see.
    """
    document = parsed(body)
    request_id = document.get("request_id") if isinstance(document, dict) else None
    if not is_request_id(request_id):
        raise UpstreamAmbiguous("fal accepted the request without an id by which it can be asked about.")
    return request_id


async def _finished(work: Coroutine[Any, Any, Response]) -> Response:
    """The outcome of work that is not to be left half done. It ends with the process all the same: when that cancels,
    the work may go on for a moment, and is then cancelled itself."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        _, unfinished = await asyncio.wait({task}, timeout=LAST_SECONDS)
        if unfinished:
            task.cancel()
            await asyncio.wait({task})
        return task.result()


def rewritten(answer: Response, endpoint: str, rewrite: Rewrite | None) -> Response:
    """The answer to a submit or a status poll in the form of a surface."""
    document = parsed(bytes(answer.body)) if rewrite is not None and answer.status_code < 300 else None
    if rewrite is None or not isinstance(document, dict) or not isinstance(document.get("request_id"), str):
        return answer
    headers = {name: value for name, value in answer.headers.items() if name != "content-length"}
    return Response(orjson.dumps(rewrite(endpoint, document)), answer.status_code, headers)


async def _billed(sending: asyncio.Task[Answer], bill: AsyncExitStack, told: Bill) -> AsyncGenerator[bytes, None]:
    """A model's stream, with its bill closed at its end; the last event may tell what was used.

    Raises:
        StreamRefused: fal answers with something else, which is billed as that.
    """
    async with bill:
        response = await sending
        if is_event_stream(response):
            last = b""
            async with aclosing(events_of(response)) as events:
                async for event in events:
                    last = event
                    yield event
            told(200, None, last)
            return
        answer = await whole(response, repeatable=False)
        told(answer.status, answer.headers.get(UNITS), answer.body)
    raise StreamRefused(answer.body)


async def _break_off(sending: asyncio.Task[Answer]) -> None:
    """End a call to fal wherever it stands."""
    sending.cancel()
    await asyncio.wait({sending})
    if not sending.cancelled() and sending.exception() is None:
        await sending.result().aclose()
