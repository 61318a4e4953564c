"""The pages of fal's keys and of alerts."""

from __future__ import annotations

from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from proxy.alerts.listing import AlertList
from proxy.auth.admin_tokens import Role
from proxy.console.door import PATH, ConsoleDoor, Visit
from proxy.console.queries import drop_empty
from proxy.routes.admin_alerts import read_alerts
from proxy.routes.admin_upstreams import describe_upstreams
from proxy.routes.queries import known_query
from proxy.stores.deliveries import STATES
from proxy.stores.ledger import Ledger
from proxy.tenants.directory import Directory
from proxy.upstream.guard import Guard

PAGE_ROWS = 50
_FILTERS = ("tenant", "delivery")


class WatchPages:
    """Show the state of fal's keys and the alerts that were raised; send an alert again."""

    def __init__(
        self, door: ConsoleDoor, guard: Guard, ledger: Ledger, alerts: AlertList, directory: Directory
    ) -> None:
        self._door = door
        self._guard = guard
        self._ledger = ledger
        self._alerts = alerts
        self._directory = directory

    def routes(self) -> list[Route]:
        return [
            self._door.page("/upstreams", self.show_upstreams),
            self._door.page("/alerts", self.list_alerts),
            self._door.action("/alerts/{alert}/resend", self.resend_alert, Role.OPERATOR),
        ]

    async def show_upstreams(self, visit: Visit) -> Response:
        known_query(visit.request)
        return visit.respond("upstreams.html", upstreams=await describe_upstreams(self._guard, self._ledger))

    async def list_alerts(self, visit: Visit) -> Response:
        query = drop_empty(known_query(visit.request, *_FILTERS, "cursor"))
        page = await read_alerts(self._alerts, self._directory, {**query, "limit": str(PAGE_ROWS)})
        filters = {name: query.get(name, "") for name in _FILTERS}
        return visit.respond("alerts.html", **page, query=filters, states=STATES)

    async def resend_alert(self, visit: Visit) -> Response:
        await self._alerts.resend(visit.request.path_params["alert"], by=visit.author)
        return RedirectResponse(f"{PATH}/alerts", 303)
