"""The order of checks before anything is sent to fal: cheap and local first, paid last.

On the list and in the caller's scope -> for a job's status, result, stream or cancel: is it the caller's? -> rate
limits -> fal's health -> the input -> a concurrency lease -> the quota.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from starlette.types import Scope

from proxy.calls.call import Call
from proxy.catalog import Catalog, Endpoint
from proxy.drain import Drain
from proxy.errors import EndpointNotAllowed, TooManyJobs
from proxy.jobs.ownership import Ownership
from proxy.limits.inputs import check_input
from proxy.limits.leases import Leases
from proxy.limits.quotas import Quotas, ceilings, new_job
from proxy.limits.rates import RateLimiter
from proxy.stores.ledger import Job
from proxy.targets import Target
from proxy.tenants.caller import Caller
from proxy.upstream.file_urls import FileUrls
from proxy.upstream.guard import Guard


class Admitted(NamedTuple):
    """The right to make a run, stream or submit once: what is reserved for it, and what may be sent to the model."""

    job: Job
    input: dict[str, Any]


class Admission:
    """Decides which calls may be made."""

    def __init__(
        self,
        catalog: Catalog,
        owners: Ownership,
        limiter: RateLimiter,
        leases: Leases,
        quotas: Quotas,
        drain: Drain,
        files: FileUrls,
        guard: Guard,
    ) -> None:
        self._catalog = catalog
        self._owners = owners
        self._limiter = limiter
        self._leases = leases
        self._quotas = quotas
        self._drain = drain
        self._files = files
        self._guard = guard

    async def admit_call(self, call: Call) -> Admitted:
        """Admit a run, stream or submit. Its input is read only for a caller who has calls left.

        Raises:
            Draining: this process is stopping.
            EndpointNotAllowed: not in the catalogue, or not in the caller's scope.
            InvalidInput: the schema or a ceiling of the plan is broken.
            RateLimited, TooManyJobs, QuotaExceeded: a limit is reached; nothing was taken from any other.
            UpstreamAccountLocked, UpstreamUnavailable: fal fails, and the call would not be sent.
            StoreUnavailable: a limit cannot be checked.
        """
        caller, endpoint = call.caller, self.check_endpoint(call.caller, call.target)
        if not call.is_counted:
            await self._limiter.hit(caller, call.request.scope, polls=False)
        if self._guard.breakers:
            self._guard.check(call.target, (caller.tenant.id, caller.subject))
        given = self._files.to_fal(await call.read_input())
        body = check_input(endpoint, caller.plan, given, own_files=self._files.cdn_url)
        return Admitted(await self._reserve(call, endpoint, body), body)

    async def admit_job(self, call: Call) -> Job:
        """Admit a question about a job, or its cancellation, and find the job.

        Raises:
            EndpointNotAllowed: the job's endpoint is not in the caller's scope.
            NotFound: the job is not the caller's.
            RateLimited, StoreUnavailable: as `admit_call`.
        """
        caller, target = call.caller, call.target
        if target.app not in self._catalog.apps(caller.endpoints):
            raise _not_allowed(target.app)
        job = await self._owners.find(target, caller)
        await self._limiter.hit(caller, call.request.scope, polls=True)
        return job

    async def admit_upload(self, caller: Caller, scope: Scope) -> None:
        """Admit an upload.

        Raises:
            EndpointNotAllowed: no endpoint is in the caller's scope.
            Draining, RateLimited, StoreUnavailable: as `admit_call`.
        """
        self._drain.refuse_new_work()
        if not caller.endpoints:
            raise EndpointNotAllowed("You may call no endpoint, so you cannot upload files.")
        await self._limiter.hit(caller, scope, polls=False)

    def check_endpoint(self, caller: Caller, target: Target) -> Endpoint:
        """Give the endpoint of a new call, if the caller may call it now.

        Raises:
            Draining: this process is stopping.
            EndpointNotAllowed: not in the catalogue, or not in the caller's scope.
        """
        self._drain.refuse_new_work()
        endpoint = self._catalog.get(target.endpoint)
        if endpoint is None or target.endpoint not in caller.endpoints:
            raise _not_allowed(target.endpoint)
        return endpoint

    def open_to(self, caller: Caller) -> list[str]:
        """List the endpoints that a caller may call."""
        return sorted(endpoint for endpoint in caller.endpoints if endpoint in self._catalog)

    async def _reserve(self, call: Call, endpoint: Endpoint, body: dict[str, Any]) -> Job:
        """Take a lease and reserve the quota, or neither."""
        caller, amounts, now = call.caller, ceilings(endpoint, body), self._quotas.now()
        kind = call.target.kind.value
        job = new_job(caller.terms, caller.tenant.id, caller.subject, kind, endpoint.id, amounts, now)
        if call.job_id is not None:
            job = replace(job, id=call.job_id)
        try:
            await self._leases.acquire(job, caller.terms.leases)
            await self._quotas.reserve(job)
        except TooManyJobs:
            raise
        except BaseException:
            # Also when the answer about the lease was lost: it may be taken, and nothing else would return it.
            await self._leases.release(job)
            raise
        return job


def _not_allowed(endpoint: str) -> EndpointNotAllowed:
    return EndpointNotAllowed(f"You may not call {endpoint}; GET /v1/endpoints lists the endpoints that you may call.")
