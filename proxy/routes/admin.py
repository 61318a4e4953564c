"""For the operator, with the admin token: tenants and plans, keys, sessions, jobs, usage."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from proxy.auth.revocations import revoke_by_name
from proxy.auth.sessions import SUBJECT_RULE, is_session_id, is_subject
from proxy.errors import BadRequest, NotFound
from proxy.http.bodies import read_form
from proxy.limits.rates import ADMIN_LIMIT
from proxy.routes.queries import known_query
from proxy.routes.services import Services
from proxy.routes.sessions import Mint, minted
from proxy.routes.usage import report
from proxy.stores.ledger import Job
from proxy.tenants import keys
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


def routes(services: Services) -> list[Route]:
    async def tenants(request: Request) -> Response:
        snapshot = await services.directory.snapshot()
        listed = [tenant.model_dump(mode="json") for _, tenant in sorted(snapshot.tenants.items())]
        return JSONResponse({"tenants": listed})

    async def apply(request: Request) -> Response:
        file = await read_form(request, PlanFile, MOST_FILE_BYTES)
        if problems := problems_of(file.model_dump(mode="json"), services.catalog):
            raise BadRequest("; ".join(problems))
        if file.endpoints:
            raise BadRequest("endpoints: belong into the PROXY_CONFIG file, which is read at the start")
        return JSONResponse({"changed": await services.directory.apply(file)})

    async def tenant(request: Request) -> Response:
        found = await _tenant(request.path_params["tenant"])
        plan = (await services.directory.snapshot()).plans[found.plan]
        return JSONResponse({**found.model_dump(mode="json"), "limits": plan.model_dump(mode="json")})

    async def list_keys(request: Request) -> Response:
        found = await _tenant(request.path_params["tenant"])
        snapshot = await services.directory.snapshot()
        listed = [_shown(key) for key in snapshot.keys.values() if key.tenant == found.id]
        return JSONResponse({"keys": listed})

    async def create_key(request: Request) -> Response:
        found = await _tenant(request.path_params["tenant"])
        form = await read_form(request, NewKey)
        text, record = keys.make(found.id, form.name, services.clock.now())
        await services.directory.add_key(record)
        return JSONResponse({**_shown(record), "key": text}, 201)

    async def revoke_key(request: Request) -> Response:
        key_id = request.path_params["key"]
        if not (keys.is_key_id(key_id) and await services.directory.revoke_key(key_id)):
            raise NotFound("There is no such key.")
        return Response(status_code=204)

    async def mint(request: Request) -> Response:
        form = await read_form(request, MintFor)
        found = await _tenant(form.tenant)
        plan = (await services.directory.snapshot()).plans[found.plan]
        return minted(services, found, plan, form)

    async def revoke(request: Request) -> Response:
        form = await read_form(request, Revoke)
        if (form.session_id is None) == (form.subject is None):
            raise BadRequest("Give either session_id or subject.")
        found = await _tenant(form.tenant)
        await services.directory.revoke(revoke_by_name(found.id, form.session_id, form.subject, services.clock.now()))
        return Response(status_code=204)

    async def jobs(request: Request) -> Response:
        query = known_query(request, "tenant", "subject")
        found = await _tenant(query.get("tenant", ""))
        listed = await services.stores.ledger.jobs_of(found.id, _subject_of(query), MOST_JOBS)
        return JSONResponse({"jobs": [_job(job) for job in listed]})

    async def usage(request: Request) -> Response:
        query = known_query(request, "tenant", "subject", "from", "to", "group_by")
        found = await _tenant(query.get("tenant", ""))
        return JSONResponse(await report(services, found.id, _subject_of(query), query))

    async def _tenant(id_: str) -> Tenant:
        found = (await services.directory.snapshot()).tenants.get(id_)
        if found is None:
            raise NotFound("There is no such tenant.")
        return found

    table: list[tuple[str, str, Handler]] = [
        ("GET", "/tenants", tenants),
        ("PUT", "/tenants", apply),
        ("GET", "/tenants/{tenant}", tenant),
        ("GET", "/tenants/{tenant}/keys", list_keys),
        ("POST", "/tenants/{tenant}/keys", create_key),
        ("DELETE", "/keys/{key}", revoke_key),
        ("POST", "/sessions", mint),
        ("DELETE", "/sessions", revoke),
        ("GET", "/jobs", jobs),
        ("GET", "/usage", usage),
    ]
    return [Route(f"/v1/admin{path}", _guarded(services, how), methods=[method]) for method, path, how in table]


def _guarded(services: Services, handler: Handler) -> Handler:
    """The door of every admin route: the flood guard, then the token, then a line for the record."""

    async def admin(request: Request) -> Response:
        services.admin_token.check(request.headers.getlist("authorization"))
        answer = await handler(request)
        if request.method != "GET":
            facts = {"route": request.scope["route"].path, "method": request.method, "status": answer.status_code}
            _log.info("admin", extra={"facts": facts})
        return answer

    # slowapi knows functions by their names: under one name, a request would be counted once for every route.
    admin.__name__ = f"admin_{handler.__name__}"
    guarded: Handler = services.flood_guard.shared_limit(ADMIN_LIMIT, scope="admin")(admin)
    return guarded


def _subject_of(query: Mapping[str, str]) -> str | None:
    """The subject that a query names; '' is the tenant itself, and None all of them.

    Raises:
        BadRequest: it is not a name for a user.
    """
    subject = query.get("subject")
    if subject and not is_subject(subject):
        raise BadRequest(f"subject {SUBJECT_RULE}.")
    return subject


def _shown(key: Any) -> dict[str, Any]:
    return {name: value for name, value in asdict(key).items() if name != "secret_hash"}


def _job(job: Job) -> dict[str, Any]:
    names = ("id", "request_id", "kind", "endpoint", "tenant", "subject", "state", "submitted_at")
    return {name: getattr(job, name) for name in names}
