"""Pure ASGI, true of every request: an id and a log line, CORS, one shape of errors, a bound on the body."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
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
    respond,
)
from proxy.policy.ratelimit import RateLimitExceeded, too_many
from proxy.telemetry import Metrics
from proxy.upstream.relay import CallerGone, StreamBroken

_access = logging.getLogger("proxy.access")
_log = logging.getLogger(__name__)
#: Requests are numbered, after what no other process begins with: drawing lots for each would cost more than routing.
_PROCESS, _numbers = secrets.token_hex(4), itertools.count()
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{8,128}")
#: In the state of a request: the headers that its answer has beside its own, and its status once the answer has begun.
SHOWN, STATUS = "shown", "status"

CORS_METHODS = ("GET", "POST", "PUT", "DELETE")
CORS_REQUEST_HEADERS = (
    "authorization",
    "content-type",
    "accept",
    "idempotency-key",
    "last-event-id",
    "x-fal-proxy-session",
    "x-fal-target-url",
    "x-fal-queue-priority",
    "x-fal-runner-hint",
    "x-fal-request-timeout",
    "x-fal-object-lifecycle",
    "x-fal-object-lifecycle-preference",
    "x-fal-tags",
    "x-fal-user-agent",
    "x-app-fal-disable-fallback",
)
CORS_RESPONSE_HEADERS = (
    "x-fal-request-id",
    "x-fal-billable-units",
    "x-fal-error-type",
    "x-fal-request-timeout-type",
    "x-request-id",
    "retry-after",
    "ratelimit",
    "ratelimit-policy",
    "idempotency-replayed",
    "location",
)


class RequestContext:
    """Gives a request its id, and writes one line and one count when it has been answered.

    Polls that are answered from memory have their line at `debug` only. The path is not logged: it may carry a session
    or an upload's id. The matched route stands for it.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, drain: Drain) -> None:
        self._app = app
        self._metrics = metrics
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        request_id = _well_formed(_header(scope, b"x-request-id")) or f"{_PROCESS}{next(_numbers):08x}"
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        shown = state[SHOWN] = [(b"x-request-id", request_id.encode("ascii"))]
        started = time.perf_counter()

        async def send_with_more(message: Message) -> None:
            if message["type"] == "http.response.start":
                state[STATUS] = message["status"]
                message["headers"] = [*message["headers"], *shown]
                if self._drain.started.is_set():
                    # The next request of this caller finds another process.
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        try:
            await self._app(scope, receive, send_with_more)
        finally:
            self._tell(scope, request_id, time.perf_counter() - started)
        return None

    def _tell(self, scope: Scope, request_id: str, seconds: float) -> None:
        surface, status = getattr(scope.get("route"), "path", "none"), scope["state"].get(STATUS, 499)
        self._metrics.answered(surface, status, seconds)
        level = logging.DEBUG if scope["state"].get("is_routine") else logging.INFO
        if _access.isEnabledFor(level):
            facts = {
                "request_id": request_id,
                "method": scope["method"],
                "route": surface,
                "status": status,
                "milliseconds": round(seconds * 1000, 1),
                **scope["state"].get("facts", {}),
            }
            _access.log(level, "request", extra={"facts": facts})


def _header(scope: Scope, name: bytes) -> str | None:
    """The first value of a request header, without the objects that Starlette makes of all of them."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)


def _well_formed(request_id: str | None) -> str | None:
    return request_id if request_id and _REQUEST_ID.fullmatch(request_id) else None


class Cors(CORSMiddleware):
    """Starlette's CORS, for origins that can change while the program runs."""

    def __init__(self, app: ASGIApp, is_allowed: Callable[[str], bool]) -> None:
        super().__init__(
            app,
            allow_methods=CORS_METHODS,
            allow_headers=CORS_REQUEST_HEADERS,
            allow_credentials=True,
            expose_headers=CORS_RESPONSE_HEADERS,
            max_age=600,
        )
        self._is_allowed = is_allowed

    def is_allowed_origin(self, origin: str) -> bool:
        return self._is_allowed(origin.lower())

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:  # type: ignore[override]
        if scope["type"] != "http":
            return self.app(scope, receive, send)
        if _header(scope, b"origin") is None:
            # A cache must not give an answer to no page in particular to the next page that asks.
            scope["state"][SHOWN].append((b"vary", b"Origin"))
            return self.app(scope, receive, send)
        headers = Headers(scope=scope)
        if scope["method"] != "OPTIONS" or "access-control-request-method" not in headers:
            return super().__call__(scope, receive, send)
        response = self.preflight_response(headers)
        if response.status_code != 200:
            response = _refused(response, scope["state"]["request_id"])
        return response(scope, receive, send)


