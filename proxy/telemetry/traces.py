"""OpenTelemetry traces: a span for each call, and one for each request to fal, exported over OTLP/HTTP.

Only a proxy with `PROXY_OTLP_ENDPOINT` imports this module and the packages of the extra `otel`. Everything else of
OpenTelemetry (headers of the exporter, sampler, resource) follows the standard `OTEL_…` variables, which the SDK reads.
No attribute holds a prompt, a picture, a key, a session or a path, which may carry one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode, use_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from proxy import __version__

#: The last spans have so long to leave when the process ends.
_CLOSE_SECONDS = 5.0
#: Kinds of calls that run a model: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/.
_MODEL_CALLS = frozenset({"submit", "run", "stream"})
_propagator = TraceContextTextMapPropagator()


class Traces:
    """Starts and describes spans, and exports them in the background."""

    def __init__(self, endpoint: str) -> None:
        service = Resource({"service.name": "fal-proxy", "service.version": __version__})
        # The variables of OpenTelemetry win: a fleet may name its services.
        self._provider = TracerProvider(resource=service.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{endpoint}/v1/traces")))
        self._tracer = self._provider.get_tracer("fal-proxy", __version__)

    def start_call(self, method: str, traceparent: str | None) -> Span:
        """Start the span of a call, as a child of its caller's span if that is given and well-formed."""
        parent = _propagator.extract({"traceparent": traceparent}, Context()) if traceparent else Context()
        attributes = {"http.request.method": method}
        return self._tracer.start_span(method, parent, SpanKind.SERVER, attributes)

    def start_request(self, method: str, host: str) -> Span:
        """Start the span of a request to fal, below the call that this task works for."""
        attributes = {"http.request.method": method, "server.address": host}
        return self._tracer.start_span(f"{method} {host}", None, SpanKind.CLIENT, attributes)

    async def close(self) -> None:
        """Export what is left, for a few seconds at most."""
        closing = asyncio.get_running_loop().run_in_executor(None, self._provider.shutdown)
        await asyncio.wait({closing}, timeout=_CLOSE_SECONDS)


def activate(span: Span) -> AbstractContextManager[Span]:
    """Make a span the parent of those that this task starts. What is raised is not recorded: it may quote values."""
    return use_span(span, end_on_exit=False, record_exception=False, set_status_on_exception=False)


def end_call(span: Span, method: str, route: str, status: int, fields: Mapping[str, Any]) -> None:
    """End the span of a call, and describe it by its route, its status and the fields of its log line."""
    span.update_name(f"{method} {route}")
    span.set_attributes({"http.route": route, "http.response.status_code": status})
    if (tenant := fields.get("tenant")) is not None:
        span.set_attribute("fal_proxy.tenant", tenant)
    if (kind := fields.get("kind")) is not None:
        span.set_attribute("fal_proxy.kind", kind)
    if kind in _MODEL_CALLS:
        model = {"gen_ai.operation.name": "generate_content", "gen_ai.provider.name": "fal"}
        span.set_attributes({**model, "gen_ai.request.model": fields.get("app", "")})
    if (job := fields.get("job")) is not None:
        span.set_attribute("gen_ai.response.id", job)
    end(span, fields.get("error_type"), failed=status >= 500)


def end(span: Span, error_type: str | None = None, *, failed: bool = False) -> None:
    """End a span, with the kind of its error if there was one."""
    if error_type is not None:
        span.set_attribute("error.type", error_type)
    if failed:
        span.set_status(StatusCode.ERROR)
    span.end(time.time_ns())
