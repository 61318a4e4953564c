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
from proxy.routes.paging import cut_page, parse_limit, parse_names_cursor
from proxy.routes.queries import known_query
from proxy.stores.grants import GrantFilter, GrantStore
from proxy.stores.ledger import Ledger

#: Rows of one page.
MOST_ROWS = 500
#: What a query may ask.
QUERY = ("from", "to", "group_by", "limit", "cursor")


class UsageReports:
    """Answers what a query asks about usage."""

    def __init__(self, ledger: Ledger, grants: GrantStore, clock: Clock) -> None:
        self._ledger = ledger
        self._grants = grants
        self._clock = clock

    async def report(self, tenant: str | None, subject: str | None, query: dict[str, str]) -> dict[str, Any]:
        """Report the usage of all tenants, of one, or of one subject: a page of rows, and the total of all of them.

        Raises:
            BadRequest: the query cannot be understood.
        """
        period = usage.parse_period(query.get("from"), query.get("to"), self._clock.now())
        parse_groups = usage.parse_groups_of_all if tenant is None else usage.parse_groups
        groups = parse_groups(query.get("group_by"))
        limit, after = parse_limit(query.get("limit"), MOST_ROWS, MOST_ROWS), _parse_cursor(query, groups)
        asked = (tenant, subject, period.since, period.until)
        rows = await self._ledger.usage(*asked, groups, after=after, most=limit + 1)
        page, cursor = cut_page(rows, limit, lambda row: row.names)
        is_whole = cursor is None and not after
        total = rows if is_whole else await self._ledger.usage(*asked, frozenset())
        return usage.describe(tenant, subject, period, groups, page, total) | {"next_cursor": cursor}

    async def list_grants(self, tenant: str, subject: str | None) -> list[dict[str, Any]]:
        """The newest grants of a tenant, or of one subject, that have something left."""
        wanted = GrantFilter(tenant, None if subject is None else (subject,), open_at=self._clock.now())
        return [usage.describe_grant(one) for one in await self._grants.list_grants(wanted, MOST_ROWS)]


def _parse_cursor(query: dict[str, str], groups: frozenset[str]) -> tuple[str, ...]:
    """The names of the last row of the page before; none for the first page.

    Raises:
        BadRequest: it is not a cursor of rows that are grouped in this way.
    """
    names = parse_names_cursor(query.get("cursor"), len(groups))
    if names and "day" in groups:
        # Behind the name of the tenant, if there is one.
        usage.parse_day("cursor", names["tenant" in groups])
    return names


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
        query = known_query(request, *QUERY)
        # The dearest of all reads: the ledger adds up the sums of the days.
        await self._limiter.hit(caller, request.scope, polls=False)
        subject = caller.subject if caller.session else None
        return JSONResponse(await self._reports.report(caller.tenant.id, subject, query))
