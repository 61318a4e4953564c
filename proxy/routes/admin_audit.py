"""For the operator: the audit log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from proxy.auth.admin_tokens import Role
from proxy.routes.admin_door import AdminDoor
from proxy.routes.paging import cut_page, parse_limit, parse_number_cursor
from proxy.routes.queries import known_query
from proxy.routes.tenants import check_tenant
from proxy.stores.audit_store import AuditStore
from proxy.tenants.directory import Directory

#: Entries on one page, and the most: each has up to 32 KiB of values.
MOST_ENTRIES = 100


class AuditReader:
    """Reads pages of the audit log, for the routes and the console."""

    def __init__(self, audit: AuditStore, directory: Directory) -> None:
        self._audit = audit
        self._directory = directory

    async def read(self, query: Mapping[str, str]) -> dict[str, Any]:
        """Read a page of entries as JSON, the newest first, and the cursor to the next one.

        Raises:
            BadRequest: `tenant`, `limit` or `cursor` of the query cannot be understood.
            NotFound: there is no such tenant, and there was none.
        """
        limit = parse_limit(query.get("limit"), MOST_ENTRIES, MOST_ENTRIES)
        before = parse_number_cursor(query.get("cursor"))
        tenant = query.get("tenant")
        await check_tenant(self._directory, tenant)
        entries = await self._audit.list_newest(limit + 1, before=before, tenant=tenant)
        page, cursor = cut_page(entries, limit, lambda entry: entry.number)
        return {"entries": [entry.describe() for entry in page], "next_cursor": cursor}


class AuditRoutes:
    """Let the operator read who changed what."""

    def __init__(self, door: AdminDoor, reader: AuditReader) -> None:
        self._door = door
        self._reader = reader

    def routes(self) -> list[Route]:
        return [self._door.route("GET", "/audit", self.list_entries, Role.VIEWER)]

    async def list_entries(self, request: Request) -> Response:
        return JSONResponse(await self._reader.read(known_query(request, "tenant", "limit", "cursor")))
