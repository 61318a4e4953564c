"""The pages of jobs."""

from __future__ import annotations

from typing import Any

from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from proxy.auth.admin_tokens import Role
from proxy.catalog import Catalog
from proxy.console.door import PATH, ConsoleDoor, Visit
from proxy.console.queries import drop_empty
from proxy.console.questions import Question
from proxy.errors import BadUpstream
from proxy.jobs.records import describe_details
from proxy.routes.admin_jobs import STATUSES, JobDesk
from proxy.routes.queries import known_query
from proxy.tenants.directory import Directory

PAGE_ROWS = 50
_FILTERS = ("tenant", "subject", "status", "endpoint")
#: Tenants that the form offers; the name of another one can be typed.
MOST_OFFERED = 500


class JobPages:
    """Show jobs, and cancel them."""

    def __init__(self, door: ConsoleDoor, desk: JobDesk, directory: Directory, catalog: Catalog) -> None:
        self._door = door
        self._desk = desk
        self._directory = directory
        self._catalog = catalog

    def routes(self) -> list[Route]:
        one = "/jobs/{job}"
        return [
            self._door.page("/jobs", self.list_jobs),
            self._door.page(one, self.show_job),
            *self._door.confirmed_action(f"{one}/cancel", self.ask_to_cancel, self.cancel_job, Role.OPERATOR),
        ]

    async def list_jobs(self, visit: Visit) -> Response:
        query = drop_empty(known_query(visit.request, *_FILTERS, "cursor"))
        found: dict[str, Any] = {"jobs": [], "next_cursor": None}
        if "tenant" in query:
            found = await self._desk.list_jobs({**query, "limit": str(PAGE_ROWS)})
        snapshot = await self._directory.snapshot()
        return visit.respond(
            "jobs.html",
            **found,
            query={name: query.get(name, "") for name in _FILTERS},
            tenants=sorted(snapshot.tenants)[:MOST_OFFERED],
            endpoints=self._catalog.ids(),
            statuses=list(STATUSES),
        )

    async def show_job(self, visit: Visit) -> Response:
        known_query(visit.request)
        job = await self._desk.find(visit.request.path_params["job"])
        return visit.respond("job.html", job=describe_details(job))

    async def ask_to_cancel(self, visit: Visit) -> Question:
        job = await self._desk.find(visit.request.path_params["job"])
        holder = f"{job.subject} of {job.tenant}" if job.subject else job.tenant
        consequence = f"It is a job of {holder} at {job.endpoint}. fal may still finish it if it runs already."
        return Question(f"Cancel the job {job.id} at fal?", consequence, "Cancel this job", f"/jobs/{job.id}")

    async def cancel_job(self, visit: Visit) -> Response:
        job = await self._desk.find(visit.request.path_params["job"])
        outcome = await self._desk.cancel(job, by=visit.author)
        if outcome.status >= 300:
            raise BadUpstream(f"fal did not cancel the job: it answered {outcome.status}. It may be over already.")
        return RedirectResponse(f"{PATH}/jobs/{job.id}", 303)
