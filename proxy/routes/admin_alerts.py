"""For the operator: the alerts, and whether their receivers took them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from proxy.alerts.listing import AlertFilter, AlertList
from proxy.auth.admin_tokens import Role
from proxy.errors import BadRequest
from proxy.routes.admin_door import AdminDoor
from proxy.routes.paging import cut_page, parse_limit, parse_time_cursor
from proxy.routes.queries import known_query
from proxy.routes.tenants import check_tenant
from proxy.stores.deliveries import STATES
from proxy.tenants.directory import Directory

#: Alerts on one page, and the most.
MOST_ALERTS = 500
QUERY = ("tenant", "delivery", "limit", "cursor")


class AlertRoutes:
    """Let the operator read what was raised, and send it again."""

    def __init__(self, door: AdminDoor, alerts: AlertList, directory: Directory) -> None:
        self._door = door
        self._directory = directory
        self._alerts = alerts

    def routes(self) -> list[Route]:
        route = self._door.route
        return [
            route("GET", "/alerts", self.list_alerts, Role.VIEWER),
            route("POST", "/alerts/{alert}/resend", self.resend_alert, Role.OPERATOR),
        ]

    async def list_alerts(self, request: Request) -> Response:
        return JSONResponse(await read_alerts(self._alerts, self._directory, known_query(request, *QUERY)))

    async def resend_alert(self, request: Request) -> Response:
        known_query(request)
        sent = await self._alerts.resend(request.path_params["alert"], by=self._door.author_of(request))
        return JSONResponse({"deliveries": [one.describe() for one in sent]}, 202)


async def read_alerts(listed: AlertList, directory: Directory, query: Mapping[str, str]) -> dict[str, Any]:
    """Read a page of alerts as JSON, the newest first, and the cursor to the next one.

    Raises:
        BadRequest: a value of the query cannot be understood.
        NotFound: there is no such tenant, and there was none.
    """
    limit = parse_limit(query.get("limit"), MOST_ALERTS, MOST_ALERTS)
    before, tenant, state = parse_time_cursor(query.get("cursor")), query.get("tenant"), query.get("delivery")
    if state is not None and state not in STATES:
        raise BadRequest(f"delivery must be one of {', '.join(STATES)}.")
    await check_tenant(directory, tenant)
    alerts = await listed.list_newest(limit + 1, AlertFilter(tenant, state, before))
    page, cursor = cut_page(alerts, limit, lambda one: (one.alert.at, one.alert.id))
    return {"alerts": [one.describe() for one in page], "next_cursor": cursor}
