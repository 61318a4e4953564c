"""The endpoints that a caller may call."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from proxy.auth.authenticator import Authenticator
from proxy.calls.admission import Admission
from proxy.catalog import Catalog
from proxy.errors import NotFound
from proxy.limits.rates import RateLimiter
from proxy.routes.queries import known_query
from proxy.tenants.caller import Caller

PATH = "/v1/endpoints"


class EndpointRoutes:
    """List the endpoints that are open to a caller, and describe one."""

    def __init__(
        self, authenticator: Authenticator, limiter: RateLimiter, admission: Admission, catalog: Catalog
    ) -> None:
        self._authenticator = authenticator
        self._limiter = limiter
        self._admission = admission
        self._catalog = catalog

    def routes(self) -> list[Route]:
        return [
            Route(PATH, self.list_open, methods=["GET"]),
            Route(PATH + "/{id:path}", self.describe, methods=["GET"]),
        ]

    async def list_open(self, request: Request) -> Response:
        caller = await self._admit(request)
        found = [self._catalog.get(id_) for id_ in self._admission.open_to(caller)]
        return JSONResponse({"endpoints": [{"id": one.id, "title": one.title} for one in found if one]})

    async def describe(self, request: Request) -> Response:
        caller = await self._admit(request)
        found = self._catalog.get(request.path_params["id"])
        if found is None or found.id not in self._admission.open_to(caller):
            raise NotFound("You may call no such endpoint; GET /v1/endpoints lists those that you may call.")
        schemas = {"input_schema": found.input_schema, "output_schema": found.output_schema}
        return JSONResponse({"id": found.id, "title": found.title, **schemas})

    async def _admit(self, request: Request) -> Caller:
        caller = await self._authenticator.authenticate(request)
        known_query(request)
        await self._limiter.hit(caller, request.scope, polls=True)
        return caller
