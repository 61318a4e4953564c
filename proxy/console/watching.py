"""The pages of fal's keys and of alerts."""

from __future__ import annotations

from starlette.responses import Response
from starlette.routing import Route

from proxy.console.door import ConsoleDoor, Visit
from proxy.console.queries import drop_empty
from proxy.errors import BadRequest
from proxy.routes.admin_upstreams import describe_upstreams
from proxy.routes.paging import cut_page, parse_time_cursor
from proxy.routes.queries import known_query
from proxy.stores.alerts import AlertStore
from proxy.stores.ledger import Ledger
from proxy.tenants.strict import is_name
from proxy.upstream.guard import Guard

PAGE_ROWS = 50


class WatchPages:
    """Show what needs an eye: the keys of fal, and what was raised."""

    def __init__(self, door: ConsoleDoor, guard: Guard, ledger: Ledger, alerts: AlertStore) -> None:
        self._door = door
        self._guard = guard
        self._ledger = ledger
        self._alerts = alerts

    def routes(self) -> list[Route]:
        return [self._door.page("/upstreams", self.show_upstreams), self._door.page("/alerts", self.list_alerts)]

    async def show_upstreams(self, visit: Visit) -> Response:
        known_query(visit.request)
        return visit.respond("upstreams.html", upstreams=await describe_upstreams(self._guard, self._ledger))

    async def list_alerts(self, visit: Visit) -> Response:
        query = drop_empty(known_query(visit.request, "tenant", "cursor"))
        before, tenant = parse_time_cursor(query.get("cursor")), query.get("tenant")
        if tenant is not None and not is_name(tenant):
            raise BadRequest("tenant must be the id of a tenant.")
        found = await self._alerts.list_newest(PAGE_ROWS + 1, before=before, tenant=tenant)
        page, cursor = cut_page(found, PAGE_ROWS, lambda alert: (alert.at, alert.id))
        alerts = [alert.describe() for alert in page]
        return visit.respond("alerts.html", alerts=alerts, cursor=cursor, tenant=tenant or "")
