"""Sessions: minted for a tenant's users, renewed, turned into a cookie, shown and revoked. Guests have guests.py."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator
from slowapi import Limiter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from proxy.auth.authenticator import Authenticator
from proxy.auth.identity import MAX_TOKEN_LENGTH
from proxy.auth.names import check_new_subject
from proxy.auth.narrowing import Narrowing, check_prices, describe_narrowing
from proxy.auth.recognition import Recognizer
from proxy.auth.revocations import revoke_by_name, revoke_own
from proxy.auth.sessions import Sessions, check_subject
from proxy.calls.admission import Admission
from proxy.clock import Clock, to_iso
from proxy.errors import BadRequest, EndpointNotAllowed, NotAllowed
from proxy.http.bodies import read_form
from proxy.limits.accounts import payer_of
from proxy.limits.grants import list_grants_of
from proxy.limits.leases import Leases
from proxy.limits.rates import GUEST_LIMIT, MINT_LIMIT, VISITOR, RateLimiter
from proxy.limits.usage import left
from proxy.routes.authors import author_of
from proxy.routes.operators import Subject
from proxy.routes.queries import known_query
from proxy.routes.rendering import bind_call
from proxy.stores.grants import GrantStore
from proxy.stores.ledger import Ledger
from proxy.tenants.caller import Caller, Session, check_not_revoked
from proxy.tenants.directory import Directory, Snapshot
from proxy.tenants.plans import Tenant
from proxy.tenants.strict import WITHOUT_POINT

Handler = Callable[[Request], Awaitable[Response]]


class Mint(Narrowing):
    """The form of `POST /v1/sessions`."""

    subject: str
    endpoints: list[str] | None = None
    ttl_seconds: Annotated[int, Field(ge=1), WITHOUT_POINT] | None = None

    @field_validator("subject")
    @classmethod
    def _check_subject(cls, subject: str) -> str:
        return check_subject(subject)


class Exchange(BaseModel):
    """The form of `POST /v1/sessions/exchange`: an identity token, unless it comes as the credential of the request."""

    model_config = ConfigDict(extra="forbid", strict=True)
    token: str | None = Field(default=None, min_length=1, max_length=MAX_TOKEN_LENGTH)


class Renew(BaseModel):
    """The form of `POST /v1/sessions/renew`, which says nothing: what a session may do stays as it is."""

    model_config = ConfigDict(extra="forbid", strict=True)


class SignOut(BaseModel):
    """The form of `DELETE /v1/sessions`."""

    model_config = ConfigDict(extra="forbid", strict=True)
    subject: Subject


class SessionRoutes:
    """Mint sessions, renew them, turn them into a cookie, show and revoke them."""

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
        grants: GrantStore,
        clock: Clock,
        flood_guard: Limiter,
        recognizer: Recognizer,
    ) -> None:
        self._authenticator = authenticator
        self._sessions = sessions
        self._directory = directory
        self._admission = admission
        self._limiter = limiter
        self._leases = leases
        self._ledger = ledger
        self._grants = grants
        self._clock = clock
        self._flood_guard = flood_guard
        self._recognizer = recognizer

    def routes(self) -> list[Route]:
        return [
            self._guard("POST", "", self.mint, MINT_LIMIT),
            self._guard("DELETE", "", self.sign_out, MINT_LIMIT),
            self._guard("POST", "/exchange", self.exchange, GUEST_LIMIT),
            self._guard("POST", "/renew", self.renew, MINT_LIMIT),
            self._guard("POST", "/cookie", self.cookie, MINT_LIMIT),
            Route("/v1/session", self.show, methods=["GET"]),
            Route("/v1/session", self.revoke, methods=["DELETE"]),
        ]

    def _guard(self, method: str, path: str, handler: Handler, rate: str) -> Route:
        """Make a route whose flood guard counts by good credential, and all other requests by address."""
        guarded: Handler = self._flood_guard.limit(rate)(handler)

        async def respond(request: Request) -> Response:
            known_query(request)
            request.scope["state"][VISITOR] = await self._recognizer.recognize(request.scope)
            return await guarded(request)

        return Route(f"/v1/sessions{path}", respond, methods=[method])

    async def mint(self, request: Request) -> Response:
        """Give a tenant's backend a session for one of its users."""
        caller = await self._authenticator.authenticate(request)
        bind_call(request, caller)
        if caller.session is not None:
            raise NotAllowed("Only a tenant key can mint sessions.")
        form = await read_form(request, Mint)
        await check_new_subject(self._ledger, caller.tenant.id, form.subject)
        # The form may have taken minutes to come.
        check_not_revoked(caller, snapshot := await self._directory.read_now())
        return mint_session(self._sessions, snapshot, caller.tenant, form)[1]

    async def sign_out(self, request: Request) -> Response:
        """Revoke all sessions of one of a tenant's users, for its backend."""
        caller = await self._authenticator.authenticate(request)
        bind_call(request, caller)
        if caller.session is not None:
            raise NotAllowed("Only a tenant key can sign users out; DELETE /v1/session revokes the session itself.")
        # As a poll: a tenant whose calls are at their limit can still sign a user out.
        await self._limiter.hit(caller, request.scope, polls=True)
        form, now = await read_form(request, SignOut), self._clock.now()
        check_not_revoked(caller, await self._directory.snapshot())
        revocation = revoke_by_name(caller.tenant.id, None, form.subject, now)
        await self._directory.revoke(revocation, by=author_of(request, f"key:{caller.key_id}", now))
        return Response(status_code=204)

    async def exchange(self, request: Request) -> Response:
        """Give the user whom an identity token names a session."""
        form = await read_form(request, Exchange)
        if form.token is None:
            caller = await self._authenticator.authenticate(request)
        elif request.headers.get("authorization"):
            raise BadRequest("Send the token once: in the body, or in the Authorization header.")
        else:
            caller = await self._authenticator.authenticate_token(form.token)
        bind_call(request, caller)
        given = caller.session
        if given is None or given.identity is None:
            raise NotAllowed("Only an identity token can be exchanged; a session is renewed, and a tenant key mints.")
        token, session = await self._exchange(request, caller, given)
        return JSONResponse(describe_session(token, session, sorted(caller.endpoints)), 201)

    async def renew(self, request: Request) -> Response:
        """Give the session of a request more time. One that came in the cookie goes back there, and not to the page."""
        caller = await self._authenticator.authenticate(request)
        bind_call(request, caller)
        if caller.session is None:
            raise NotAllowed("Only a session can be renewed; a tenant key mints new ones with POST /v1/sessions.")
        if caller.session.identity is not None:
            raise NotAllowed("An identity token is renewed by its issuer, or exchanged: POST /v1/sessions/exchange.")
        await read_form(request, Renew)
        plan = caller.plan
        token, session = self._sessions.renew(caller.session, plan.session_ttl_seconds, plan.max_session_age_seconds)
        if not self._authenticator.comes_in_cookie(request):
            return JSONResponse(describe_session(token, session, self._admission.open_to(caller)), 201)
        answer = JSONResponse(self._describe(replace(caller, session=session)), 201)
        self._set_cookie(answer, token, session)
        return answer

    async def cookie(self, request: Request) -> Response:
        """Turn the session of a request into the session cookie."""
        caller = await self._authenticator.authenticate(request)
        session = caller.session
        if session is None:
            raise NotAllowed("Do not use a tenant key in a browser; mint a session with it.")
        if session.identity is None:
            token = self._sessions.sign(session)
        else:
            # As long as a session lasts, and not as long as the token: the cookie outlives the issuer's entry and keys.
            token, session = await self._exchange(request, caller, session)
        answer = JSONResponse(self._describe(replace(caller, session=session)), 201)
        self._set_cookie(answer, token, session)
        return answer

    async def show(self, request: Request) -> Response:
        """Return what the caller may call, and what is left of its quotas and of the grants that it can spend."""
        caller = await self._authenticator.authenticate(request)
        known_query(request)
        await self._limiter.hit(caller, request.scope, polls=True)
        now, tenant = self._clock.now(), caller.tenant.id
        quotas = await left(self._ledger, caller.terms, payer_of(caller, request.scope["client"]), now)
        in_flight = await self._leases.in_use(tenant, caller.subject, caller.terms.leases)
        has_grants = tenant in self._directory.latest.granted
        grants = await list_grants_of(self._grants, tenant, caller.subject, now) if has_grants else []
        return JSONResponse({**self._describe(caller), "quotas": quotas, "grants": grants, "in_flight": in_flight})

    async def revoke(self, request: Request) -> Response:
        """Revoke the session of the request, and delete the cookie."""
        caller = await self._authenticator.authenticate(request)
        known_query(request)
        if caller.session is None:
            raise NotAllowed("This route revokes sessions; revoke a tenant key with: fal-proxy keys revoke")
        await self._directory.revoke(revoke_own(caller.session, self._clock.now()), by=None)
        answer = Response(status_code=204)
        self._authenticator.cookie.delete(answer)
        return answer

    async def _exchange(self, request: Request, caller: Caller, given: Session) -> tuple[str, Session]:
        """Give the user whom an identity token names a session of this proxy.

        Raises:
            RateLimited, StoreUnavailable: as of a call.
            Unauthenticated: the token was revoked meanwhile.
            BadRequest: the token narrows to more endpoints than a session holds.
        """
        await self._limiter.hit(caller, request.scope, polls=False)
        # Looked at again: a session that was minted after a revocation outlives it.
        snapshot = await self._directory.read_now()
        check_not_revoked(caller, snapshot)
        return self._sessions.mint(
            given.tenant,
            given.subject,
            caller.plan.session_ttl_seconds,
            # What it claims beyond its plan would only make the session longer.
            endpoints=None if given.endpoints is None else sorted(caller.endpoints),
            ceilings=given.ceilings,
            plan=given.plan,
            newest_revocation=snapshot.newest_revocation,
        )

    def _describe(self, caller: Caller) -> dict[str, Any]:
        return {
            "tenant": caller.tenant.id,
            "subject": caller.subject,
            "expires_at": to_iso(caller.session.expires_at) if caller.session else None,
            "guest": caller.session.guest if caller.session else False,
            "endpoints": self._admission.open_to(caller),
            **(describe_narrowing(caller.session) if caller.session else {}),
        }

    def _set_cookie(self, answer: Response, token: str, session: Session) -> None:
        self._authenticator.cookie.set_session(answer, token, session, self._clock.now())


