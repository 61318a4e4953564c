"""Sessions: minted for a tenant's users, turned into a cookie, shown and revoked."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator
from slowapi import Limiter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from proxy.auth.authenticator import Authenticator
from proxy.auth.revocations import revoke_own
from proxy.auth.sessions import Sessions, check_subject, new_guest_name
from proxy.calls.admission import Admission
from proxy.clock import Clock
from proxy.errors import EndpointNotAllowed, NotAllowed, OriginNotAllowed
from proxy.http.bodies import read_form
from proxy.limits.leases import Leases
from proxy.limits.rates import GUEST_LIMIT, MINT_LIMIT, RateLimiter
from proxy.limits.usage import left
from proxy.routes.rendering import bind_call
from proxy.stores.ledger import Ledger
from proxy.tenants.caller import Caller, Session
from proxy.tenants.directory import Directory, Snapshot
from proxy.tenants.plans import Plan, Tenant


class Mint(BaseModel):
    """The form of `POST /v1/sessions`."""

    model_config = ConfigDict(extra="forbid", strict=True)
    subject: str
    endpoints: list[str] | None = None
    ttl_seconds: int | None = Field(default=None, ge=1)

    @field_validator("subject")
    @classmethod
    def _check_subject(cls, subject: str) -> str:
        return check_subject(subject)


class Guest(BaseModel):
    """The form of `POST /v1/sessions/guest`; the tenant is known by the Origin if it is not named."""

    model_config = ConfigDict(extra="forbid", strict=True)
    tenant: str | None = None


class SessionRoutes:
    """Mint sessions, turn them into a cookie, show and revoke them."""

    def __init__(
        self,
        *,
        authenticator: Authenticator,
        sessions: Sessions,
        directory: Directory,
        admission: Admission,
        limiter: RateLimiter,
        leases: Leases,
        ledger: Ledger,
        clock: Clock,
        flood_guard: Limiter,
    ) -> None:
        self._authenticator = authenticator
        self._sessions = sessions
        self._directory = directory
        self._admission = admission
        self._limiter = limiter
        self._leases = leases
        self._ledger = ledger
        self._clock = clock
        self._flood_guard = flood_guard

    def routes(self) -> list[Route]:
        limit = self._flood_guard.limit
        return [
            Route("/v1/sessions", limit(MINT_LIMIT)(self.mint), methods=["POST"]),
            Route("/v1/sessions/guest", limit(GUEST_LIMIT)(self.guest), methods=["POST"]),
            Route("/v1/sessions/cookie", limit(MINT_LIMIT)(self.cookie), methods=["POST"]),
            Route("/v1/session", self.show, methods=["GET"]),
            Route("/v1/session", self.revoke, methods=["DELETE"]),
        ]

    async def mint(self, request: Request) -> Response:
        """Give a tenant's backend a session for one of its users."""
        caller = await self._authenticator.authenticate(request)
        bind_call(request, caller)
        if caller.session is not None:
            raise NotAllowed("Only a tenant key can mint sessions.")
        form = await read_form(request, Mint)
        return mint_session(self._sessions, caller.tenant, caller.plan, form)

    async def guest(self, request: Request) -> Response:
        """Give a page's visitor a session, if its tenant takes guests."""
        snapshot, origin = await self._directory.snapshot(), request.headers.get("origin", "").lower()
        if snapshot.guest_host(origin) is None:
            raise _no_guests()
        tenant = _guest_host(snapshot, origin, await read_form(request, Guest))
        await self._limiter.hit_guest(request.scope, tenant.guests.per_address)
        plan = snapshot.plans[tenant.guest_plan]
        token, session = self._sessions.mint(tenant.id, new_guest_name(), plan.session_ttl_seconds, guest=True)
        answer = JSONResponse(_describe_session(token, session, sorted(plan.endpoints)), 201)
        self._set_cookie(answer, token, session)
        return answer

    async def cookie(self, request: Request) -> Response:
        """Turn the session of a request into the session cookie."""
        caller = await self._authenticator.authenticate(request)
        if caller.session is None:
            raise NotAllowed("Do not use a tenant key in a browser; mint a session with it.")
        answer = JSONResponse(self._describe(caller), 201)
        self._set_cookie(answer, self._sessions.sign(caller.session), caller.session)
        return answer

    async def show(self, request: Request) -> Response:
        """What the caller may call, and what is left of its quotas."""
        caller = await self._authenticator.authenticate(request)
        await self._limiter.hit(caller, request.scope, polls=True)
        now, tenant = self._clock.now(), caller.tenant.id
        quotas = await left(self._ledger, caller.terms, tenant, caller.subject, now)
        in_flight = await self._leases.in_use(tenant, caller.subject, caller.terms.leases)
        return JSONResponse({**self._describe(caller), "quotas": quotas, "in_flight": in_flight})

    async def revoke(self, request: Request) -> Response:
        """Revoke the session of the request, and delete the cookie."""
        caller = await self._authenticator.authenticate(request)
        if caller.session is None:
            raise NotAllowed("This route revokes sessions; revoke a tenant key with: fal-proxy keys revoke")
        await self._directory.revoke(revoke_own(caller.session, self._clock.now()))
        answer = Response(status_code=204)
        self._authenticator.cookie.delete(answer)
        return answer

    def _describe(self, caller: Caller) -> dict[str, Any]:
        return {
            "tenant": caller.tenant.id,
            "subject": caller.subject,
            "expires_at": _iso(caller.session.expires_at) if caller.session else None,
            "guest": caller.session.guest if caller.session else False,
            "endpoints": self._admission.open_to(caller),
        }

    def _set_cookie(self, answer: Response, token: str, session: Session) -> None:
        self._authenticator.cookie.set(answer, token, max(1, int(session.expires_at - self._clock.now())))


def mint_session(sessions: Sessions, tenant: Tenant, plan: Plan, form: Mint) -> Response:
    """Mint a session for an end user. It can only narrow what the plan allows.

    Raises:
        EndpointNotAllowed: it would widen it.
    """
    for wanted in form.endpoints or []:
        if wanted not in plan.endpoints:
            raise EndpointNotAllowed(f"The plan {tenant.plan} does not allow {wanted[:100]}.")
    if form.endpoints is not None:
        form.endpoints = sorted(set(form.endpoints))
    ttl = min(form.ttl_seconds or plan.session_ttl_seconds, plan.session_ttl_seconds)
    token, session = sessions.mint(tenant.id, form.subject, ttl, endpoints=form.endpoints)
    granted = sorted(plan.endpoints) if session.endpoints is None else session.endpoints
    return JSONResponse(_describe_session(token, session, granted), 201)


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


def _describe_session(token: str, session: Session, endpoints: list[str] | tuple[str, ...]) -> dict[str, Any]:
    return {
        "token": token,
        "expires_at": _iso(session.expires_at),
        "subject": session.subject,
        "endpoints": list(endpoints),
    }


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
