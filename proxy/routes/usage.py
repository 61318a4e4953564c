"""Own usage: a session sees its subject, a tenant key its tenant."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from proxy.auth.authenticator import Authenticator
from proxy.clock import Clock
from proxy.limits import usage
from proxy.limits.rates import RateLimiter
from proxy.routes.queries import known_query
from proxy.stores.ledger import Ledger


class UsageReports:
    """Answers what a query asks about usage."""

    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock

    async def report(self, tenant: str, subject: str | None, query: dict[str, str]) -> dict[str, Any]:
        """Report the usage of a tenant, or of one subject.

        Raises:
            BadRequest: the query cannot be understood.
        """
        period = usage.parse_period(query.get("from"), query.get("to"), self._clock.now())
        groups = usage.parse_groups(query.get("group_by"))
        return await usage.report(self._ledger, tenant, subject, period, groups)


class UsageRoutes:
    """Report a caller's own usage."""

    def __init__(self, authenticator: Authenticator, limiter: RateLimiter, reports: UsageReports) -> None:
        self._authenticator = authenticator
        self._limiter = limiter
        self._reports = reports

    def routes(self) -> list[Route]:
        return [Route("/v1/usage", self.show, methods=["GET"])]

    async def show(self, request: Request) -> Response:
        caller = await self._authenticator.authenticate(request)
        query = known_query(request, "from", "to", "group_by")
        # The dearest of all reads: the ledger adds up every job of the days.
        await self._limiter.hit(caller, request.scope, polls=False)
        subject = caller.subject if caller.session else None
        return JSONResponse(await self._reports.report(caller.tenant.id, subject, query))
