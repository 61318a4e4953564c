"""Sessions: minted for a tenant's users, turned into a cookie, looked at, revoked; and what they may call."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from proxy.auth.revocations import revoke_own
from proxy.auth.sessions import check_subject, new_guest_name
from proxy.errors import EndpointNotAllowed, NotAllowed, NotFound, OriginNotAllowed
from proxy.http.bodies import read_form
from proxy.limits.rates import GUEST_LIMIT, MINT_LIMIT
from proxy.limits.usage import left
from proxy.routes.rendering import bind_call
from proxy.routes.services import Services
from proxy.tenants.caller import Caller, Session
from proxy.tenants.directory import Snapshot
from proxy.tenants.plans import Plan, Tenant


class Mint(BaseModel):
    """The form of `POST /v1/sessions`."""

    model_config = ConfigDict(extra="forbid", strict=True)
    subject: str
    endpoints: list[str] | None = None
    ttl_seconds: int | None = Field(default=None, ge=1)

    @field_validator("subject")
    @classmethod
    def _usable(cls, subject: str) -> str:
        return check_subject(subject)


class Guest(BaseModel):
    """The form of `POST /v1/sessions/guest`; the tenant is known by the Origin if it is not named."""

    model_config = ConfigDict(extra="forbid", strict=True)
    tenant: str | None = None


def routes(services: Services) -> list[Route]:
    guard = services.flood_guard

    @guard.limit(MINT_LIMIT)
    async def mint(request: Request) -> Response:
        caller = await services.authenticator.authenticate(request)
        bind_call(request, caller)
        if caller.session is not None:
            raise NotAllowed("Only a tenant key can mint sessions.")
        form = await read_form(request, Mint)
        return minted(services, caller.tenant, caller.plan, form)

    @guard.limit(GUEST_LIMIT)
    async def guest(request: Request) -> Response:
        snapshot, origin = await services.directory.snapshot(), request.headers.get("origin", "").lower()
        if snapshot.guest_host(origin) is None:
            raise _no_guests()
        tenant = _guest_host(snapshot, origin, await read_form(request, Guest))
        await services.limiter.hit_guest(request.scope, tenant.guests.per_address)
        plan = snapshot.plans[tenant.guest_plan]
        token, session = services.sessions.mint(tenant.id, new_guest_name(), plan.session_ttl_seconds, guest=True)
        answer = JSONResponse(_minted(token, session, sorted(plan.endpoints)), 201)
        _set_cookie(answer, token, session, services)
        return answer

    @guard.limit(MINT_LIMIT)
    async def cookie(request: Request) -> Response:
        caller = await services.authenticator.authenticate(request)
        if caller.session is None:
            raise NotAllowed("A tenant key does not belong into a browser; mint a session with it.")
        answer = JSONResponse(_facts(caller, services), 201)
        _set_cookie(answer, services.sessions.sign(caller.session), caller.session, services)
        return answer

    async def show(request: Request) -> Response:
        caller = await services.authenticator.authenticate(request)
        await services.limiter.hit(caller, request.scope, polls=True)
        now, tenant = services.clock.now(), caller.tenant.id
        quotas = await left(services.stores.ledger, caller.terms, tenant, caller.subject, now)
        in_flight = await services.leases.in_use(tenant, caller.subject, caller.terms.slots)
        facts = {**_facts(caller, services), "quotas": quotas, "in_flight": in_flight}
        return JSONResponse(facts)

    async def revoke(request: Request) -> Response:
        caller = await services.authenticator.authenticate(request)
        if caller.session is None:
            raise NotAllowed("This revokes sessions; a tenant key is revoked with: fal-proxy keys revoke")
        await services.directory.revoke(revoke_own(caller.session, services.clock.now()))
        answer = Response(status_code=204)
        services.authenticator.cookie.delete(answer)
        return answer

    async def endpoints(request: Request) -> Response:
        caller = await services.authenticator.authenticate(request)
        await services.limiter.hit(caller, request.scope, polls=True)
        found = [services.catalog.get(id_) for id_ in services.admission.open_to(caller)]
        listed = [{"id": one.id, "title": one.title} for one in found if one]
        return JSONResponse({"endpoints": listed})

    async def endpoint(request: Request) -> Response:
        caller = await services.authenticator.authenticate(request)
        await services.limiter.hit(caller, request.scope, polls=True)
        found = services.catalog.get(request.path_params["id"])
        if found is None or found.id not in services.admission.open_to(caller):
            raise NotFound("There is no such endpoint for you; GET /v1/endpoints lists those that are.")
        schemas = {"input_schema": found.input_schema, "output_schema": found.output_schema}
        return JSONResponse({"id": found.id, "title": found.title, **schemas})

    return [
        Route("/v1/sessions", mint, methods=["POST"]),
        Route("/v1/sessions/guest", guest, methods=["POST"]),
        Route("/v1/sessions/cookie", cookie, methods=["POST"]),
        Route("/v1/session", show, methods=["GET"]),
        Route("/v1/session", revoke, methods=["DELETE"]),
        Route("/v1/endpoints", endpoints, methods=["GET"]),
        Route("/v1/endpoints/{id:path}", endpoint, methods=["GET"]),
    ]


def minted(services: Services, tenant: Tenant, plan: Plan, form: Mint) -> Response:
    """A fresh session for an end user. It can only narrow what the plan allows.

    Raises:
        EndpointNotAllowed: it would widen it.
    """
    for wanted in form.endpoints or []:
        if wanted not in plan.endpoints:
            raise EndpointNotAllowed(f"The plan {tenant.plan} does not allow {wanted[:100]}.")
    if form.endpoints is not None:
        form.endpoints = sorted(set(form.endpoints))
    ttl = min(form.ttl_seconds or plan.session_ttl_seconds, plan.session_ttl_seconds)
    token, session = services.sessions.mint(tenant.id, form.subject, ttl, endpoints=form.endpoints)
    granted = sorted(plan.endpoints) if session.endpoints is None else session.endpoints
    return JSONResponse(_minted(token, session, granted), 201)


def _guest_host(snapshot: Snapshot, origin: str, form: Guest) -> Tenant:
    """The tenant whose page asks.

    Raises:
        OriginNotAllowed: no tenant takes guests from this origin.
    """
    tenant = snapshot.tenants.get(form.tenant) if form.tenant else snapshot.guest_host(origin)
    if tenant is None or not tenant.guests.enabled or origin not in tenant.allowed_origins:
        raise _no_guests()
    return tenant


def _no_guests() -> OriginNotAllowed:
    return OriginNotAllowed("No tenant takes guests from this page's origin.")


def _minted(token: str, session: Session, endpoints: list[str] | tuple[str, ...]) -> dict[str, Any]:
    return {
        "token": token,
        "expires_at": _iso(session.expires_at),
        "subject": session.subject,
        "endpoints": list(endpoints),
    }


def _facts(caller: Caller, services: Services) -> dict[str, Any]:
    return {
        "tenant": caller.tenant.id,
        "subject": caller.subject,
        "expires_at": _iso(caller.session.expires_at) if caller.session else None,
        "guest": caller.session.guest if caller.session else False,
        "endpoints": services.admission.open_to(caller),
    }


def _set_cookie(answer: Response, token: str, session: Session, services: Services) -> None:
    services.authenticator.cookie.set(answer, token, max(1, int(session.expires_at - services.clock.now())))


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
