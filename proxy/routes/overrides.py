"""Overrides, as the operator sets them: another plan, or other limits, for one subject until a moment."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from proxy.auth.admin_tokens import Role
from proxy.auth.names import check_new_subject
from proxy.auth.sessions import SUBJECT_RULE, is_subject
from proxy.clock import Clock, to_iso
from proxy.errors import BadRequest, NotFound
from proxy.routes.admin_door import AdminDoor
from proxy.routes.operators import MOST_LISTED
from proxy.routes.paging import cut_page, parse_limit, parse_moment, parse_name_cursor
from proxy.routes.queries import known_query, subject_in_path
from proxy.routes.tenants import find_tenant
from proxy.stores.audit import Author
from proxy.stores.directory import DirectoryStore, OverrideRow
from proxy.stores.ledger import Ledger
from proxy.tenants.directory import Directory, Snapshot
from proxy.tenants.overrides import MOST_OVERRIDES, Override, SubjectLimits
from proxy.tenants.plans import Tenant, list_repeated
from proxy.tenants.prices import list_unpriced
from proxy.tenants.strict import Name

#: Endpoints that a refusal names.
MOST_NAMED = 20


class NewOverride(BaseModel):
    """Either another plan, or limits in the place of those of the subject's plan, until a moment."""

    model_config = ConfigDict(extra="forbid")
    plan: Name | None = None
    limits: SubjectLimits | None = None
    until: str

    @model_validator(mode="after")
    def _check_one(self) -> NewOverride:
        if (self.plan is None) == (self.limits is None):
            raise ValueError("give either plan or limits")
        if self.limits is not None and not self.limits.names_any:
            raise ValueError("limits must name at least one limit")
        if self.limits is not None and (problems := list_repeated(self.limits.quotas)):
            raise ValueError(f"limits.quotas: {problems[0]}")
        return self


class OverrideEditor:
    """Sets and clears overrides, for the routes and the commands."""

    def __init__(self, store: DirectoryStore, ledger: Ledger, directory: Directory, clock: Clock) -> None:
        self._store = store
        self._ledger = ledger
        self._directory = directory
        self._clock = clock

    async def put(self, tenant: Tenant, subject: str, form: NewOverride, *, by: Author) -> dict[str, Any]:
        """Set the override of a subject, in the place of the one that it has, and give it as JSON.

        Raises:
            BadRequest: it would have ended already, its plan or its prices are missing, or there are too many. Or the
                name of its subject does not show all of itself.
        """
        now, until = self._clock.now(), parse_moment("until", form.until)
        if until <= now:
            raise BadRequest("until: must be in the future.")
        await check_new_subject(self._ledger, tenant.id, subject)
        _check_plan(form, tenant, await self._directory.snapshot())
        limits = None if form.limits is None else form.limits.model_dump(mode="json", exclude_unset=True)
        row = OverrideRow(tenant.id, subject, form.plan, limits, until)
        if not await self._store.put_override(row, now, MOST_OVERRIDES, by=by):
            raise BadRequest(f"{MOST_OVERRIDES} overrides are in effect, which is the most; clear some.")
        await self._directory.refresh_now()
        return describe_override(subject, Override(form.plan, form.limits, until))

    async def clear(self, tenant: str, subject: str, *, by: Author) -> bool:
        """End the override of a subject now; return whether it had one."""
        was_there = await self._store.clear_override(tenant, subject, by=by)
        await self._directory.refresh_now()
        return was_there


class OverrideRoutes:
    """What the operator asks about overrides."""

    def __init__(self, door: AdminDoor, directory: Directory, editor: OverrideEditor) -> None:
        self._door = door
        self._directory = directory
        self._editor = editor

    def routes(self) -> list[Route]:
        route, path = self._door.route, "/tenants/{tenant}/overrides"
        # A name can contain slashes.
        one = f"{path}/{{subject:path}}"
        return [
            route("GET", path, self.list_overrides, Role.VIEWER),
            route("PUT", one, self.put_override, Role.OPERATOR),
            route("DELETE", one, self.clear_override, Role.OPERATOR),
        ]

    async def list_overrides(self, request: Request) -> Response:
        query = known_query(request, "limit", "cursor")
        limit, after = parse_limit(query.get("limit"), MOST_LISTED, MOST_LISTED), parse_name_cursor(query.get("cursor"))
        snapshot, tenant = await find_tenant(self._directory, request.path_params["tenant"])
        found = [(subject, one) for subject, one in list_overrides_of(snapshot, tenant.id) if subject > after]
        page, cursor = cut_page(found, limit, lambda entry: entry[0])
        return JSONResponse({"overrides": [describe_override(*entry) for entry in page], "next_cursor": cursor})

    async def put_override(self, request: Request) -> Response:
        known_query(request)
        _, tenant = await find_tenant(self._directory, request.path_params["tenant"])
        subject = subject_in_path(request)
        if not is_subject(subject):
            raise BadRequest(f"subject {SUBJECT_RULE}.")
        form = await self._door.read_form(request, NewOverride)
        return JSONResponse(await self._editor.put(tenant, subject, form, by=self._door.author_of(request)))

    async def clear_override(self, request: Request) -> Response:
        known_query(request)
        _, tenant = await find_tenant(self._directory, request.path_params["tenant"])
        subject, by = subject_in_path(request), self._door.author_of(request)
        if not (is_subject(subject) and await self._editor.clear(tenant.id, subject, by=by)):
            raise NotFound("This subject has no override.")
        return Response(status_code=204)


def list_overrides_of(snapshot: Snapshot, tenant: str) -> list[tuple[str, Override]]:
    """List the overrides of a tenant's subjects that are in effect, by subject, sorted."""
    return sorted(((subject, one) for (holder, subject), one in snapshot.overrides if holder == tenant), key=_subject)


def describe_override(subject: str, override: Override) -> dict[str, Any]:
    limits = override.limits
    return {
        "subject": subject,
        "plan": override.plan,
        "limits": None if limits is None else limits.model_dump(mode="json", exclude_unset=True),
        "until": to_iso(override.until),
    }


def _subject(entry: tuple[str, Override]) -> str:
    return entry[0]


def _check_plan(form: NewOverride, tenant: Tenant, snapshot: Snapshot) -> None:
    """Make sure that an override leads to a plan that there is, and that its quotas count.

    Raises:
        BadRequest: it does not.
    """
    if form.plan is not None and form.plan not in snapshot.plans:
        raise BadRequest(f"plan: there is no plan {form.plan}.")
    quotas = () if form.limits is None else form.limits.quotas
    unpriced = list_unpriced(snapshot.plans[tenant.plan].endpoints, snapshot.prices)
    if unpriced and any(quota.unit == "usd" for quota in quotas):
        raise BadRequest(f"limits: usd counts nothing for {', '.join(unpriced[:MOST_NAMED])}: no price is known")
