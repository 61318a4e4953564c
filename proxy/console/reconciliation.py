"""The page that compares the ledger with fal's own record."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response
from starlette.routing import Route

from proxy.clock import Clock
from proxy.console.door import ConsoleDoor, Visit
from proxy.console.queries import drop_empty
from proxy.jobs.drift import DriftReports
from proxy.limits.usage import parse_period
from proxy.routes.queries import known_query

#: What a page shows. The total is that of all rows.
MOST_ROWS = 1000


class ReconciliationPage:
    """Show how the ledger and fal's record differ. Ask fal only when the form is sent, as that takes seconds."""

    def __init__(self, door: ConsoleDoor, reports: DriftReports, clock: Clock) -> None:
        self._door = door
        self._reports = reports
        self._clock = clock

    def routes(self) -> list[Route]:
        return [self._door.page("/usage/reconciliation", self.show)]

    async def show(self, visit: Visit) -> Response:
        query = drop_empty(known_query(visit.request, "from", "to"))
        period = parse_period(query.get("from"), query.get("to"), self._clock.now())
        report: dict[str, Any] | None = None
        if query and self._reports.is_set_up:
            report = await self._reports.report(period)
        return visit.respond(
            "reconciliation.html",
            report=report,
            rows=[] if report is None else report["rows"][:MOST_ROWS],
            first=period.first.isoformat(),
            last=period.last.isoformat(),
            is_set_up=self._reports.is_set_up,
        )
