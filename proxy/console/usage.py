"""The page of usage: a table, the same as charts, and as CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from starlette.responses import Response
from starlette.routing import Route

from proxy.console.door import PATH, ConsoleDoor, Visit
from proxy.console.queries import drop_empty
from proxy.limits.usage import GROUPS, GROUPS_OF_ALL, list_columns
from proxy.routes.admin import find_holder
from proxy.routes.queries import known_query
from proxy.routes.usage import UsageReports
from proxy.stores.ledger import UNITS
from proxy.stores.usage import GROUP_NAMES
from proxy.tenants.directory import Directory

PAGE_ROWS = 100
_FILTERS = ("tenant", "subject", "from", "to", "group_by")
#: What the chart calls a row whose group has no name.
_NAMELESS = {"subject": "the tenant itself", "session": "no session", "tag": "no tag"}
#: What is drawn, by the column of the table.
_CHARTS = {"calls": "Calls", "usd": "USD"}


class UsagePage:
    """Show what was used."""

    def __init__(self, door: ConsoleDoor, directory: Directory, reports: UsageReports) -> None:
        self._door = door
        self._directory = directory
        self._reports = reports

    def routes(self) -> list[Route]:
        return [self._door.page("/usage", self.show), self._door.page("/usage.csv", self.download)]

    async def show(self, visit: Visit) -> Response:
        query = drop_empty(known_query(visit.request, *_FILTERS, "cursor"))
        tenant, subject = await find_holder(self._directory, query)
        report = await self._reports.report(tenant, subject, {**query, "limit": str(PAGE_ROWS)})
        rows = report["usage"]
        return visit.respond(
            "usage.html",
            report=report,
            columns=_list_columns(query, tenant, rows),
            units=("calls", *UNITS),
            charts=[_describe_chart(title, unit, rows) for unit, title in _CHARTS.items()] if rows else [],
            query={name: query.get(name, "") for name in _FILTERS},
            nameless=_NAMELESS,
            groups=GROUPS_OF_ALL if tenant is None else GROUPS,
            csv=f"{PATH}/usage.csv?{urlencode({name: query[name] for name in _FILTERS if name in query})}",
        )

    async def download(self, visit: Visit) -> Response:
        query = drop_empty(known_query(visit.request, *_FILTERS, "cursor", "limit"))
        tenant, subject = await find_holder(self._directory, query)
        return await self._reports.respond(tenant, subject, {**query, "format": "csv"})


def _list_columns(query: Mapping[str, str], tenant: str | None, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """List the columns of the table: those of its rows, or those that it would have if it had any."""
    if rows:
        return list(rows[0])
    return list_columns(frozenset(query.get("group_by", "tenant" if tenant is None else "day").split(",")))


def _describe_chart(title: str, unit: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Describe the chart that the page's script draws: one bar for each row."""
    names = [[row[name] or _NAMELESS.get(name, "") for name in reversed(GROUP_NAMES) if name in row] for row in rows]
    labels = [", ".join(one) for one in names]
    return {"title": title, "labels": labels, "values": [row[unit] for row in rows]}
