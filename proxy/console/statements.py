"""The page of a tenant's monthly statements."""

from __future__ import annotations

from starlette.responses import Response
from starlette.routing import Route

from proxy.clock import Clock, to_iso
from proxy.console.door import PATH, ConsoleDoor, Visit
from proxy.console.queries import drop_empty
from proxy.errors import NotFound
from proxy.limits.statements import FIGURES
from proxy.routes.queries import known_query
from proxy.routes.statements import Statements
from proxy.tenants.directory import Directory

#: Of the page to print. A gateway may pass on nothing but the console.
STYLE_PATH = f"{PATH}/static/statement.css"
#: Of an ISO moment, as a month is written.
_MONTH_CHARACTERS = 7


class StatementPages:
    """Show the statement of a month, and give it as a page to print, as CSV and as JSON."""

    def __init__(self, door: ConsoleDoor, directory: Directory, statements: Statements, clock: Clock) -> None:
        self._door = door
        self._directory = directory
        self._statements = statements
        self._clock = clock

    def routes(self) -> list[Route]:
        path = "/tenants/{tenant}/statement"
        return [self._door.page(path, self.show), self._door.page(f"{path}/{{month}}", self.download)]

    async def show(self, visit: Visit) -> Response:
        query = drop_empty(known_query(visit.request, "month"))
        tenant, is_former = await self._find(visit)
        this_month = to_iso(self._clock.now())[:_MONTH_CHARACTERS]
        statement = await self._statements.read(tenant, query.get("month", this_month))
        return visit.respond(
            "statement.html",
            statement=statement.describe(),
            tenant=tenant,
            is_former=is_former,
            this_month=this_month,
            figures=FIGURES,
        )

    async def download(self, visit: Visit) -> Response:
        tenant, _ = await self._find(visit)
        return await self._statements.respond(visit.request, tenant, STYLE_PATH)

    async def _find(self, visit: Visit) -> tuple[str, bool]:
        """Find the tenant of a path, or the records of a deleted one; returns also whether it is deleted.

        Raises:
            NotFound: there is neither.
        """
        name, snapshot = visit.request.path_params["tenant"], await self._directory.snapshot()
        if not snapshot.has_records(name):
            raise NotFound("There is no such tenant.")
        return name, name not in snapshot.tenants
