"""The native job API: submit, show, watch, fetch and cancel a job, or submit and watch it in one call.

Lists of jobs have job_lists.py.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from proxy import targets
from proxy.auth.authenticator import Authenticator
from proxy.calls.call import KEY_HEADER, Call, Form, Outcome, new_call, parse_key
from proxy.calls.handler import Handlers
from proxy.calls.jobs import JobHandler
from proxy.clock import Clock
from proxy.drain import Drain
from proxy.errors import BadRequest, SessionExpired
from proxy.http.bodies import read_form
from proxy.http.event_stream import STREAM_CACHING, STREAM_HEADERS
from proxy.http.reply import Reply
from proxy.http.scope import set_cache_control, show_header
from proxy.jobs.events import END, job_events, parse_event_id
from proxy.jobs.grace import GracePeriod
from proxy.jobs.hub import Hub
from proxy.jobs.ownership import Ownership
from proxy.jobs.updates import Log, Update
from proxy.limits.rates import RateLimiter
from proxy.limits.session_quotas import SESSION_QUOTAS
from proxy.limits.stream_guard import StreamGuard
from proxy.limits.streams import OpenStreams
from proxy.routes.authors import author_of
from proxy.routes.paging import parse_endpoint
from proxy.routes.queries import known_query
from proxy.routes.rendering import bind_call, render
from proxy.stores.audit import Change
from proxy.stores.audit_store import AuditStore
from proxy.stores.ledger import Job
from proxy.targets import Kind, Target
from proxy.tenants.caller import Caller
from proxy.upstream import headers, sse
from proxy.upstream.headers import EVENT_STREAM

PATH = "/v1/jobs"


class NewJob(BaseModel):
    """The form of `POST /v1/jobs`."""

    model_config = ConfigDict(extra="forbid", strict=True)
    endpoint: str = Field(min_length=1, max_length=200)
    input: dict[str, Any]


def as_job(endpoint: str, document: dict[str, Any]) -> dict[str, Any]:
    """Write fal's document about a job as the native API does: the same fields, our own names, none of fal's URLs."""
    fields = {name: value for name, value in document.items() if name != "request_id" and not name.endswith("_url")}
    return {"id": document.get("request_id"), "endpoint": endpoint, **fields}


#: fal answers a status with 202 while the job runs. Here the status is what was asked for, so the answer is 200.
FORM = Form(as_job, pending_status=200)


class JobRoutes:
    """Submit, show, watch and cancel jobs."""

    def __init__(
        self,
        *,
        authenticator: Authenticator,
        grace: GracePeriod,
        handlers: Handlers,
        job_handler: JobHandler,
        owners: Ownership,
        audit: AuditStore,
        clock: Clock,
        limiter: RateLimiter,
        streams: OpenStreams,
        stream_guard: StreamGuard,
        hub: Hub,
        drain: Drain,
    ) -> None:
        self._authenticator = authenticator
        self._grace = grace
        self._handlers = handlers
        self._job_handler = job_handler
        self._owners = owners
        self._audit = audit
        self._clock = clock
        self._limiter = limiter
        self._streams = streams
        self._stream_guard = stream_guard
        self._hub = hub
        self._drain = drain

    def routes(self) -> list[Route]:
        one = PATH + "/{id}"
        return [
            Route(PATH, self.create, methods=["POST"]),
            Route(one, self.status, methods=["GET"]),
            Route(one, self.cancel, methods=["DELETE"]),
            Route(one + "/result", self.result, methods=["GET"]),
            Route(one + "/events", self.events, methods=["GET"]),
        ]

    async def create(self, request: Request) -> Response:
        show_header(request.scope, "vary", "Accept")
        caller = await self._authenticator.authenticate(request)
        known_query(request)
        after = _resumed_after(request)
        is_counted = await self._count(request, caller)
        wanted = await read_form(request, NewJob, most=None)
        target = parse_endpoint(wanted.endpoint)
        bind_call(request, caller, target)
        call = new_call(caller, target, request, FORM)._replace(input=wanted.input, is_counted=is_counted)
        if _wants_events(request):
            return await self._create_and_watch(call, after)
        outcome = await self._handlers[Kind.SUBMIT](call)
        return render(call, _to_accepted(outcome), self._stream_guard)

    async def _count(self, request: Request, caller: Caller) -> bool:
        """Count a new job before its body is read, which names the endpoint; only try what may be a repetition."""
        self._drain.refuse_new_work()
        if parse_key(request.headers.getlist(KEY_HEADER)):
            await self._limiter.check_repeatable(caller, request.scope)
            return False
        await self._limiter.hit(caller, request.scope, polls=False)
        return True

    async def _create_and_watch(self, call: Call, after: str | None) -> Response:
        """Answer a submit with the job's event stream, which begins with that answer: once fal has the job, nothing may
        fail in a way that makes the caller submit again."""
        close = self._streams.take(call.caller)
        try:
            outcome = _to_accepted(await self._handlers[Kind.SUBMIT](call))
            if outcome.status < 300 and outcome.document is not None:
                outcome = await self._watch_new(call, outcome, outcome.document, after)
        except BaseException:
            close()
            raise
        if outcome.events is None:
            close()
        else:
            outcome = outcome._replace(on_close=(*outcome.on_close, close))
        return render(call, outcome, self._stream_guard)

    async def _watch_new(self, call: Call, outcome: Outcome, document: dict[str, Any], after: str | None) -> Outcome:
        """Follow a job from its start, or that of a repeated request from the event on that the caller has."""
        is_resumed = after is not None and "idempotency-replayed" in outcome.headers
        if is_resumed and after == END:
            return Outcome(204, {}, b"")
        job = outcome.job or await self._owners.find_by_id(document["request_id"], call.caller)
        first = Update(job.endpoint, document, Log(), 0)
        event = sse.encode(first.encode(None, as_job), name="status", id_=first.mark)
        watch = self._hub.join(job)
        events = self._events(call.request, job, after if is_resumed else first.mark)(
            watch, first=b"" if is_resumed else event
        )
        kept = {name: value for name, value in outcome.headers.items() if name in ("location", "idempotency-replayed")}
        return Outcome(200, kept, events=events, on_close=(partial(self._hub.leave, watch),), job=job)

    async def status(self, request: Request) -> Response:
        known_query(request, "logs")
        return await self._answer(request, Kind.STATUS)

    async def result(self, request: Request) -> Response:
        known_query(request)
        return await self._answer(request, Kind.RESULT)

    async def cancel(self, request: Request) -> Response:
        known_query(request)
        caller, job = await self._find_own(request, Kind.CANCEL)
        if job.subject != caller.subject:
            return await self._cancel_for_tenant(request, caller, job)
        call = _call_about(caller, job, Kind.CANCEL, request, logs=False)
        return render(call, await self._job_handler.cancel(call), self._stream_guard)

    async def _cancel_for_tenant(self, request: Request, caller: Caller, job: Job) -> Response:
        """Cancel a job that one of a tenant's users submitted."""
        bind_call(request, caller, Target(Kind.CANCEL, app=job.app, request_id=job.request_id or ""))
        await self._limiter.hit(caller, request.scope, polls=True)
        by = author_of(request, f"key:{caller.key_id}", self._clock.now())
        await self._audit.record(by, Change("job.cancel", job.tenant, job.id, job.subject))
        outcome = await self._job_handler.cancel_job(job, headers.to_fal((), streams=False))
        return Reply(outcome.status, outcome.headers, outcome.body)

    async def _answer(self, request: Request, kind: Kind) -> Response:
        logs = targets.parse_logs(request.query_params.get("logs", "0"))
        caller, job = await self._find_own(request, kind)
        call = _call_about(caller, job, kind, request, logs=logs)
        return render(call, await self._handlers[kind](call), self._stream_guard)

    async def _find_own(self, request: Request, kind: Kind) -> tuple[Caller, Job]:
        """Find the caller and its job that the path names; a tenant can cancel those of all its users."""
        try:
            caller = await self._authenticator.authenticate(request)
        except SessionExpired as expired:
            if not kind.reads_job:
                raise
            caller = await self._grace.admit(request, request.path_params["id"], expired)
        request_id = targets.parse_request_id(request.path_params["id"])
        if kind is Kind.CANCEL and caller.session is None:
            return caller, await self._owners.find_of_tenant(request_id, caller.tenant.id)
        return caller, await self._owners.find_by_id(request_id, caller)

    async def events(self, request: Request) -> Response:
        after = parse_event_id(_last_event_id(request))
        caller, job = await self._find_own(request, Kind.STATUS_STREAM)
        if after == END or request.method == "HEAD":
            bind_call(request, caller)
            await self._limiter.hit(caller, request.scope, polls=True)
            return _end_of_events() if after == END else _head_of_events(request)
        call = _call_about(caller, job, Kind.STATUS_STREAM, request, logs=True)
        outcome = await self._job_handler.watch(call, self._events(request, job, after))
        return render(call, outcome, self._stream_guard)

    def _events(self, request: Request, job: Job, after: str | None) -> Any:
        """Prepare `job_events` for a job; what is returned takes the watch."""
        sent = headers.to_fal(request.scope["headers"], streams=False)
        return partial(
            job_events,
            rewrite=as_job,
            fetch=partial(self._job_handler.fetch_result, job, sent),
            drain=self._drain,
            after=after,
            request_id=request.scope["state"]["request_id"],
            quotas=request.scope["state"].get(SESSION_QUOTAS),
        )


