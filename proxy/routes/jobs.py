"""The native job API: submit, look, watch, fetch and cancel under one address, and one call from question to answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from proxy import targets
from proxy.auth.callers import Caller
from proxy.errors import BadRequest, BadTarget
from proxy.http.disconnect import disconnect_of
from proxy.http.event_stream import STREAM_CACHING, STREAM_HEADERS, EventStream
from proxy.http.scope import add_vary, set_cache_control
from proxy.jobs.updates import Log, Update
from proxy.numbers import parse_whole
from proxy.policy.gate import Admission
from proxy.policy.ratelimit import NO_ALLOWANCE, Allowance, network_of
from proxy.routes.bodies import read_form
from proxy.routes.call import Call
from proxy.routes.events import counted, stream_of
from proxy.routes.forward import Way, note
from proxy.routes.journal import END, as_job, journal, parse_mark, preceded
from proxy.routes.once import HEADER, key_of
from proxy.routes.queries import known_query
from proxy.routes.services import Services
from proxy.stores.base import Job
from proxy.targets import Kind, Target
from proxy.upstream import headers
from proxy.upstream.headers import EVENT_STREAM
from proxy.upstream.relay import Whole
from proxy.upstream.wishes import DROPPED

PATH = "/v1/jobs"
#: Jobs in one listing: those given if the query does not say, and the most.
LISTED, MOST_LISTED = 20, 100


class NewJob(BaseModel):
    """The form of `POST /v1/jobs`."""

    model_config = ConfigDict(extra="forbid", strict=True)
    endpoint: str = Field(min_length=1, max_length=200)
    input: dict[str, Any]


def routes(services: Services) -> list[Route]:
    async def create(request: Request) -> Response:
        add_vary(request.scope, b"Accept")
        caller = await services.authenticator.authenticate(request)
        allowance = await _count(services, request, caller)
        wanted = await read_form(request, NewJob, most=None)
        target = _submit_to(wanted.endpoint)
        note(request, caller, target)
        way = Way(services, request, caller, target, as_job, lambda: _given(wanted.input), allowance)
        if not _wants_events(request):
            return _created(await way.go())
        return await counted(services, caller, lambda: _created_and_watched(way))

    async def list_(request: Request) -> Response:
        caller = await services.authenticator.authenticate(request)
        note(request, caller)
        most = _most(known_query(request, "limit").get("limit"))
        allowance = await services.limiter.hit(caller, network_of(request), polls=True)
        jobs = await services.stores.ledger.queued_jobs_of(caller.tenant.id, caller.subject, most, caller.narrowed_to)
        return JSONResponse({"jobs": [_listed(job, services) for job in jobs]}, headers=allowance.headers())

    async def status(request: Request) -> Response:
        known_query(request, "logs")
        return await _about_one(services, request, Kind.STATUS)

    async def result(request: Request) -> Response:
        known_query(request)
        return await _about_one(services, request, Kind.RESULT)

    async def cancel(request: Request) -> Response:
        known_query(request)
        return await _about_one(services, request, Kind.CANCEL)

    async def events(request: Request) -> Response:
        after = parse_mark(_last_event_id(request))
        caller, job = await _own(services, request)
        if after == END:
            return await _end_of_events(services, request, caller)
        if request.method == "HEAD":
            return await _head_of_events(services, request, caller)
        return await counted(services, caller, lambda: _watched(services, request, caller, job, after))

    one = PATH + "/{id}"
    return [
        Route(PATH, create, methods=["POST"]),
        Route(PATH, list_, methods=["GET"]),
        Route(one, status, methods=["GET"]),
        Route(one, cancel, methods=["DELETE"]),
        Route(one + "/result", result, methods=["GET"]),
        Route(one + "/events", events, methods=["GET"]),
    ]


async def _count(services: Services, request: Request, caller: Caller) -> Allowance | None:
    """Count a new job before its body is read, which names the endpoint; one that may be a repetition is only tried."""
    services.drain.refuse_new_work()
    if key_of(request.headers.getlist(HEADER)):
        await services.limiter.check_repeatable(caller, network_of(request))
        return None
    return await services.limiter.hit(caller, network_of(request), polls=False)


def _submit_to(endpoint: str) -> Target:
    try:
        return targets.parse_path("POST", f"queue/{endpoint}", "")
    except BadTarget:
        raise BadRequest("endpoint must be the id of one, such as fal-ai/llava-next.") from None


async def _given(input_: dict[str, Any]) -> dict[str, Any]:
    return input_


def _wants_events(request: Request) -> bool:
    accepted = request.headers.get("accept", "").split(",")
    return any(one.partition(";")[0].strip().lower() == EVENT_STREAM for one in accepted)


def _created(answer: Response) -> Response:
    """The answer to a submit: the job, and where to find it."""
    if answer.status_code < 300:
        answer.status_code = 202
        answer.headers["location"] = f"{PATH}/{orjson.loads(answer.body)['id']}"
    return answer


async def _created_and_watched(way: Way) -> Response:
    """The answer to a submit as the job's event stream, which begins with that answer: from here on nothing may fail in
    a way that makes the caller submit again."""
    answer = await way.go()
    if answer.status_code >= 300:
        return answer
    document = orjson.loads(answer.body)
    job = await way.services.owners.find_by_id(document["id"], way.caller)
    first = Update(job.endpoint, document, Log(), 0)
    result = _result_of(way.services, way.request, job)
    watch = way.services.hub.join(job)
    events = journal(watch, result, way.services.drain, first.mark, _id_of(way.request))
    names = ("ratelimit", "idempotency", DROPPED)
    kept = {name: value for name, value in answer.headers.items() if name.startswith(names)}
    stream = EventStream(preceded(first, events), {**kept, "location": f"{PATH}/{document['id']}"})
    stream.at_end(partial(way.services.hub.leave, watch))
    return stream


async def _watched(services: Services, request: Request, caller: Caller, job: Job, after: str | None) -> Response:
    target = Target(Kind.STATUS_STREAM, app=job.app, request_id=job.request_id or "", logs=True)
    note(request, caller, target)
    admission = await services.gate.admit(caller, target, network_of(request), _nothing)
    result = _result_of(services, request, job)
    stream = await stream_of(
        services.hub,
        job,
        disconnect_of(request.scope, request.receive),
        lambda watch: journal(watch, result, services.drain, after, _id_of(request)),
    )
    stream.headers.update(admission.allowance.headers())
    return stream


def _last_event_id(request: Request) -> str | None:
    """The id after which a stream is resumed, the newest that is given.

    A browser that reconnects sends the header to the URL that it was opened with. Replacements of `EventSource` that
    cannot send the header add `lastEventId` to that URL.
    """
    given = known_query(request, "last_event_id", "lastEventId")
    return request.headers.get("last-event-id") or given.get("lastEventId") or given.get("last_event_id")


async def _end_of_events(services: Services, request: Request, caller: Caller) -> Response:
    """Nothing follows the last event: 204 makes an `EventSource` stop (WHATWG HTML, section 9.2.3)."""
    note(request, caller)
    allowance = await services.limiter.hit(caller, network_of(request), polls=True)
    return Response(status_code=204, headers=allowance.headers())


async def _head_of_events(services: Services, request: Request, caller: Caller) -> Response:
    """The head that the stream would have, and done (RFC 9110, section 9.3.2): no stream is opened, here or at fal."""
    note(request, caller)
    allowance = await services.limiter.hit(caller, network_of(request), polls=True)
    set_cache_control(request.scope, STREAM_CACHING)
    answer = Response(headers={**STREAM_HEADERS, **allowance.headers()})
    del answer.headers["content-length"]
    return answer


async def _nothing() -> None:
    return None


def _result_of(services: Services, request: Request, job: Job) -> Callable[[], Awaitable[Whole]]:
    """What fetches the job's result, as its own route does."""
    admission = Admission(Target(Kind.RESULT, app=job.app, request_id=job.request_id or ""), NO_ALLOWANCE, job)
    return Call(services, admission, None, headers.to_fal(request.headers, streams=False), None).result