def mint_session(sessions: Sessions, snapshot: Snapshot, tenant: Tenant, form: Mint) -> tuple[Session, Response]:
    """Mint a session for an end user, and give the answer with its token. It can only narrow what the plan allows.

    Args:
        snapshot: of now. What is missing in an older one would revoke the session.

    Raises:
        EndpointNotAllowed: it would widen it.
        BadRequest: its token would be too long, or it has a quota of usd and an endpoint without a price.
    """
    plan_name = snapshot.plan_of(tenant, form.subject)
    plan = snapshot.plans[plan_name]
    for wanted in form.endpoints or []:
        if wanted not in plan.endpoints:
            raise EndpointNotAllowed(f"The plan {plan_name} does not allow {wanted[:100]}.")
    if form.endpoints is not None:
        form.endpoints = sorted(set(form.endpoints))
    check_prices(form, plan.endpoints if form.endpoints is None else form.endpoints, snapshot.prices)
    ttl = min(form.ttl_seconds or plan.session_ttl_seconds, plan.session_ttl_seconds)
    newest = snapshot.newest_revocation
    token, session = sessions.mint(
        tenant.id, form.subject, ttl, endpoints=form.endpoints, newest_revocation=newest, **form.claims()
    )
    granted = sorted(plan.endpoints) if session.endpoints is None else session.endpoints
    return session, JSONResponse(describe_session(token, session, granted), 201)


def describe_session(token: str, session: Session, endpoints: list[str] | tuple[str, ...]) -> dict[str, Any]:
    """Describe a session for the caller that gets it."""
    return {
        "id": session.id,
        "token": token,
        "expires_at": to_iso(session.expires_at),
        "subject": session.subject,
        "endpoints": list(endpoints),
        **describe_narrowing(session),
    }
