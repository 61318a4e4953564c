"""The page of the audit log."""

from __future__ import annotations

from starlette.responses import Response
from starlette.routing import Route

from proxy.console.door import ConsoleDoor, Visit
from proxy.console.queries import drop_empty
from proxy.routes.admin_audit import AuditReader
from proxy.routes.queries import known_query

PAGE_ROWS = 50


class AuditPage:
    """Show who changed what."""

    def __init__(self, door: ConsoleDoor, reader: AuditReader) -> None:
        self._door = door
        self._reader = reader

    def routes(self) -> list[Route]:
        return [self._door.page("/audit", self.list_entries)]

    async def list_entries(self, visit: Visit) -> Response:
        query = drop_empty(known_query(visit.request, "tenant", "cursor"))
        page = await self._reader.read({**query, "limit": str(PAGE_ROWS)})
        return visit.respond("audit.html", **page, tenant=query.get("tenant", ""))
