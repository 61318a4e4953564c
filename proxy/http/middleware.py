"""ASGI middleware for every request: its id and log line, the one shape of errors, the bound on its body."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxy.drain import RETRY_SECONDS, Drain
from proxy.errors import (
    BadRequest,
    BodyTooLarge,
    Draining,
    Internal,
    MethodNotAllowed,
    NotFound,
    OriginNotAllowed,
    ProxyError,
    UpstreamAmbiguous,
)
from proxy.http.body_memory import FREE_BYTES, HELD, BodyMemory
from proxy.http.disconnect import CallerGone
from proxy.http.error_response import hangs_on, respond, respond_in_stream
from proxy.http.refused_origins import RefusedOrigins
from proxy.http.request_ids import accept_request_id, new_request_id
from proxy.http.scope import HAS_BODY, MAY_HAVE_RUN, NO_STORE, NOSNIFF, SHOWN, STATUS, header_of
from proxy.limits.rates import ALLOWANCE, RateLimitExceeded, to_rate_limited
from proxy.limits.refusals import COUNTED, RefusalBudget
from proxy.limits.session_quotas import SESSION_QUOTAS, SessionQuotas
from proxy.log_context import FIELDS, QUIET, bind
from proxy.numbers import parse_whole
from proxy.telemetry.logs import log_request
from proxy.telemetry.metrics import Metrics
from proxy.upstream.event_reader import StreamBroken

_access = logging.getLogger("proxy.access")
_log = logging.getLogger(__name__)


class RequestContext:
    """Gives a request its id, and writes one line and one count when it has been answered.

    Polls that are answered from memory have their line at `debug` only. The path is not logged: it may carry a session
    or an upload's id. The matched route stands for it.
    """

    def __init__(
        self, app: ASGIApp, metrics: Metrics, drain: Drain, body_memory: BodyMemory, budget: RefusalBudget
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._drain = drain
        self._body_memory = body_memory
        self._budget = budget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        request_id = accept_request_id(header_of(scope, b"x-request-id")) or new_request_id()
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        shown = state[SHOWN] = [(b"x-request-id", request_id.encode("ascii")), NO_STORE, NOSNIFF]
        started = time.perf_counter()

        def send_with_more(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                if HELD in state:
                    # An answer may last for long, and has no use for the input.
                    self._body_memory.release(scope)
                state[STATUS] = message["status"]
                message["headers"] = [*message["headers"], *shown]
                if (allowance := state.get(ALLOWANCE)) is not None:
                    message["headers"] += allowance.raw_headers()
                if self._drain.started.is_set():
                    # The next request of this caller finds another process.
                    message["headers"].append((b"connection", b"close"))
                if (quotas := state.get(SESSION_QUOTAS)) is not None:
                    return _send_with_quotas(message, quotas, send)
            return send(message)

        try:
            await self._app(scope, receive, send_with_more)
        finally:
            if HELD in state:
                self._body_memory.release(scope)
            self._record_answer(scope, request_id, time.perf_counter() - started)
        return None

    def _record_answer(self, scope: Scope, request_id: str, seconds: float) -> None:
        surface, status = getattr(scope.get("route"), "path", "none"), scope["state"].get(STATUS, 499)
        self._metrics.count_answer(surface, status, seconds)
        if status in COUNTED:
            self._budget.spend(scope)
        level = logging.DEBUG if scope["state"].get(QUIET) else logging.INFO
        if _access.isEnabledFor(level):
            fields = {
                "request_id": request_id,
                "method": scope["method"],
                "route": surface,
                "status": status,
                "milliseconds": round(seconds * 1000, 1),
                **scope["state"].get(FIELDS, {}),
            }
            log_request(level, fields)


async def _send_with_quotas(message: Message, quotas: SessionQuotas, send: Send) -> None:
    message["headers"] += await quotas.raw_headers()
    await send(message)


class Errors:
    """Turns whatever is raised below into the one shape of errors; an unexpected one is logged, never shown."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, drain: Drain, budget: RefusalBudget, origins: RefusedOrigins
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._drain = drain
        self._budget = budget
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        try:
            if self._budget.is_used_up(scope):
                await self._budget.check(scope)
            await self._app(scope, receive, send)
        except CallerGone:
            # The client is gone; this is for the log.
            await Response(status_code=499)(scope, receive, send)
        except StreamBroken as broken:
            # Returning without an end makes the server cut the connection: no client takes it for the end.
            _log.warning("stream cut", extra={"log_fields": {"problem": str(broken)}})
        except asyncio.CancelledError:
            if not self._drain.over.is_set():
                raise
            if STATUS in scope["state"]:
                _log.warning("answer cut: this process is stopping")
                return None
            await self._refuse(_interruption_error(scope), scope, receive, send)
        except Exception as problem:
            if STATUS in scope["state"]:
                _log.exception("answer failed")
                return None
            await self._refuse(as_proxy_error(problem, scope), scope, receive, send)
        return None

    async def _refuse(self, error: ProxyError, scope: Scope, receive: Receive, send: Send) -> None:
        self._metrics.refusals.labels(error.code).inc()
        if isinstance(error, OriginNotAllowed):
            self._origins.report(error)
        bind(scope, error_type=error.code)
        form = respond_in_stream if hangs_on(error, scope) else respond
        await form(error, scope["state"]["request_id"])(scope, receive, send)


