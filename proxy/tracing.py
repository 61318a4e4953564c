"""Puts traces into the parts that are traced, if the settings ask for them.

OpenTelemetry is an extra, and takes memory and time to start: what needs it is imported here, where it is known to be
wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from starlette.middleware import Middleware
from starlette.types import Scope

from proxy.settings import TraceSettings
from proxy.upstream.engine import Engine, HttpxEngine

if TYPE_CHECKING:
    import httpx

    from proxy.telemetry.traces import Traces


def open_traces(settings: TraceSettings) -> Traces | None:
    """Begin to export traces; None if there is nowhere to."""
    if settings.endpoint is None:
        return None
    from proxy.telemetry.traces import Traces

    return Traces(settings.endpoint)


def trace_requests(
    transport: Engine | httpx.AsyncBaseTransport, traces: Traces | None
) -> Engine | httpx.AsyncBaseTransport:
    """Give what sends requests to fal, each within a span if there are traces."""
    if traces is None:
        return transport
    from proxy.upstream.traced_engine import TracedEngine

    return TracedEngine(transport if isinstance(transport, Engine) else HttpxEngine(transport), traces)


def trace_calls(traces: Traces | None, recall: Callable[[Scope], str | None]) -> list[Middleware]:
    """Give the middleware that traces calls, or none."""
    if traces is None:
        return []
    from proxy.http.tracing import Tracing

    return [Middleware(Tracing, traces=traces, recall=recall)]