def _call_about(caller: Caller, job: Job, kind: Kind, request: Request, *, logs: bool) -> Call:
    target = Target(kind, app=job.app, request_id=job.request_id or "", logs=logs)
    bind_call(request, caller, target)
    return new_call(caller, target, request, FORM)


def _wants_events(request: Request) -> bool:
    accepted = request.headers.get("accept", "").split(",")
    return any(one.partition(";")[0].strip().lower() == EVENT_STREAM for one in accepted)


def _to_accepted(outcome: Outcome) -> Outcome:
    """Turn the outcome of a submit into that of this surface: accepted, and where to find the job."""
    if outcome.status >= 300 or outcome.document is None:
        return outcome
    location = f"{PATH}/{outcome.document['request_id']}"
    return outcome._replace(status=202, headers={**outcome.headers, "location": location})


def _resumed_after(request: Request) -> str | None:
    """Read the id after which a repeated POST resumes its stream, as some replacements of `EventSource` do.

    Raises:
        BadRequest: the repetition would submit another job, or the id is none.
    """
    after = parse_event_id(request.headers.get("last-event-id")) if _wants_events(request) else None
    if after is not None and KEY_HEADER not in request.headers:
        raise BadRequest(
            "Last-Event-ID resumes a stream, and this POST would submit another job: resume with "
            "GET /v1/jobs/{id}/events, or send the Idempotency-Key of the first request."
        )
    return after


def _last_event_id(request: Request) -> str | None:
    """Read the id after which a stream is resumed, the newest that is given.

    A browser that reconnects sends the header to the URL that it was opened with. Replacements of `EventSource` that
    cannot send the header add `lastEventId` to that URL.
    """
    given = known_query(request, "last_event_id", "lastEventId")
    return request.headers.get("last-event-id") or given.get("lastEventId") or given.get("last_event_id")


def _end_of_events() -> Response:
    """Answer that nothing follows: 204 makes an `EventSource` stop (WHATWG HTML, section 9.2.3)."""
    return Response(status_code=204)


def _head_of_events(request: Request) -> Response:
    """Answer with the head of the stream alone (RFC 9110, section 9.3.2); no stream is opened, here or at fal."""
    set_cache_control(request.scope, STREAM_CACHING)
    answer = Response(headers=STREAM_HEADERS)
    del answer.headers["content-length"]
    return answer
