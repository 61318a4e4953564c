"""For the operator, with the admin token: tenants and plans, keys, sessions, jobs, usage."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict
from slowapi import Limiter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from proxy.auth.admin_token import AdminToken
from proxy.auth.revocations import revoke_by_name
from proxy.auth.sessions import SUBJECT_RULE, Sessions, is_session_id, is_subject
from proxy.catalog import Catalog
from proxy.clock import Clock
from proxy.errors import BadRequest, NotFound
from proxy.http.bodies import read_form
from proxy.limits.rates import ADMIN_LIMIT
from proxy.routes.queries import known_query
from proxy.routes.sessions import Mint, mint_session
from proxy.routes.usage import UsageReports
from proxy.stores.ledger import Job, Ledger
from proxy.tenants import keys
from proxy.tenants.directory import Directory, Snapshot
from proxy.tenants.plan_file import problems_of
from proxy.tenants.plans import PlanFile, Tenant

MOST_JOBS = 500
#: A file of plans and tenants, which may be many.
MOST_FILE_BYTES = 1024 * 1024
_log = logging.getLogger("proxy.audit")

Handler = Callable[[Request], Awaitable[Response]]


def _check_subject(subject: str) -> str:
    if not is_subject(subject):
        raise ValueError(SUBJECT_RULE)
    return subject


def _check_name(name: str) -> str:
    return _check_subject(name) if name else ""


def _check_session_id(session_id: str) -> str:
    if not is_session_id(session_id):
        raise ValueError("is not the id of a session")
    return session_id


Subject = Annotated[str, AfterValidator(_check_subject)]


class NewKey(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    name: Annotated[str, AfterValidator(_check_name)] = ""


class MintFor(Mint):
    tenant: str


class Revoke(BaseModel):
    """Either one session, or all of one end user."""

    model_config = ConfigDict(extra="forbid", strict=True)
    tenant: str
    session_id: Annotated[str, AfterValidator(_check_session_id)] | None = None
    subject: Subject | None = None


class AdminRoutes:
    """Let the operator see and change tenants, keys and sessions, and see jobs and usage."""

    def __init__(
        self,
        *,
        admin_token: AdminToken,
        directory: Directory,
        sessions: Sessions,
        catalog: Catalog,
        ledger: Ledger,
        reports: UsageReports,
        clock: Clock,
        flood_guard: Limiter,
    ) -> None:
        self._admin_token = admin_token
        self._directory = directory
        self._sessions = sessions
        self._catalog = catalog
        self._ledger = ledger
        self._reports = reports
        self._clock = clock
        self._flood_guard = flood_guard

    def routes(self) -> list[Route]:
        table: list[tuple[str, str, Handler]] = [
            ("GET", "/tenants", self.list_tenants),
            ("PUT", "/tenants", self.apply_plans),
            ("GET", "/tenants/{tenant}", self.show_tenant),
            ("GET", "/tenants/{tenant}/keys", self.list_keys),
            ("POST", "/tenants/{tenant}/keys", self.create_key),
            ("DELETE", "/keys/{key}", self.revoke_key),
            ("POST", "/sessions", self.mint),
            ("DELETE", "/sessions", self.revoke),
            ("GET", "/jobs", self.list_jobs),
            ("GET", "/usage", self.show_usage),
        ]
        return [Route(f"/v1/admin{path}", self._guard(handler), methods=[method]) for method, path, handler in table]

    def _guard(self, handler: Handler) -> Handler:
        """The door of every admin route: the flood guard, then the token, then a line for the record."""

        async def admin(request: Request) -> Response:
            self._admin_token.check(request.headers.getlist("authorization"))
            answer = await handler(request)
            if request.method != "GET":
                fields = {"route": request.scope["route"].path, "method": request.method, "status": answer.status_code}
                _log.info("admin", extra={"log_fields": fields})
            return answer

        # slowapi knows functions by their names: under one name, a request would be counted once for every route.
        admin.__name__ = f"admin_{handler.__name__}"
        guarded: Handler = self._flood_guard.shared_limit(ADMIN_LIMIT, scope="admin")(admin)
        return guarded

    async def list_tenants(self, request: Request) -> Response:
        snapshot = await self._directory.snapshot()
        listed = [tenant.model_dump(mode="json") for _, tenant in sorted(snapshot.tenants.items())]
        return JSONResponse({"tenants": listed})

    async def apply_plans(self, request: Request) -> Response:
        file = await read_form(request, PlanFile, MOST_FILE_BYTES)
        if problems := problems_of(file.model_dump(mode="json"), self._catalog):
            raise BadRequest("; ".join(problems))
        if file.endpoints:
            raise BadRequest("endpoints: belong in the PROXY_CONFIG file, which the proxy reads at the start")
        return JSONResponse({"changed": await self._directory.apply(file)})

    async def show_tenant(self, request: Request) -> Response:
        snapshot, found = await self._find_tenant(request.path_params["tenant"])
        limits = snapshot.plans[found.plan].model_dump(mode="json")
        return JSONResponse({**found.model_dump(mode="json"), "limits": limits})

    async def list_keys(self, request: Request) -> Response:
        snapshot, found = await self._find_tenant(request.path_params["tenant"])
        listed = [_describe_key(key) for key in snapshot.keys.values() if key.tenant == found.id]
        return JSONResponse({"keys": listed})

    async def create_key(self, request: Request) -> Response:
        _, found = await self._find_tenant(request.path_params["tenant"])
        form = await read_form(request, NewKey)
        text, record = keys.make(found.id, form.name, self._clock.now())
        await self._directory.add_key(record)
        return JSONResponse({**_describe_key(record), "key": text}, 201)

    async def revoke_key(self, request: Request) -> Response:
        key_id = request.path_params["key"]
        if not (keys.is_key_id(key_id) and await self._directory.revoke_key(key_id)):
            raise NotFound("There is no such key.")
        return Response(status_code=204)

    async def mint(self, request: Request) -> Response:
        form = await read_form(request, MintFor)
        snapshot, found = await self._find_tenant(form.tenant)
        return mint_session(self._sessions, found, snapshot.plans[found.plan], form)

    async def revoke(self, request: Request) -> Response:
        form = await read_form(request, Revoke)
        if (form.session_id is None) == (form.subject is None):
            raise BadRequest("Give either session_id or subject.")
        _, found = await self._find_tenant(form.tenant)
        await self._directory.revoke(revoke_by_name(found.id, form.session_id, form.subject, self._clock.now()))
        return Response(status_code=204)

    async def list_jobs(self, request: Request) -> Response:
        query = known_query(request, "tenant", "subject")
        _, found = await self._find_tenant(query.get("tenant", ""))
        listed = await self._ledger.jobs_of(found.id, _subject_of(query), MOST_JOBS)
        return JSONResponse({"jobs": [_job(job) for job in listed]})

    async def show_usage(self, request: Request) -> Response:
        query = known_query(request, "tenant", "subject", "from", "to", "group_by")
        _, found = await self._find_tenant(query.get("tenant", ""))
        return JSONResponse(await self._reports.report(found.id, _subject_of(query), query))

    async def _find_tenant(self, id_: str) -> tuple[Snapshot, Tenant]:
        """The tenant with an id, and the reading of the directory that has it.

        Raises:
            NotFound: there is none.
        """
        snapshot = await self._directory.snapshot()
        found = snapshot.tenants.get(id_)
        if found is None:
            raise NotFound("There is no such tenant.")
        return snapshot, found


def _subject_of(query: Mapping[str, str]) -> str | None:
    """The subject that a query names; '' is the tenant itself, and None all of them.

    Raises:
        BadRequest: it is not a name for a user.
    """
    subject = query.get("subject")
    if subject and not is_subject(subject):
        raise BadRequest(f"subject {SUBJECT_RULE}.")
    return subject


def _describe_key(key: Any) -> dict[str, Any]:
    return {name: value for name, value in asdict(key).items() if name != "secret_hash"}


def _job(job: Job) -> dict[str, Any]:
    names = ("id", "request_id", "kind", "endpoint", "tenant", "subject", "state", "submitted_at")
    return {name: getattr(job, name) for name in names}