def _refused(preflight: Response, request_id: str) -> Response:
    """Starlette's refusal of a preflight, which is text, in the one shape of errors."""
    why = bytes(preflight.body).decode()
    refusal = respond(OriginNotAllowed(f"This call is not open to that page ({why})."), request_id)
    refusal.headers["vary"] = "Origin"
    return refusal


class Errors:
    """Turns whatever is raised below into the one shape of errors; what nobody expected is logged, never shown."""

    def __init__(self, app: ASGIApp, metrics: Metrics, drain: Drain) -> None:
        self._app = app
        self._metrics = metrics
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        try:
            await self._app(scope, receive, send)
        except CallerGone:
            # Nobody reads this any more; it is for the log.
            await Response(status_code=499)(scope, receive, send)
        except StreamBroken as broken:
            # Returning without an end makes the server cut the connection: nobody takes it for the end.
            _log.warning("a stream to a caller was cut: %s", broken)
        except asyncio.CancelledError:
            if not self._drain.over.is_set():
                raise
            if STATUS in scope["state"]:
                _log.warning("an answer was cut, as this process ends")
                return None
            problem = Draining("This server stopped before it was done; ask again.", retry_after=RETRY_SECONDS)
            await self._refuse(problem, scope, receive, send)
        except Exception as problem:
            if STATUS in scope["state"]:
                _log.exception("an answer failed on its way")
                return None
            await self._refuse(as_proxy_error(problem), scope, receive, send)
        return None

    async def _refuse(self, error: ProxyError, scope: Scope, receive: Receive, send: Send) -> None:
        self._metrics.refusals.labels(error.code).inc()
        scope["state"].setdefault("facts", {})["error_type"] = error.code
        await respond(error, scope["state"]["request_id"])(scope, receive, send)


def as_proxy_error(problem: Exception) -> ProxyError:
    """The failure a caller is told of; what is not one of ours becomes `internal`, and a traceback in the log."""
    if isinstance(problem, ProxyError):
        return problem
    if isinstance(problem, RateLimitExceeded):
        return too_many(problem)
    if isinstance(problem, HTTPException):
        return _of_router(problem)
    _log.error("unexpected failure", exc_info=problem)
    return Internal("Something went wrong inside the proxy; its log knows more under this request id.")


def _of_router(problem: HTTPException) -> ProxyError:
    if problem.status_code == 404:
        return NotFound("There is nothing at this address.")
    if problem.status_code == 405:
        return MethodNotAllowed("This address does not know that method.", headers=dict(problem.headers or {}))
    return BadRequest(str(problem.detail))


class BodyLimit:
    """Cuts off a request body at its bound, declared or not. Raises where the body is read, so routes stay unaware."""

    def __init__(self, app: ASGIApp, max_bytes: int, is_file: Callable[[str], bool]) -> None:
        self._app = app
        self._max_bytes = max_bytes
        # Files have bounds of their own, by plan; their paths are told by this.
        self._is_file = is_file

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] != "http" or self._is_file(scope["path"]):
            return self._app(scope, receive, send)
        declared = _header(scope, b"content-length") or ""
        seen = 0

        async def bounded() -> Message:
            nonlocal seen
            if declared.isdigit() and int(declared) > self._max_bytes:
                raise self._too_large()
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._max_bytes:
                raise self._too_large()
            return message

        return self._app(scope, bounded, send)

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(
            f"The body is larger than {self._max_bytes} bytes; upload large pictures and send their URL.",
            headers={"connection": "close"},
        )
