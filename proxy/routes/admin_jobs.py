"""One job, as the operator sees and cancels it."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from proxy.auth.admin_tokens import Role
from proxy.calls.jobs import JobHandler
from proxy.errors import BadRequest, NotFound
from proxy.http.reply import Reply
from proxy.jobs.records import describe_details
from proxy.routes.admin_door import AdminDoor
from proxy.routes.queries import known_query
from proxy.stores.audit import Change
from proxy.stores.ledger import Job, Ledger
from proxy.targets import parse_request_id
from proxy.upstream import headers


class AdminJobRoutes:
    """Show and cancel any job."""

    def __init__(self, door: AdminDoor, ledger: Ledger, job_handler: JobHandler) -> None:
        self._door = door
        self._ledger = ledger
        self._job_handler = job_handler

    def routes(self) -> list[Route]:
        route, one = self._door.route, "/jobs/{job}"
        return [route("GET", one, self.show_job, Role.VIEWER), route("DELETE", one, self.cancel_job, Role.OPERATOR)]

    async def show_job(self, request: Request) -> Response:
        known_query(request)
        return JSONResponse(describe_details(await self._find(request)))

    async def cancel_job(self, request: Request) -> Response:
        known_query(request)
        job = await self._find(request)
        if job.request_id is None:
            raise BadRequest(
                "Only a job in fal's queue can be cancelled; this call is none, or fal has not accepted it."
            )
        await self._door.record(request, Change("job.cancel", job.tenant, job.id, job.subject))
        sent = headers.to_fal(Headers({}), streams=False)
        outcome = await self._job_handler.cancel_job(job, sent)
        return Reply(outcome.status, outcome.headers, outcome.body)

    async def _find(self, request: Request) -> Job:
        """The job with an id: the proxy's own, or fal's, which its caller knows.

        Raises:
            BadTarget: it cannot be an id.
            NotFound: there is no such job.
        """
        id_ = parse_request_id(request.path_params["job"])
        job = await self._ledger.get(id_) or await self._ledger.find(id_)
        if job is None:
            raise NotFound
        return job
