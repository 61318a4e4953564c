"""CORS: which pages may call from a browser, and what they may send and read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.errors import OriginNotAllowed, ProxyError, RateLimited
from proxy.http.error_response import respond
from proxy.http.refused_origins import MAX_FACT_CHARS, RefusedOrigins
from proxy.http.scope import SHOWN, header_of
from proxy.limits.refusals import RefusalBudget
from proxy.log_context import bind
from proxy.origins import OriginRefusal
from proxy.telemetry.metrics import Metrics

CORS_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE")
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
    "x-fal-store-io",
    "x-fal-no-retry",
    "x-fal-user-agent",
    "x-app-fal-disable-fallback",
    "x-fal-file-name",
    # Such a body is refused, in words that the page can read.
    "content-encoding",
    # What browsers and their monitoring add to every call. Nothing of it is used here, and nothing reaches fal.
    "cache-control",
    "pragma",
    "expires",
    "if-modified-since",
    "if-none-match",
    "user-agent",
    "x-client-info",
    "x-csrf-token",
    "x-xsrf-token",
    "ngrok-skip-browser-warning",
    "bypass-tunnel-reminder",
    "x-request-id",
    "x-requested-with",
    "traceparent",
    "tracestate",
    "baggage",
    "sentry-trace",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "uber-trace-id",
    "newrelic",
    "request-id",
    "request-context",
    "elastic-apm-traceparent",
    "x-cloud-trace-context",
    "x-amzn-trace-id",
    "x-datadog-origin",
    "x-datadog-parent-id",
    "x-datadog-sampling-priority",
    "x-datadog-tags",
    "x-datadog-trace-id",
    "x-newrelic-id",
    "x-newrelic-transaction",
    "x-ms-request-id",
    "x-ms-request-root-id",
    "x-dynatrace",
    "x-dtpc",
    "x-dtreferer",
    "adrum",
    "x-instana-t",
    "x-instana-s",
    "x-instana-l",
    "x-honeycomb-trace",
    "x-highlight-request",
    "x-openreplay-session-token",
    "x-posthog-distinct-id",
    "x-posthog-session-id",
    "x-posthog-window-id",
    "sw8",
    "sw8-correlation",
    "eagleeye-traceid",
    "eagleeye-sessionid",
    "eagleeye-pappname",
    "grpc-trace-bin",
    "ot-tracer-sampled",
    "ot-tracer-spanid",
    "ot-tracer-traceid",
    "x-correlation-id",
    "x-client-trace-id",
    "x-span-id",
    "x-trace-id",
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
    "quota",
    "quota-policy",
    "idempotency-replayed",
    "location",
    "link",
    "content-disposition",
    "x-fal-proxy-dropped",
)
#: What to change so that a page may call.
_SETTING = "allowed_origins of a tenant, or PROXY_ALLOWED_ORIGINS"
_WANTED = "access-control-request-headers"


class Cors(CORSMiddleware):
    """Starlette's CORS, for origins that can change while the program runs."""

    def __init__(
        self,
        app: ASGIApp,
        is_allowed: Callable[[str], bool],
        list_allowed: Callable[[], Collection[str]],
        metrics: Metrics,
        budget: RefusalBudget,
        origins: RefusedOrigins,
    ) -> None:
        super().__init__(
            app,
            allow_methods=CORS_METHODS,
            allow_headers=CORS_REQUEST_HEADERS,
            allow_credentials=True,
            expose_headers=CORS_RESPONSE_HEADERS,
            # An allowed page may call a proxy in a private network too: the operator named both.
            allow_private_network=True,
            max_age=600,
        )
        self._is_allowed = is_allowed
        self._list_allowed = list_allowed
        self._metrics = metrics
        self._budget = budget
        self._origins = origins

    def is_allowed_origin(self, origin: str) -> bool:
        return self._is_allowed(origin.lower())

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:  # type: ignore[override]
        if scope["type"] != "http":
            return self.app(scope, receive, send)
        if header_of(scope, b"origin") is None:
            # A cache must not give an answer to no page in particular to the next page that asks.
            scope["state"][SHOWN].append((b"vary", b"Origin"))
            return self.app(scope, receive, send)
        headers = _without_empty_elements(Headers(scope=scope))
        if scope["method"] != "OPTIONS" or "access-control-request-method" not in headers:
            return super().__call__(scope, receive, send)
        response = self.preflight_response(headers)
        if response.status_code != 200:
            return self._refuse(scope, receive, send, self._explain(bytes(response.body).decode(), headers))
        return response(scope, receive, send)

    def _explain(self, why: str, asked: Headers) -> str:
        """Starlette's reason, with the headers that no page may send."""
        wanted = asked.get(_WANTED, "").lower().split(",")
        refused = ", ".join(name.strip() for name in wanted if name and name.strip() not in self.allow_headers)
        return f"{why}: {refused[:MAX_FACT_CHARS]}" if refused else why

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, why: str) -> None:
        """Answer with Starlette's refusal, which is text, in the one shape of errors.

        A page's developer sees no more than "failed to fetch", so the log tells the operator what the page asked for
        and which setting allows it.
        """
        error: ProxyError
        try:
            if self._budget.is_used_up(scope):
                await self._budget.check(scope)
            error = self._report(scope, Headers(scope=scope), why)
        except RateLimited as unheard:
            error = unheard
        await self._respond(error, scope)(scope, receive, send)

    def _report(self, scope: Scope, asked: Headers, why: str) -> OriginNotAllowed:
        """Log what a refused preflight asked for, and give the error for its page."""
        fields = {
            "origin": asked["origin"][:MAX_FACT_CHARS],
            "wanted_method": asked["access-control-request-method"][:MAX_FACT_CHARS],
            "wanted_headers": asked.get(_WANTED, "")[:MAX_FACT_CHARS],
        }
        refusal = None
        if not self.is_allowed_origin(asked["origin"]):
            fields["allowed_by"] = _SETTING
            refusal = OriginRefusal("preflight", asked["origin"], self._list_allowed, _SETTING)
        bind(scope, **fields)
        error = OriginNotAllowed(f"This page may not make this call ({why}).", refusal)
        self._origins.report(error)
        return error

    def _respond(self, error: ProxyError, scope: Scope) -> Response:
        self._metrics.refusals.labels(error.code).inc()
        bind(scope, error_type=error.code)
        refusal = respond(error, scope["state"]["request_id"])
        refusal.headers["vary"] = "Origin"
        return refusal


def _without_empty_elements(given: Headers) -> Headers:
    """The headers of a preflight, with a list of headers as RFC 9110, section 5.6.1.2, reads it."""
    if _WANTED not in given:
        return given
    headers = MutableHeaders(raw=list(given.raw))
    headers[_WANTED] = ",".join(name.strip() for name in headers[_WANTED].split(",") if name.strip())
    if not headers[_WANTED]:
        del headers[_WANTED]
    return headers
