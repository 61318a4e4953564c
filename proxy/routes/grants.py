"""Grants: credits that the operator gives a tenant, or one of its subjects."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from proxy.auth.admin_tokens import Role
from proxy.auth.names import check_label, check_new_subject
from proxy.calls.call import KEY_HEADER, parse_key
from proxy.clock import Clock
from proxy.errors import BadRequest, InvalidInput
from proxy.limits.grants import describe_grant
from proxy.limits.quotas import new_job_id
from proxy.routes.admin_door import AdminDoor
from proxy.routes.operators import MOST_LISTED, Subject, subject_of
from proxy.routes.paging import cut_page, parse_limit, parse_moment, parse_time_cursor
from proxy.routes.queries import known_query
from proxy.routes.tenants import find_tenant
from proxy.stores.audit import Author
from proxy.stores.grants import Grant, GrantFilter, GrantStanding, GrantStore
from proxy.stores.ledger import Ledger
from proxy.tenants.directory import Directory
from proxy.tenants.plans import MOST_UNITS, Unit
from proxy.tenants.terms import MILLION


class NewGrant(BaseModel):
    """How much of a unit to give to a tenant, or to one subject of it, and why. Without an end it does not expire."""

    model_config = ConfigDict(extra="forbid", strict=True)
    subject: Subject | None = None
    unit: Unit
    amount: float = Field(ge=1 / MILLION, le=MOST_UNITS)
    expires_at: str | None = None
    reason: Annotated[str, AfterValidator(check_label)]


class Grants:
    """Gives grants and lists them, for the routes and the commands."""

    def __init__(self, store: GrantStore, ledger: Ledger, directory: Directory, clock: Clock) -> None:
        self._store = store
        self._ledger = ledger
        self._directory = directory
        self._clock = clock

    async def give(self, tenant: str, form: NewGrant, key: str | None, *, by: Author) -> tuple[GrantStanding, bool]:
        """Give a grant, once for each Idempotency-Key; also say whether it had been given before.

        Raises:
            BadRequest: it would have expired already, or the name of its subject does not show all of itself.
            InvalidInput: the key was used for another grant.
        """
        await check_new_subject(self._ledger, tenant, form.subject or "")
        wanted = _new_grant(tenant, form, key, self._clock.now())
        given = await self._add(wanted, by=by)
        await self._directory.refresh_now()
        if given.grant.id == wanted.id:
            return given, False
        if replace(given.grant, id=wanted.id, created_at=wanted.created_at) != wanted:
            problem = "This Idempotency-Key was used for another grant; use a new one."
            raise InvalidInput([{"loc": ["header", KEY_HEADER], "msg": problem, "type": "idempotency_key_reused"}])
        return given, True

    async def _add(self, wanted: Grant, *, by: Author) -> GrantStanding:
        """Add a grant that has not expired; of one that has, find that which was given by an earlier request."""
        if wanted.is_open(wanted.created_at):
            return await self._store.add(wanted, by=by)
        given = None if wanted.key_hash is None else await self._store.find(wanted.tenant, wanted.key_hash)
        if given is None:
            raise BadRequest("expires_at: must be in the future.")
        return given

    async def list_grants(self, wanted: GrantFilter, limit: int) -> dict[str, Any]:
        """List a page of grants as JSON, and the cursor to the next one."""
        found = await self._store.list_grants(wanted, limit + 1)
        page, cursor = cut_page(found, limit, lambda one: (one.grant.created_at, one.grant.id))
        return {"grants": [describe_grant(one) for one in page], "next_cursor": cursor}


class GrantRoutes:
    """What the operator asks about grants."""

    def __init__(self, door: AdminDoor, directory: Directory, grants: Grants) -> None:
        self._door = door
        self._directory = directory
        self._grants = grants

    def routes(self) -> list[Route]:
        path = "/tenants/{tenant}/grants"
        route = self._door.route
        return [
            route("GET", path, self.list_grants, Role.VIEWER),
            route("POST", path, self.add_grant, Role.OPERATOR),
        ]

    async def add_grant(self, request: Request) -> Response:
        known_query(request)
        _, tenant = await find_tenant(self._directory, request.path_params["tenant"])
        key, form = parse_key(request.headers.getlist(KEY_HEADER)), await self._door.read_form(request, NewGrant)
        given, is_repeated = await self._grants.give(tenant.id, form, key, by=self._door.author_of(request))
        headers = {"idempotency-replayed": "true"} if is_repeated else {}
        return JSONResponse(describe_grant(given), 201, headers)

    async def list_grants(self, request: Request) -> Response:
        query = known_query(request, "subject", "limit", "cursor")
        limit, after = parse_limit(query.get("limit"), MOST_LISTED, MOST_LISTED), parse_time_cursor(query.get("cursor"))
        _, tenant = await find_tenant(self._directory, request.path_params["tenant"])
        subject = subject_of(query)
        wanted = GrantFilter(tenant.id, None if subject is None else (subject,), after=after)
        return JSONResponse(await self._grants.list_grants(wanted, limit))


def _new_grant(tenant: str, form: NewGrant, key: str | None, now: float) -> Grant:
    expires_at = None if form.expires_at is None else parse_moment("expires_at", form.expires_at)
    return Grant(
        id=new_job_id(now),
        tenant=tenant,
        subject=form.subject or "",
        unit=form.unit,
        amount=round(form.amount * MILLION),
        reason=form.reason,
        created_at=now,
        expires_at=expires_at,
        key_hash=key and hashlib.sha256(key.encode()).hexdigest(),
    )