def _id_of(request: Request) -> str:
    id_: str = request.scope["state"]["request_id"]
    return id_


async def _own(services: Services, request: Request) -> tuple[Caller, Job]:
    """The caller, and the job of its own that the path names."""
    caller = await services.authenticator.authenticate(request)
    request_id = targets.parse_request_id(request.path_params["id"])
    return caller, await services.owners.find_by_id(request_id, caller)


async def _about_one(services: Services, request: Request, kind: Kind) -> Response:
    logs = targets.parse_logs(request.query_params.get("logs", "0"))
    caller, job = await _own(services, request)
    target = Target(kind, app=job.app, request_id=job.request_id or "", logs=logs)
    note(request, caller, target)
    answer = await Way(services, request, caller, target, as_job).go()
    if kind is Kind.STATUS and answer.status_code == 202:
        # Of fal it says that the job is not done; of this address, that it was asked.
        answer.status_code = 200
    return answer


def _most(given: str | None) -> int:
    if given is None:
        return LISTED
    if (most := parse_whole(given, MOST_LISTED, least=1)) is None:
        raise BadRequest(f"limit must be a number from 1 to {MOST_LISTED}.")
    return most


def _listed(job: Job, services: Services) -> dict[str, Any]:
    known = services.hub.known(job)
    return {
        "id": job.request_id,
        "endpoint": job.endpoint,
        "is_over": job.state in ("settled", "released") or (known is not None and known.is_last),
        "submitted_at": datetime.fromtimestamp(job.submitted_at, UTC).isoformat(),
    }
