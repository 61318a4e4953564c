"""For operators: alive, ready, metrics."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from proxy.drain import Drain
from proxy.routes.readiness import Readiness
from proxy.telemetry.metrics import Metrics
from proxy.upstream.guard import Guard


def livez_route() -> Route:
    """Make the route that every listener has."""

    async def livez(request: Request) -> Response:
        # Touches nothing: a store that is down is no reason to restart this process.
        return JSONResponse({"status": "ok"})

    return Route("/livez", livez)


class OperationsRoutes:
    """Answer what operators ask, besides `/livez`."""

    def __init__(self, readiness: Readiness, guard: Guard, metrics: Metrics, drain: Drain) -> None:
        self._readiness = readiness
        self._guard = guard
        self._metrics = metrics
        self._drain = drain

    def routes(self) -> list[Route]:
        return [Route("/readyz", self.readyz), Route("/metrics", self.metrics)]

    async def readyz(self, request: Request) -> Response:
        self._drain.refuse_new_work()
        await self._readiness.require()
        # What fal says of the account stands here, and changes nothing: other processes would fare no better.
        return JSONResponse({"status": "ready", "upstream": self._guard.report()})

    async def metrics(self, request: Request) -> Response:
        return Response(await self._metrics.render(), media_type=CONTENT_TYPE_LATEST)
