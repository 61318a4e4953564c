"""An OpenTelemetry collector: takes spans over OTLP/HTTP, and keeps them."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.support.servers import running
from tests.support.waiting import wait_until

SERVER, CLIENT = 2, 3


@dataclass(frozen=True)
class Span:
    """A span as it arrived. Ids are hexadecimal; a root has no parent."""

    name: str
    kind: int
    trace: str
    id: str
    parent: str
    attributes: dict[str, Any]
    is_failed: bool
    resource: dict[str, Any] = field(repr=False)


class Collector:
    """What arrived so far."""

    def __init__(self) -> None:
        self._answers = threading.Event()
        self._answers.set()
        self.url = ""
        self.spans: list[Span] = []
        self.bodies: list[bytes] = []

    def wait_for(self, name: str, count: int = 1) -> list[Span]:
        """The spans of a name, once there are so many."""
        wait_until(lambda: len(self._find_named(name)) >= count, f"no {count} spans {name!r} among {self._names()}")
        return self._find_named(name)

    def _find_named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]

    def _names(self) -> list[str]:
        return [span.name for span in self.spans]

    @contextlib.contextmanager
    def silent(self) -> Iterator[None]:
        """Answer nothing meanwhile."""
        self._answers.clear()
        try:
            yield
        finally:
            self._answers.set()

    async def receive(self, request: Request) -> Response:
        body = await request.body()
        if request.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        self.bodies.append(body)
        await asyncio.to_thread(self._answers.wait)
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            resource = _attributes(group.resource.attributes)
            for scope in group.scope_spans:
                self.spans += [_span(span, resource) for span in scope.spans]
        return Response(ExportTraceServiceResponse().SerializeToString(), media_type="application/x-protobuf")


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


def _span(span: Any, resource: dict[str, Any]) -> Span:
    return Span(
        span.name,
        span.kind,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        _attributes(span.attributes),
        span.status.code == 2,
        resource,
    )


@contextlib.contextmanager
def collecting() -> Iterator[Collector]:
    """Serve a collector on the loopback."""
    collector = Collector()
    app = Starlette(routes=[Route("/v1/traces", collector.receive, methods=["POST"])])
    with running(app) as collector.url:
        yield collector
