"""For the operator, with the admin token: tenants and plans, keys, sessions, usage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from proxy.auth.admin_tokens import Role
from proxy.auth.names import check_label, check_new_subject
from proxy.auth.revocations import revoke_by_name
from proxy.auth.sessions import Sessions, describe_mint, is_session_id
from proxy.clock import Clock, to_iso
from proxy.errors import BadRequest, NotFound
from proxy.routes.admin_door import AdminDoor
from proxy.routes.operators import MOST_LISTED, Subject, subject_of
from proxy.routes.paging import cut_page, parse_limit, parse_name_cursor, parse_time_cursor
from proxy.routes.plan_desk import PlanDesk
from proxy.routes.queries import known_query, parse_switch
from proxy.routes.sessions import Mint, mint_session
from proxy.routes.tenants import find_tenant
from proxy.routes.usage import QUERY as USAGE_QUERY
from proxy.routes.usage import UsageReports
from proxy.stores.directory import TenantKey
from proxy.stores.ledger import Ledger
from proxy.tenants import keys
from proxy.tenants.directory import Directory, Snapshot
from proxy.tenants.plans import PlanFile

#: A file of plans and tenants, which may be many.
MOST_FILE_BYTES = 1024 * 1024


def _check_name(name: str) -> str:
    return check_label(name) if name else name


def _check_session_id(session_id: str) -> str:
    if not is_session_id(session_id):
        raise ValueError("is not the id of a session")
    return session_id


class NewKey(BaseModel):
    """The form of `POST /v1/admin/tenants/{tenant}/keys`."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: Annotated[str, AfterValidator(_check_name)] = ""


class MintFor(Mint):
    """The form of `POST /v1/admin/sessions`: that of `POST /v1/sessions`, with the tenant."""

    tenant: str


class Revoke(BaseModel):
    """The form of `DELETE /v1/admin/sessions`: one session, or all of one subject."""

    model_config = ConfigDict(extra="forbid", strict=True)
    tenant: str
    session_id: Annotated[str, AfterValidator(_check_session_id)] | None = None
    subject: Subject | None = None


