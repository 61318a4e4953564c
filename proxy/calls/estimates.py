"""What a submit would reserve, and whether it would be let in, found out without taking anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from proxy.calls.admission import Admission
from proxy.calls.call import Call
from proxy.errors import (
    EndpointNotAllowed,
    InvalidInput,
    Overloaded,
    ProxyError,
    QuotaExceeded,
    RateLimited,
    UpstreamAccountLocked,
    UpstreamUnavailable,
)
from proxy.limits.leases import Leases
from proxy.limits.quotas import Quotas
from proxy.limits.rates import RateLimiter
from proxy.stores.ledger import Job
from proxy.upstream.guard import Guard


class Estimate(NamedTuple):
    """What a submit would meet.

    Attributes:
        reserves: by unit, in millionths; None for a call that the endpoint or the input forbids.
        refusal: the first refusal that it would get, in the order of `Admission`; None if it would be let in.
    """

    reserves: Mapping[str, int] | None
    refusal: ProxyError | None


class Estimator:
    """Asks what `Admission` asks, in the same order, but counts, claims, leases and reserves nothing."""

    def __init__(
        self, admission: Admission, limiter: RateLimiter, leases: Leases, quotas: Quotas, guard: Guard
    ) -> None:
        self._admission = admission
        self._limiter = limiter
        self._leases = leases
        self._quotas = quotas
        self._guard = guard

    async def estimate(self, call: Call) -> Estimate:
        """Estimate a submit.

        Raises:
            Draining: this process is stopping.
            StoreUnavailable: a limit cannot be checked.
        """
        caller = call.caller
        try:
            endpoint = self._admission.check_endpoint(caller, call.target)
        except EndpointNotAllowed as forbidden:
            return Estimate(None, forbidden)
        refusal = await self._check_before_input(call)
        try:
            body = self._admission.check_input(caller, endpoint, await call.read_input())
            if refusal is None and caller.plan.strip_metadata:
                body, refusal = await self._clean_pictures(call, body)
            job = self._admission.draft_job(call, endpoint, body)
        except InvalidInput as problem:
            return Estimate(None, refusal or problem)
        return Estimate(job.used, refusal or await self._check_after_input(call, job))

    async def _check_before_input(self, call: Call) -> ProxyError | None:
        caller = call.caller
        try:
            await self._limiter.check(caller, call.request.scope)
            self._guard.check(call.target, (caller.tenant.id, caller.subject), claims=False)
        except (RateLimited, UpstreamAccountLocked, UpstreamUnavailable) as refusal:
            return refusal
        return None

    async def _clean_pictures(self, call: Call, body: dict[str, Any]) -> tuple[dict[str, Any], ProxyError | None]:
        """Clean the pictures of an input: only that says whether they can be, and how large they are then."""
        try:
            return await self._admission.clean_pictures(call, body), None
        except Overloaded as refusal:
            return body, refusal

    async def _check_after_input(self, call: Call, job: Job) -> ProxyError | None:
        try:
            await self._leases.check(job, call.caller.terms.leases)
            await self._quotas.check(job)
        except (RateLimited, QuotaExceeded) as refusal:
            return refusal
        return None
