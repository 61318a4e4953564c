"""The caller's usage: a session sees that of its subject, a tenant key that of its tenant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from proxy.auth.authenticator import Authenticator
from proxy.clock import Clock
from proxy.errors import BadRequest, RateLimited
from proxy.limits import usage
from proxy.limits.grants import describe_grant
from proxy.limits.rates import RateLimiter
from proxy.routes.paging import cut_page, link_next, parse_limit, parse_names_cursor
from proxy.routes.queries import known_query
from proxy.spreadsheets import MEDIA_TYPE, to_csv
from proxy.stores.grants import GrantFilter, GrantStore
from proxy.stores.ledger import Ledger
from proxy.stores.usage import UsageRow, sort_groups

#: Rows of one page.
MOST_ROWS = 500
#: Reports of a tenant, and of one of its subjects, at once that read jobs.
MOST_DETAILED = 3
#: What a query may ask.
QUERY = ("from", "to", "group_by", "format", "limit", "cursor")


class _Page(NamedTuple):
    """Rows of a report, and those that its total is the sum of."""

    asked: usage.UsageQuestion
    rows: Sequence[UsageRow]
    total: Sequence[UsageRow]
    cursor: str | None

    def describe(self) -> dict[str, Any]:
        """Describe the page as JSON."""
        return usage.describe(self.asked, self.rows, self.total) | {"next_cursor": self.cursor}


class UsageReports:
    """Answers what a query asks about usage."""

    def __init__(self, ledger: Ledger, grants: GrantStore, clock: Clock) -> None:
        self._ledger = ledger
        self._grants = grants
        self._clock = clock
        #: How many reports are made that read jobs, by tenant and subject.
        self._detailed = Counter[tuple[str, str]]()

    async def respond(
        self, tenant: str | None, subject: str | None, query: dict[str, str], *, has_grants: bool = False
    ) -> Response:
        """Answer with the usage of all tenants, of one, or of one subject: a page of rows, as JSON or as CSV.

        Args:
            has_grants: whether JSON has the grants of the tenant, or of its subject, too.

        Raises:
            BadRequest: the query cannot be understood, or asks for too much.
            RateLimited: several of its reports are being made that read jobs.
            StoreUnavailable: the ledger does not answer.
        """
        is_csv = _parse_format(query.get("format"))
        page = await self._read_page(tenant, subject, query, has_total=not is_csv)
        link = link_next(query, page.cursor)
        if is_csv:
            return _write_csv(page.asked, page.rows, link)
        report = page.describe()
        if has_grants and tenant is not None:
            report["grants"] = await self._list_grants(tenant, subject)
        return JSONResponse(report, headers=link)

    async def report(self, tenant: str | None, subject: str | None, query: Mapping[str, str]) -> dict[str, Any]:
        """Return the same page as JSON, for the console.

        Raises:
            BadRequest, RateLimited, StoreUnavailable: as `respond`.
        """
        return (await self._read_page(tenant, subject, query, has_total=True)).describe()

    async def _read_page(
        self, tenant: str | None, subject: str | None, query: Mapping[str, str], *, has_total: bool
    ) -> _Page:
        asked = usage.parse_question(tenant, subject, query, self._clock.now())
        limit, after = parse_limit(query.get("limit"), MOST_ROWS, MOST_ROWS), _parse_cursor(query, asked.groups)
        with self._bound_detailed(asked):
            rows = await usage.read_usage(self._ledger, asked, after=after, most=limit + 1)
            # These are all rows, and each job is in one of them.
            is_whole = len(rows) <= limit and not after and "tag" not in asked.groups
            total = rows if is_whole or not has_total else await usage.read_total(self._ledger, asked)
        page, cursor = cut_page(rows, limit, lambda row: row.names)
        return _Page(asked, page, total, cursor)

    @contextmanager
    def _bound_detailed(self, asked: usage.UsageQuestion) -> Iterator[None]:
        """Bound how many reports that read jobs run at once for a tenant or a subject, as others wait behind them.

        Raises:
            RateLimited: there are so many.
        """
        if asked.tenant is None or not asked.reads_jobs:
            yield
            return
        whose = asked.tenant, asked.subject or ""
        if self._detailed[whose] >= MOST_DETAILED:
            raise RateLimited(
                f"{MOST_DETAILED} reports that read each call are being made already; ask for one after the other.",
                retry_after=1,
                scope="subject" if asked.subject else "tenant",
            )
        self._detailed[whose] += 1
        try:
            yield
        finally:
            self._detailed[whose] -= 1
            if not self._detailed[whose]:
                del self._detailed[whose]

    async def _list_grants(self, tenant: str, subject: str | None) -> list[dict[str, Any]]:
        """List the newest grants of a tenant, or of one subject, that have something left."""
        wanted = GrantFilter(tenant, None if subject is None else (subject,), open_at=self._clock.now())
        return [describe_grant(one) for one in await self._grants.list_grants(wanted, MOST_ROWS)]


def _parse_format(given: str | None) -> bool:
    """Return whether a report is to be CSV, and not JSON.

    Raises:
        BadRequest: it is to be something else.
    """
    if given not in (None, "json", "csv"):
        raise BadRequest("format must be json or csv.")
    return given == "csv"


def _write_csv(asked: usage.UsageQuestion, page: Sequence[UsageRow], link: Mapping[str, str]) -> Response:
    headers = {"content-disposition": f'attachment; filename="{usage.name_file(asked.tenant, asked.period)}"', **link}
    text = to_csv(usage.list_columns(asked.groups), usage.list_rows(page, asked.groups))
    return Response(text, headers=headers, media_type=MEDIA_TYPE)


def _parse_cursor(query: Mapping[str, str], groups: frozenset[str]) -> tuple[str, ...]:
    """Read the names of the last row of the page before; none for the first page.

    Raises:
        BadRequest: it is not a cursor of rows that are grouped in this way.
    """
    names = parse_names_cursor(query.get("cursor"), len(groups))
    found = dict(zip(sort_groups(groups), names, strict=False))
    if "day" in found:
        usage.parse_day("cursor", found["day"])
    if "hour" in found:
        usage.check_hour("cursor", found["hour"])
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
        return await self._reports.respond(caller.tenant.id, subject, query)