def _interruption_error(scope: Scope) -> ProxyError:
    """Return the error for a request that the end of the process cut off."""
    if scope["state"].get(MAY_HAVE_RUN):
        return UpstreamAmbiguous("This server stopped before fal answered. Check before you repeat the request.")
    return Draining("This server stopped before it answered; try again.", retry_after=RETRY_SECONDS)


def as_proxy_error(problem: Exception, scope: Scope) -> ProxyError:
    """Return the error for the caller. Any other exception becomes `internal`, with a traceback in the log."""
    if isinstance(problem, ProxyError):
        return problem
    if isinstance(problem, RateLimitExceeded):
        return to_rate_limited(problem)
    if isinstance(problem, HTTPException):
        return _of_router(problem, scope)
    _log.error("unexpected failure", exc_info=problem)
    return Internal("Something went wrong inside the proxy; its log has the details under this request id.")


def _of_router(problem: HTTPException, scope: Scope) -> ProxyError:
    if problem.status_code == 404:
        return NotFound("There is nothing at this address.")
    if problem.status_code == 405:
        allow = ", ".join(sorted(_methods_at(scope)))
        return MethodNotAllowed(f"This address does not support the method; use {allow}.", headers={"allow": allow})
    return BadRequest(str(problem.detail))


def _methods_at(scope: Scope) -> set[str]:
    """Collect the methods of all routes at a path: the router names only those of the first one."""
    routes = [route for route in scope["app"].router.routes if isinstance(route, Route)]
    return set().union(*(route.methods or () for route in routes if route.matches(scope)[0] is not Match.NONE))


class BodyLimit:
    """Cuts off a request body at its bound, declared or not, and counts the memory that large ones take.

    Raises where the body is read, so routes stay unaware.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, is_file: Callable[[str], bool], body_memory: BodyMemory) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._body_memory = body_memory
        # Files have bounds of their own, by plan; this knows their paths.
        self._is_file = is_file

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] != "http" or self._is_file(scope["path"]):
            return self._app(scope, receive, send)
        seen = 0

        async def receive_bounded() -> Message:
            nonlocal seen
            # What has arrived whole shows its size.
            declared = None if seen or HAS_BODY in scope["state"] else header_of(scope, b"content-length")
            if declared and parse_whole(declared, self._max_bytes) is None:
                raise self._too_large()
            message = await receive()
            size = len(message.get("body", b""))
            seen += size
            if seen > self._max_bytes:
                raise self._too_large()
            if seen > FREE_BYTES:
                self._body_memory.hold(scope, size)
            return message

        return self._app(scope, receive_bounded, send)

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(
            f"The body is larger than {self._max_bytes} bytes; upload large pictures and send their URL.",
            headers={"connection": "close"},
        )
