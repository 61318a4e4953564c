"""Own usage: a session sees its subject, a tenant key its tenant."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from proxy.limits import usage
from proxy.routes.queries import known_query
from proxy.routes.services import Services


def routes(services: Services) -> list[Route]:
    async def own(request: Request) -> Response:
        caller = await services.authenticator.authenticate(request)
        query = known_query(request, "from", "to", "group_by")
        # The dearest of all reads: the ledger adds up every job of the days.
        await services.limiter.hit(caller, request.scope, polls=False)
        subject = caller.subject if caller.session else None
        return JSONResponse(await report(services, caller.tenant.id, subject, query))

    return [Route("/v1/usage", own, methods=["GET"])]


async def report(services: Services, tenant: str, subject: str | None, query: dict[str, str]) -> dict[str, Any]:
    """The usage that a query asks for.

    Raises:
        BadRequest: the query cannot be understood.
    """
    period = usage.parse_period(query.get("from"), query.get("to"), services.clock.now())
    groups = usage.parse_groups(query.get("group_by"))
    return await usage.report(services.stores.ledger, tenant, subject, period, groups)
