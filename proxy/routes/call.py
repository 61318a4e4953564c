"""One admitted call on its way to fal and back, and what its end means for the reservation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from functools import partial
from typing import Any

from starlette.responses import Response
from starlette.types import Receive

from proxy.errors import NotFound, ProxyError, StoreUnavailable, UpstreamAmbiguous
from proxy.jobs.settlement import Bill, parsed
from proxy.jobs.watch import follow
from proxy.policy.gate import Admission
from proxy.routes.services import Services
from proxy.stores.base import Job
from proxy.targets import Kind, Target
from proxy.upstream import headers
from proxy.upstream.client import Answer
from proxy.upstream.relay import EventStream, events_of, is_event_stream, pass_on, read_whole, until_gone

UNITS = "x-fal-billable-units"
LAST_SECONDS = 0.2
#: Changes the JSON of a submit, status or status event to suit a surface; None leaves fal's bytes as they are.
Rewrite = Callable[[Target, bytes], bytes]


class Call:
    """One admitted call on its way to fal and back."""

    def __init__(
        self,
        services: Services,
        admission: Admission,
        receive: Receive,
        sent: dict[str, str],
        rewrite: Rewrite | None,
    ) -> None:
        self._services = services
        self._receive = receive
        self._target = admission.target
        self._job = admission.job
        self._input = admission.input
        self._headers = sent
        self._rewrite = partial(rewrite, self._target) if rewrite else None

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
                return await until_gone(self._receive, self._status())
            case Kind.RESULT:
                return await until_gone(self._receive, self._result())
            case Kind.CANCEL:
                # What it used until then is booked.
                return await _finished(self._cancel())
            case _:
                return await until_gone(self._receive, self._relay())

    @property
    def job(self) -> Job:
        if self._job is None:
            raise NotFound
        return self._job

    async def _send(self) -> Answer:
        return await self._services.upstream.call(self._target, self._headers, self._input)

    async def _relay(self) -> Response:
        return await pass_on(await self._send(), repeatable=self._target.kind.repeatable)

    async def _run(self) -> Response:
        async with self._services.settlement.costing(self.job) as bill:
            answer = await until_gone(self._receive, self._relay())
            bill(answer.status_code, answer.headers.get(UNITS), answer.body)
        return answer

    async def _status(self) -> Response:
        response = await self._send()
        body = await read_whole(response, repeatable=True)
        if response.is_success:
            await self._saw_status(body)
        return self._answer(response, body)

    async def _saw_status(self, body: bytes) -> None:
        document = parsed(body)
        if isinstance(document, dict):
            await self._services.settlement.saw_status(self.job, document)

    async def _result(self) -> Response:
        answer = await self._relay()
        await self._services.settlement.saw_result(
            self.job, answer.status_code, answer.headers.get(UNITS), parsed(bytes(answer.body))
        )
        return answer

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
        status = replace(self._target, kind=Kind.STATUS)
        try:
            response = await self._services.upstream.call(status, self._headers)
            body = await read_whole(response, repeatable=True)
        except ProxyError:
            return True
        if response.is_success:
            await self._saw_status(body)
        document = parsed(body)
        return not isinstance(document, dict) or document.get("status") not in ("IN_QUEUE", "COMPLETED")

    def _answer(self, response: Answer, body: bytes) -> Response:
        if self._rewrite is not None and response.is_success:
            body = self._rewrite(body)
        return Response(body, response.status_code, headers.to_caller(response.headers))

    async def _submit(self) -> Response:
        async with self._services.settlement.submitting(self.job) as refused:
            response = await self._send()
            if not response.is_success:
                refused()
                return await pass_on(response, repeatable=True)
            body = await read_whole(response, repeatable=False)
            await self._accept(body)
        return self._answer(response, body)

    async def _accept(self, body: bytes) -> None:
        """Note under which id fal has the job, before anybody learns that id.

        Raises:
            UpstreamAmbiguous: fal has a job that nobody will be able to see.
        """
        document = parsed(body)
        request_id = document.get("request_id") if isinstance(document, dict) else None
        if not isinstance(request_id, str):
            raise UpstreamAmbiguous("fal accepted the request without telling its id.")
        try:
            await self._services.bookkeeper.accept(self.job, request_id)
        except (StoreUnavailable, NotFound):
            raise UpstreamAmbiguous("fal accepted the request, but it could not be noted whose it is.") from None

    async def _stream(self) -> Response:
        bill = self._services.settlement.costing(self.job)
        async with AsyncExitStack() as open_bill:
            told = await open_bill.enter_async_context(bill)
            response = await until_gone(self._receive, self._send())
            if not is_event_stream(response):
                answer = await until_gone(self._receive, pass_on(response, repeatable=False))
                told(answer.status_code, answer.headers.get(UNITS), answer.body)
                return answer
            # From here on the bill stays open until the stream ends, however it does.
            rest = open_bill.pop_all()
            rest.push_async_callback(response.aclose)
        events = _billed(events_of(response), rest, told)
        return EventStream(events, headers.to_caller(response.headers), rest.aclose, self._services.drain.over)

    async def _status_stream(self) -> Response:
        response = await until_gone(self._receive, self._send())
        if not is_event_stream(response):
            return await until_gone(self._receive, pass_on(response, repeatable=True))
        updates = follow(response, self._send, self._saw_status, self._rewrite)
        return EventStream(
            updates, headers.to_caller(response.headers), response.aclose, self._services.drain.over
        )


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


async def _billed(
    events: AsyncGenerator[bytes, None], bill: AsyncExitStack, told: Bill
) -> AsyncGenerator[bytes, None]:
    """A model's stream, with its bill closed at its end; the last event may tell what was used."""
    last = b""
    async with bill, aclosing(events):
        async for event in events:
            last = event
            yield event
        told(200, None, last)
