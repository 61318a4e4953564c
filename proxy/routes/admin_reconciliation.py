"""For the operator: the difference between the ledger and fal's own record."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from proxy.auth.admin_tokens import Role
from proxy.clock import Clock
from proxy.jobs.drift import DriftReports
from proxy.limits.usage import parse_period
from proxy.routes.admin_door import AdminDoor
from proxy.routes.queries import known_query


class ReconciliationRoutes:
    """Let the operator compare; nothing is changed."""

    def __init__(self, door: AdminDoor, reports: DriftReports, clock: Clock) -> None:
        self._door = door
        self._reports = reports
        self._clock = clock

    def routes(self) -> list[Route]:
        return [self._door.route("GET", "/reconciliation", self.show_drift, Role.VIEWER)]

    async def show_drift(self, request: Request) -> Response:
        query = known_query(request, "from", "to")
        period = parse_period(query.get("from"), query.get("to"), self._clock.now())
        return JSONResponse(await self._reports.report(period))
