"""For the operator: the alerts."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from proxy.auth.admin_tokens import Role
from proxy.errors import BadRequest
from proxy.routes.admin_door import AdminDoor
from proxy.routes.paging import cut_page, parse_limit, parse_time_cursor
from proxy.routes.queries import known_query
from proxy.stores.alerts import AlertStore
from proxy.tenants.strict import is_name

#: Alerts on one page, and the most.
MOST_ALERTS = 500


class AlertRoutes:
    """Let the operator read what was raised."""

    def __init__(self, door: AdminDoor, alerts: AlertStore) -> None:
        self._door = door
        self._alerts = alerts

    def routes(self) -> list[Route]:
        return [self._door.route("GET", "/alerts", self.list_alerts, Role.VIEWER)]

    async def list_alerts(self, request: Request) -> Response:
        query = known_query(request, "tenant", "limit", "cursor")
        limit = parse_limit(query.get("limit"), MOST_ALERTS, MOST_ALERTS)
        before, tenant = parse_time_cursor(query.get("cursor")), query.get("tenant")
        if tenant is not None and not is_name(tenant):
            raise BadRequest("tenant must be the id of a tenant.")
        alerts = await self._alerts.list_newest(limit + 1, before=before, tenant=tenant)
        page, cursor = cut_page(alerts, limit, lambda alert: (alert.at, alert.id))
        return JSONResponse({"alerts": [alert.describe() for alert in page], "next_cursor": cursor})
