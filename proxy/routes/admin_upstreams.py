"""What the operator sees of fal's keys."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from proxy.auth.admin_tokens import Role
from proxy.routes.admin_door import AdminDoor
from proxy.routes.queries import known_query
from proxy.stores.ledger import DEFAULT_UPSTREAM, Ledger
from proxy.upstream.guard import Guard


class UpstreamRoutes:
    """List the keys by their names, and never the keys."""

    def __init__(self, door: AdminDoor, guard: Guard, ledger: Ledger) -> None:
        self._door = door
        self._guard = guard
        self._ledger = ledger

    def routes(self) -> list[Route]:
        return [self._door.route("GET", "/upstreams", self.list_upstreams, Role.VIEWER)]

    async def list_upstreams(self, request: Request) -> Response:
        known_query(request)
        return JSONResponse({"upstreams": await describe_upstreams(self._guard, self._ledger)})


async def describe_upstreams(guard: Guard, ledger: Ledger) -> list[dict[str, Any]]:
    """Describe the keys by their names, with what this process knows of fal, and what all processes have in flight."""
    in_flight = await ledger.count_in_flight()
    return [{"name": DEFAULT_UPSTREAM, **guard.describe(), "in_flight": in_flight.get(DEFAULT_UPSTREAM, 0)}]
