"""What a call would cost, before it is made."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from proxy.auth.authenticator import Authenticator
from proxy.calls.call import Call, Form
from proxy.calls.estimates import Estimator
from proxy.errors import ProxyError
from proxy.http.bodies import read_form
from proxy.limits.rates import RateLimiter
from proxy.limits.usage import to_units
from proxy.routes.jobs import NewJob
from proxy.routes.paging import parse_endpoint
from proxy.routes.queries import known_query
from proxy.routes.rendering import bind_call


class EstimateRoutes:
    """Estimate calls."""

    def __init__(self, authenticator: Authenticator, limiter: RateLimiter, estimator: Estimator) -> None:
        self._authenticator = authenticator
        self._limiter = limiter
        self._estimator = estimator

    def routes(self) -> list[Route]:
        return [Route("/v1/estimate", self.estimate, methods=["POST"])]

    async def estimate(self, request: Request) -> Response:
        caller = await self._authenticator.authenticate(request)
        known_query(request)
        # Before the body is read, as a call is counted: an input takes as long to check here as there.
        await self._limiter.hit_estimate(caller, request.scope)
        wanted = await read_form(request, NewJob, most=None)
        target = parse_endpoint(wanted.endpoint)
        bind_call(request, caller, target)
        estimate = await self._estimator.estimate(Call(caller, target, request, Form(), {}, input=wanted.input))
        reserves, refusal = estimate
        answer = {
            "endpoint": target.endpoint,
            "admitted": refusal is None,
            "reserves": None if reserves is None else {unit: to_units(amount) for unit, amount in reserves.items()},
            "refusal": None if refusal is None else _describe_refusal(refusal),
        }
        return JSONResponse(answer)


def _describe_refusal(refusal: ProxyError) -> dict[str, Any]:
    """Describe a refusal as the call would get it, with its status, and without the fields of an answer."""
    body = refusal.body()
    fields = {name: body[name] for name in ("error_type", "message", "detail")}
    limits = {"retry_after": refusal.retry_after, "scope": refusal.scope}
    return {"status": refusal.status, **fields, **{name: one for name, one in limits.items() if one is not None}}
