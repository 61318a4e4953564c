"""Jobs, as the operator sees and cancels them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from proxy.auth.admin_tokens import Role
from proxy.calls.call import Outcome
from proxy.calls.jobs import JobHandler
from proxy.errors import BadRequest, NotFound
from proxy.http.reply import Reply
from proxy.jobs.records import describe_details, describe_job
from proxy.routes.admin_door import AdminDoor
from proxy.routes.operators import MOST_LISTED, subject_of
from proxy.routes.paging import cut_page, parse_endpoint, parse_limit, parse_since, parse_time_cursor
from proxy.routes.queries import known_query
from proxy.routes.tenants import find_tenant
from proxy.stores.audit import Author, Change
from proxy.stores.audit_store import AuditStore
from proxy.stores.ledger import Job, JobFilter, Ledger
from proxy.targets import parse_request_id
from proxy.tenants.directory import Directory
from proxy.upstream import headers

#: What a listing can be narrowed to: jobs that are not over, and those that are.
STATUSES = {"open": False, "over": True}
QUERY = ("tenant", "subject", "limit", "cursor", "endpoint", "since", "status")


class JobDesk:
    """Lists, finds and cancels jobs, for the routes and the console."""

    def __init__(self, ledger: Ledger, directory: Directory, audit: AuditStore, job_handler: JobHandler) -> None:
        self._ledger = ledger
        self._directory = directory
        self._audit = audit
        self._job_handler = job_handler

    async def list_jobs(self, query: Mapping[str, str]) -> dict[str, Any]:
        """List a page of a tenant's jobs as JSON, the newest first, and the cursor to the next one.

        Raises:
            BadRequest: a value of the query cannot be understood.
            NotFound: there is no such tenant.
        """
        limit = parse_limit(query.get("limit"), MOST_LISTED, MOST_LISTED)
        since, after = parse_since(query.get("since")), parse_time_cursor(query.get("cursor"))
        endpoints = [parse_endpoint(query["endpoint"]).endpoint] if "endpoint" in query else None
        if (status := query.get("status")) is not None and status not in STATUSES:
            raise BadRequest(f"status must be one of {', '.join(STATUSES)}.")
        _, found = await find_tenant(self._directory, query.get("tenant", ""))
        is_over = None if status is None else STATUSES[status]
        wanted = JobFilter(found.id, subject_of(query), endpoints, is_over=is_over, since=since, after=after)
        jobs = await self._ledger.list_jobs(wanted, limit + 1)
        page, cursor = cut_page(jobs, limit, lambda job: (job.submitted_at, job.id))
        return {"jobs": [describe_job(job) for job in page], "next_cursor": cursor}

    async def find(self, text: str) -> Job:
        """Find the job with an id: the proxy's own, or fal's, which its caller knows.

        Raises:
            BadTarget: it cannot be an id.
            NotFound: there is no such job.
        """
        id_ = parse_request_id(text)
        job = await self._ledger.get(id_) or await self._ledger.find(id_)
        if job is None:
            raise NotFound
        return job

    async def cancel(self, job: Job, *, by: Author) -> Outcome:
        """Ask fal to cancel a job; fal's answer.

        Raises:
            BadRequest: it is not in fal's queue.
        """
        if job.request_id is None:
            raise BadRequest(
                "Only a job in fal's queue can be cancelled; this call is none, or fal has not accepted it."
            )
        await self._audit.record(by, Change("job.cancel", job.tenant, job.id, job.subject))
        return await self._job_handler.cancel_job(job, headers.to_fal((), streams=False))


class AdminJobRoutes:
    """List, show and cancel any job."""

    def __init__(self, door: AdminDoor, desk: JobDesk) -> None:
        self._door = door
        self._desk = desk

    def routes(self) -> list[Route]:
        route, one = self._door.route, "/jobs/{job}"
        return [
            route("GET", "/jobs", self.list_jobs, Role.VIEWER),
            route("GET", one, self.show_job, Role.VIEWER),
            route("DELETE", one, self.cancel_job, Role.OPERATOR),
        ]

    async def list_jobs(self, request: Request) -> Response:
        return JSONResponse(await self._desk.list_jobs(known_query(request, *QUERY)))

    async def show_job(self, request: Request) -> Response:
        known_query(request)
        return JSONResponse(describe_details(await self._desk.find(request.path_params["job"])))

    async def cancel_job(self, request: Request) -> Response:
        known_query(request)
        job = await self._desk.find(request.path_params["job"])
        outcome = await self._desk.cancel(job, by=self._door.author_of(request))
        return Reply(outcome.status, outcome.headers, outcome.body)
