"""A span for each request, where traces are on."""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.http.scope import STATUS, header_of
from proxy.log_context import FIELDS, QUIET
from proxy.telemetry.traces import Traces, activate, end_call

#: A connection that closed before its answer, as in the log.
_GONE = 499


class Tracing:
    """Traces what the log has a line for: polls that are answered from memory have no span.

    A caller's `traceparent` counts if its tenant key is good: a backend belongs to the operator's own system. Browsers
    and apps begin a trace of their own here, so that no stranger writes into anyone's traces.
    """

    def __init__(self, app: ASGIApp, traces: Traces, recall: Callable[[Scope], str | None]) -> None:
        self._app = app
        self._traces = traces
        self._recall = recall

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        span = self._traces.start_call(scope["method"], self._trusted_parent(scope))
        try:
            with activate(span):
                await self._app(scope, receive, send)
        finally:
            state = scope["state"]
            # A span that does not end is not exported.
            if not state.get(QUIET):
                route = getattr(scope.get("route"), "path", "none")
                end_call(span, scope["method"], route, state.get(STATUS, _GONE), state.get(FIELDS, {}))
        return None

    def _trusted_parent(self, scope: Scope) -> str | None:
        parent = header_of(scope, b"traceparent")
        if parent is None or not (self._recall(scope) or "").startswith("key:"):
            return None
        return parent
