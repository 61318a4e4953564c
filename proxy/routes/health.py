"""For operators: alive, ready, metrics."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from proxy.routes.readiness import Readiness
from proxy.routes.services import Services


def livez_route() -> Route:
    """The route that every listener has."""

    async def livez(request: Request) -> Response:
        # Touches nothing: a store that is down is no reason to restart this process.
        return JSONResponse({"status": "ok"})

    return Route("/livez", livez)


def routes(services: Services) -> list[Route]:
    """What operators ask, besides `/livez`."""

    async def check_database() -> None:
        await services.stores.ping()
        await services.directory.snapshot()

    async def check_counters() -> None:
        await services.counters.ping()

    readiness = Readiness({"database": check_database, "counters": check_counters}, services.clock)

    async def readyz(request: Request) -> Response:
        services.drain.refuse_new_work()
        await readiness.require()
        # What fal says of the account stands here, and changes nothing: other processes would fare no better.
        return JSONResponse({"status": "ready", "upstream": services.upstream.guard.report()})

    async def metrics(request: Request) -> Response:
        return Response(await services.metrics.render(), media_type=CONTENT_TYPE_LATEST)

    return [Route("/readyz", readyz), Route("/metrics", metrics)]
