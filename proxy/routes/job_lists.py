"""Lists of jobs: the caller's own, and for a tenant key those of any of its users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from proxy.auth.authenticator import Authenticator
from proxy.clock import to_iso
from proxy.errors import BadRequest, NotAllowed
from proxy.jobs.hub import Hub
from proxy.jobs.updates import COMPLETED
from proxy.limits.rates import RateLimiter
from proxy.routes.jobs import PATH
from proxy.routes.operators import subject_of
from proxy.routes.paging import cut_page, parse_endpoint, parse_limit, parse_since, parse_time_cursor
from proxy.routes.queries import known_query
from proxy.routes.rendering import bind_call
from proxy.stores.ledger import Job, JobFilter, Ledger
from proxy.tenants.caller import Caller

#: Jobs on one page: the usual number, and the most.
LISTED, MOST_LISTED = 20, 100
STATUSES = ("IN_QUEUE", "IN_PROGRESS", COMPLETED)


class JobListRoutes:
    """List jobs."""

    def __init__(self, authenticator: Authenticator, ledger: Ledger, limiter: RateLimiter, hub: Hub) -> None:
        self._authenticator = authenticator
        self._ledger = ledger
        self._limiter = limiter
        self._hub = hub

    def routes(self) -> list[Route]:
        return [Route(PATH, self.list_own, methods=["GET"])]

    async def list_own(self, request: Request) -> Response:
        """List the jobs of the caller, or those of a user for its tenant."""
        caller = await self._authenticator.authenticate(request)
        bind_call(request, caller)
        query = known_query(request, "limit", "cursor", "status", "endpoint", "since", "subject")
        limit = parse_limit(query.get("limit"), LISTED, MOST_LISTED)
        wanted = _parse_filter(caller, query)
        await self._limiter.hit(caller, request.scope, polls=True)
        jobs = await self._read_jobs(wanted, limit + 1)
        page, cursor = cut_page(jobs, limit, _age)
        listed = [self._describe(job) for job in page if self._has_status(job, query.get("status"))]
        return JSONResponse({"jobs": listed, "next_cursor": cursor})

    async def _read_jobs(self, wanted: JobFilter, most: int) -> Sequence[Job]:
        """Read the jobs of a listing. Those that are over include some of which only this process knows that yet."""
        if not wanted.is_over:
            return await self._ledger.list_jobs(wanted, most)
        # Asked first: a job that is settled meanwhile is in both.
        are_open = await self._ledger.list_jobs(replace(wanted, is_over=False), MOST_LISTED)
        ended = [job for job in are_open if self._is_over(job)]
        found = {job.id: job for job in (*ended, *await self._ledger.list_jobs(wanted, most))}
        return sorted(found.values(), key=_age, reverse=True)[:most]

    def _is_over(self, job: Job) -> bool:
        update = self._hub.find_cached(job)
        return job.is_over or (update is not None and update.is_last)

    def _has_status(self, job: Job, status: str | None) -> bool:
        """Return whether a job may have a status: an open job's is known only while this process watches it."""
        update = self._hub.find_cached(job)
        return status is None or update is None or update.state == status

    def _describe(self, job: Job) -> dict[str, Any]:
        return {
            "id": job.request_id,
            "endpoint": job.endpoint,
            "is_over": self._is_over(job),
            "submitted_at": to_iso(job.submitted_at, "microseconds"),
        }


def _age(job: Job) -> tuple[float, str]:
    return job.submitted_at, job.id


def _parse_filter(caller: Caller, query: dict[str, str]) -> JobFilter:
    """Read which of a caller's jobs a query asks for.

    Raises:
        BadRequest: a value of the query is wrong.
        NotAllowed: it names a subject, and the caller is not a tenant.
    """
    subject = subject_of(query)
    if subject is not None and caller.session is not None:
        raise NotAllowed("Only a tenant key can list the jobs of a subject; leave subject out to list your own.")
    status = query.get("status")
    if status is not None and status not in STATUSES:
        raise BadRequest(f"status must be one of {', '.join(STATUSES)}.")
    endpoints = caller.narrowed_to
    if "endpoint" in query:
        endpoint = parse_endpoint(query["endpoint"]).endpoint
        endpoints = (endpoint,) if endpoints is None or endpoint in endpoints else ()
    return JobFilter(
        caller.tenant.id,
        caller.subject if subject is None else subject,
        endpoints=endpoints,
        is_queued=True,
        is_over=None if status is None else status == COMPLETED,
        since=parse_since(query.get("since")),
        after=parse_time_cursor(query.get("cursor")),
    )
