"""From the outcome of a call to the response of a surface."""

from __future__ import annotations

import orjson
from starlette.requests import Request
from starlette.responses import Response

from proxy.calls.call import Call, Outcome
from proxy.http.event_stream import EventStream
from proxy.http.reply import Reply
from proxy.limits.stream_guard import StreamGuard
from proxy.log_context import bind
from proxy.targets import Kind, Target
from proxy.tenants.caller import Caller


def render(call: Call, outcome: Outcome, guard: StreamGuard) -> Response:
    """Write an outcome in the form of the call's surface. A stream ends with its caller's credential at the latest."""
    runs_model = call.target.kind is Kind.STREAM
    if outcome.events is not None:
        stream = EventStream(
            outcome.events,
            outcome.headers,
            outcome.release,
            on_close=outcome.on_close,
            ends_with_result=runs_model,
        )
        guard.watch(stream, call.caller, reads_job=not runs_model)
        return stream
    body = outcome.body
    if outcome.document is not None and call.form.rewrite is not None:
        endpoint = outcome.job.endpoint if outcome.job is not None else call.target.endpoint
        body = orjson.dumps(call.form.rewrite(endpoint, outcome.document))
    return Reply(outcome.status, outcome.headers, body)


def bind_call(request: Request, caller: Caller, target: Target | None = None) -> None:
    """Name the caller, and what is asked, in the log line of a request."""
    fields: dict[str, object] = {"tenant": caller.tenant.id, "subject": caller.subject}
    if caller.session is not None and caller.session.tags:
        fields["tags"] = list(caller.session.tags)
    if target is not None:
        fields |= {"kind": target.kind.value, "app": target.app}
        if target.request_id:
            fields["job"] = target.request_id
    bind(request.scope, **fields)
