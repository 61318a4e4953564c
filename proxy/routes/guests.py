"""Sessions for the visitors of a tenant's pages and the users of its apps, and the challenges that they solve."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from slowapi import Limiter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from proxy.auth.cookies import SessionCookie
from proxy.auth.proofs import GuestProofs, Proof, choose_tier
from proxy.auth.sessions import Sessions, new_guest_name
from proxy.clock import Clock
from proxy.errors import OriginNotAllowed
from proxy.http.bodies import read_form
from proxy.limits.rates import GUEST_LIMIT, RateLimiter
from proxy.origins import OriginRefusal
from proxy.routes.queries import known_query
from proxy.routes.sessions import describe_session
from proxy.tenants.directory import Directory, Snapshot
from proxy.tenants.plans import Tenant


class Guest(BaseModel):
    """The form of `POST /v1/sessions/guest`; the tenant is known by the Origin, if there is one and it is not named."""

    model_config = ConfigDict(extra="forbid", strict=True)
    tenant: str | None = None
    proof: Proof | None = None


class GuestRoutes:
    """Give guests challenges and sessions.

    Args:
        own_origin: that of a page at the proxy's own address.
    """

    def __init__(
        self,
        *,
        sessions: Sessions,
        cookie: SessionCookie,
        proofs: GuestProofs,
        directory: Directory,
        limiter: RateLimiter,
        clock: Clock,
        flood_guard: Limiter,
        own_origin: str,
    ) -> None:
        self._sessions = sessions
        self._cookie = cookie
        self._proofs = proofs
        self._directory = directory
        self._limiter = limiter
        self._clock = clock
        self._flood_guard = flood_guard
        self._own_origin = own_origin

    def routes(self) -> list[Route]:
        limit = self._flood_guard.limit
        return [
            Route("/v1/sessions/challenge", limit(GUEST_LIMIT)(self.challenge), methods=["GET"]),
            Route("/v1/sessions/guest", limit(GUEST_LIMIT)(self.mint), methods=["POST"]),
        ]

    async def challenge(self, request: Request) -> Response:
        """Give a guest a challenge: for `pow` in the form of ALTCHA's widget."""
        query = known_query(request, "tenant", "kind")
        kind, snapshot = query.get("kind", "pow"), await self._directory.snapshot()
        origin = self._find_origin(request, snapshot) if kind == "pow" else _read_origin(request)
        tenant = _find_host(snapshot, origin, query.get("tenant"))
        await self._limiter.hit_guest(request.scope, tenant.id, tenant.guests.per_address, "challenge")
        return JSONResponse(self._proofs.make_challenge(tenant, origin, kind))

    def _find_origin(self, request: Request, snapshot: Snapshot) -> str:
        """Find the origin of the page that asks; a browser does not send it with a GET of the page's own origin."""
        if named := _read_origin(request):
            return named
        # The proxy may have more addresses than one, such as 127.0.0.1 and localhost.
        asked = f"{self._own_origin.partition(':')[0]}://{request.headers.get('host', '').lower()}"
        return asked if asked in snapshot.origins else self._own_origin

    async def mint(self, request: Request) -> Response:
        """Give a guest a session, if its tenant takes guests."""
        known_query(request)
        snapshot, origin = await self._directory.snapshot(), _read_origin(request)
        if not any(_takes_guests(tenant, origin) for tenant in snapshot.tenants.values()):
            raise _no_guests(snapshot, origin)
        form = await read_form(request, Guest)
        # The form may have taken minutes to come.
        snapshot = await self._directory.snapshot()
        tenant = _find_host(snapshot, origin, form.tenant)
        tier = choose_tier(tenant.guests.tiers if origin else tenant.guests.app_tiers, form.proof)
        await self._limiter.hit_guest(request.scope, tenant.id, tenant.guests.per_address)
        if tier is not None and form.proof is not None:
            await self._proofs.redeem(tenant, tier, origin, form.proof)
        plan = snapshot.plans[tier.plan if tier else tenant.guest_plan]
        token, session = self._sessions.mint(
            tenant.id,
            new_guest_name(),
            plan.session_ttl_seconds,
            guest=True,
            plan=tier.plan if tier else None,
            # The name is new: no revocation of before that this reading misses is about it.
            newest_revocation=snapshot.newest_revocation,
        )
        answer = JSONResponse(describe_session(token, session, sorted(plan.endpoints)), 201)
        self._cookie.set_session(answer, token, session, self._clock.now())
        return answer


def _read_origin(request: Request) -> str:
    """Read the origin of the page that asks; empty for an app."""
    return request.headers.get("origin", "").lower()


def _find_host(snapshot: Snapshot, origin: str, named: str | None) -> Tenant:
    """Find the tenant whose page asks, or, without an origin, the one whose app asks.

    Raises:
        OriginNotAllowed: no tenant takes guests from this origin.
        TenantSuspended: the tenant is suspended.
    """
    tenant = snapshot.tenants.get(named) if named else snapshot.guest_host(origin)
    if tenant is None or not _takes_guests(tenant, origin):
        raise _no_guests(snapshot, origin)
    snapshot.check_active(tenant.id)
    return tenant


def _takes_guests(tenant: Tenant, origin: str) -> bool:
    """Return whether a tenant takes guests from pages of an origin, or, without one, from an app that proves itself."""
    guests = tenant.guests
    return guests.enabled and (origin in tenant.allowed_origins if origin else bool(guests.app_tiers))


def _no_guests(snapshot: Snapshot, origin: str) -> OriginNotAllowed:
    def list_allowed() -> frozenset[str]:
        hosts = [tenant.allowed_origins for tenant in snapshot.tenants.values() if tenant.guests.enabled]
        return frozenset().union(*hosts)

    setting = "allowed_origins and guests.enabled of a tenant"
    refusal = OriginRefusal("guest", origin or "none", list_allowed, setting)
    return OriginNotAllowed("No tenant takes guests from this page's origin.", refusal)