class AdminRoutes:
    """Let the operator see and change tenants, keys and sessions, and see usage."""

    def __init__(
        self,
        *,
        door: AdminDoor,
        directory: Directory,
        ledger: Ledger,
        sessions: Sessions,
        plans: PlanDesk,
        reports: UsageReports,
        clock: Clock,
    ) -> None:
        self._door = door
        self._directory = directory
        self._ledger = ledger
        self._sessions = sessions
        self._plans = plans
        self._reports = reports
        self._clock = clock

    def routes(self) -> list[Route]:
        route = self._door.route
        return [
            route("GET", "/tenants", self.list_tenants, Role.VIEWER),
            route("PUT", "/tenants", self.apply_plans, Role.ADMIN),
            route("GET", "/tenants/{tenant}", self.show_tenant, Role.VIEWER),
            route("GET", "/tenants/{tenant}/keys", self.list_keys, Role.VIEWER),
            route("POST", "/tenants/{tenant}/keys", self.create_key, Role.ADMIN),
            route("DELETE", "/keys/{key}", self.revoke_key, Role.ADMIN),
            route("POST", "/sessions", self.mint, Role.OPERATOR),
            route("DELETE", "/sessions", self.revoke, Role.OPERATOR),
            route("GET", "/usage", self.show_usage, Role.VIEWER),
        ]

    async def list_tenants(self, request: Request) -> Response:
        query = known_query(request, "limit", "cursor")
        limit, after = parse_limit(query.get("limit"), MOST_LISTED, MOST_LISTED), parse_name_cursor(query.get("cursor"))
        snapshot = await self._directory.snapshot()
        names = sorted(name for name in snapshot.tenants if name > after)
        page, cursor = cut_page(names, limit, str)
        listed = [snapshot.describe(snapshot.tenants[name]) for name in page]
        return JSONResponse({"tenants": listed, "next_cursor": cursor})

    async def apply_plans(self, request: Request) -> Response:
        is_dry_run = parse_switch("dry_run", known_query(request, "dry_run").get("dry_run"))
        file = await self._door.read_form(request, PlanFile, MOST_FILE_BYTES)
        if is_dry_run:
            return JSONResponse(await self._plans.preview(file))
        return JSONResponse({"changed": await self._plans.apply(file, by=self._door.author_of(request))})

    async def show_tenant(self, request: Request) -> Response:
        known_query(request)
        snapshot, found = await find_tenant(self._directory, request.path_params["tenant"])
        limits = snapshot.plans[found.plan].model_dump(mode="json")
        return JSONResponse({**snapshot.describe(found), "limits": limits})

    async def list_keys(self, request: Request) -> Response:
        query = known_query(request, "limit", "cursor")
        limit, after = parse_limit(query.get("limit"), MOST_LISTED, MOST_LISTED), parse_time_cursor(query.get("cursor"))
        snapshot, found = await find_tenant(self._directory, request.path_params["tenant"])
        later = [key for key in list_keys_of(snapshot, found.id) if after is None or _age(key) > after]
        page, cursor = cut_page(later, limit, _age)
        return JSONResponse({"keys": [describe_key(key) for key in page], "next_cursor": cursor})

    async def create_key(self, request: Request) -> Response:
        known_query(request)
        _, found = await find_tenant(self._directory, request.path_params["tenant"])
        form = await self._door.read_form(request, NewKey)
        text, record = keys.make(found.id, form.name, self._clock.now())
        await self._directory.add_key(record, by=self._door.author_of(request))
        return JSONResponse({**describe_key(record), "key": text}, 201)

    async def revoke_key(self, request: Request) -> Response:
        known_query(request)
        key_id = request.path_params["key"]
        by = self._door.author_of(request)
        if not (keys.is_key_id(key_id) and await self._directory.revoke_key(key_id, by=by)):
            raise NotFound("There is no such key.")
        return Response(status_code=204)

    async def mint(self, request: Request) -> Response:
        known_query(request)
        form = await self._door.read_form(request, MintFor)
        await self._directory.read_now()
        snapshot, found = await find_tenant(self._directory, form.tenant)
        snapshot.check_active(found.id)
        await check_new_subject(self._ledger, found.id, form.subject)
        session, answer = mint_session(self._sessions, snapshot, found, form)
        await self._door.record(request, describe_mint(session))
        return answer

    async def revoke(self, request: Request) -> Response:
        known_query(request)
        form = await self._door.read_form(request, Revoke)
        if (form.session_id is None) == (form.subject is None):
            raise BadRequest("Give either session_id or subject.")
        _, found = await find_tenant(self._directory, form.tenant)
        revocation = revoke_by_name(found.id, form.session_id, form.subject, self._clock.now())
        await self._directory.revoke(revocation, by=self._door.author_of(request))
        return Response(status_code=204)

    async def show_usage(self, request: Request) -> Response:
        query = known_query(request, "tenant", "subject", *USAGE_QUERY)
        tenant, subject = await find_holder(self._directory, query)
        return await self._reports.respond(tenant, subject, query, has_grants=True)


async def find_holder(directory: Directory, query: Mapping[str, str]) -> tuple[str | None, str | None]:
    """Find whose usage a query asks for: the tenant, None for all of them, and the subject, None for all of its.

    Raises:
        BadRequest: it names a subject without its tenant, or what is no subject.
        NotFound: there is no such tenant, and there was none whose records are kept.
    """
    tenant = query.get("tenant")
    if tenant is None:
        if "subject" in query:
            raise BadRequest("subject: name its tenant too.")
        return None, None
    if not (await directory.snapshot()).has_records(tenant):
        raise NotFound("There is no such tenant.")
    return tenant, subject_of(query)


def _age(key: TenantKey) -> tuple[float, str]:
    return key.created_at, key.id


def list_keys_of(snapshot: Snapshot, tenant: str) -> list[TenantKey]:
    """List the keys of a tenant, the oldest first."""
    return sorted((key for key in snapshot.keys.values() if key.tenant == tenant), key=_age)


def describe_key(key: TenantKey) -> dict[str, Any]:
    """Describe a key as operators see it, without its secret."""
    return {
        "id": key.id,
        "tenant": key.tenant,
        "name": key.name,
        "created_at": to_iso(key.created_at),
        "last_used_at": None if key.last_used_at is None else to_iso(key.last_used_at),
    }
