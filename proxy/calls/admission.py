"""The order of checks before anything is sent to fal: cheap and local first, paid last.

On the list and in the caller's scope -> for a job's status, result, stream or cancel: is it the caller's? -> rate
limits -> fal's health -> the input -> its pictures -> a concurrency lease -> the quota.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from starlette.types import Scope

from proxy.calls.call import Call
from proxy.catalog import Catalog, Endpoint
from proxy.drain import Drain
from proxy.errors import EndpointNotAllowed, TooManyJobs
from proxy.http.disconnect import cancel_on_disconnect
from proxy.jobs.ownership import Ownership
from proxy.limits.accounts import payer_of
from proxy.limits.inputs import check_input
from proxy.limits.learned import size_of
from proxy.limits.leases import Leases
from proxy.limits.quotas import MILLION, Quotas, ceilings, new_job
from proxy.limits.rates import RateLimiter
from proxy.pictures.data_uris import InputPictures
from proxy.stores.ledger import Job
from proxy.targets import Target
from proxy.tenants.caller import Caller, check_not_revoked
from proxy.tenants.directory import Directory
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
        pictures: InputPictures,
        directory: Directory,
    ) -> None:
        self._catalog = catalog
        self._owners = owners
        self._limiter = limiter
        self._leases = leases
        self._quotas = quotas
        self._drain = drain
        self._files = files
        self._guard = guard
        self._pictures = pictures
        self._directory = directory

    async def admit_call(self, call: Call) -> Admitted:
        """Admit a run, stream or submit. Its input is read only for a caller who has calls left.

        Raises:
            Draining: this process is stopping.
            EndpointNotAllowed: not in the catalogue, or not in the caller's scope.
            InvalidInput: the schema or a ceiling of the plan is broken.
            RateLimited, TooManyJobs, QuotaExceeded: a limit is reached; nothing was taken from any other.
            UpstreamAccountLocked, UpstreamUnavailable: fal fails, and the call would not be sent.
            StoreUnavailable: a limit cannot be checked.
            Overloaded: too many pictures are waiting for their metadata to be removed.
            Unauthenticated, TenantSuspended: the caller's credential ended while the input came.
        """
        caller, endpoint = call.caller, self.check_endpoint(call.caller, call.target)
        if not call.is_counted:
            await self._limiter.hit(caller, call.request.scope, polls=False)
        if self._guard.breakers and not call.passed_guard:
            self._guard.check(call.target, (caller.tenant.id, caller.subject))
        body = self.check_input(caller, endpoint, await call.read_input())
        if caller.plan.strip_metadata:
            body = await self.clean_pictures(call, body)
        await self.check_caller(caller)
        return Admitted(await self._reserve(call, endpoint, body), body)

    async def check_caller(self, caller: Caller) -> None:
        """Make sure that a caller still counts once its input is there, which may have taken minutes to come.

        Raises:
            Unauthenticated, TenantSuspended, StoreUnavailable: it does not, or that is not known.
        """
        check_not_revoked(caller, await self._directory.snapshot())

    def is_shut(self, target: Target) -> bool:
        """Return whether the guard keeps new calls to a target back, but for a probe now and then."""
        return bool(self._guard.breakers) and self._guard.is_shut(target)

    async def pass_guard(self, call: Call) -> Call:
        """Count a call and ask the guard, before anything is written for it; give the call as it goes on.

        Raises:
            RateLimited, StoreUnavailable, UpstreamAccountLocked, UpstreamUnavailable: as `admit_call`.
        """
        caller = call.caller
        if not call.is_counted:
            await self._limiter.hit(caller, call.request.scope, polls=False)
        self._guard.check(call.target, (caller.tenant.id, caller.subject))
        return call._replace(is_counted=True, passed_guard=True)

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
        if endpoint.id not in self._catalog.prices and caller.terms.limits_usd:
            raise EndpointNotAllowed(f"A quota of usd limits you, and {endpoint.id} has no price by which it counts.")
        return endpoint

    def check_input(self, caller: Caller, endpoint: Endpoint, given: Any) -> dict[str, Any]:
        """Give an input as it may be sent to fal.

        Raises:
            InvalidInput, BadRequest: it may not.
        """
        return check_input(endpoint, caller.plan, self._files.to_fal(given), own_files=self._files.cdn_url)

    async def clean_pictures(self, call: Call, body: dict[str, Any]) -> dict[str, Any]:
        """Give an input without the metadata of its pictures, for a caller whose plan strips it.

        Raises:
            InvalidInput: a picture cannot be written again, or there are too many.
            Overloaded: too many pictures are waiting for that.
        """
        caller = call.caller
        cleaning = self._pictures.clean(caller.tenant.id, caller.subject, caller.plan, body)
        return await cancel_on_disconnect(call.disconnect, cleaning)

    def draft_job(self, call: Call, endpoint: Endpoint, body: dict[str, Any]) -> Job:
        """Make the record of a call: what it reserves of each account.

        Raises:
            InvalidInput: the call could use more than any quota holds.
        """
        caller, now = call.caller, self._quotas.now()
        price = self._catalog.prices.get(endpoint.id, 0)
        amounts = ceilings(endpoint, body, price)
        size = size_of(endpoint.id, body, amounts["tokens"] // MILLION)
        needs = self._quotas.learned.needs(size, amounts, price)
        payer, kind = payer_of(caller, call.request.scope["client"]), call.target.kind.value
        return new_job(caller.terms, payer, kind, endpoint.id, amounts, now, needs=needs, size=size)

    def open_to(self, caller: Caller) -> list[str]:
        """List the endpoints that a caller may call."""
        listed = sorted(endpoint for endpoint in caller.endpoints if endpoint in self._catalog)
        return [one for one in listed if one in self._catalog.prices] if caller.terms.limits_usd else listed

    async def _reserve(self, call: Call, endpoint: Endpoint, body: dict[str, Any]) -> Job:
        """Take a lease and reserve the quota, or neither."""
        job = self.draft_job(call, endpoint, body)
        if call.job_id is not None:
            job = job._replace(id=call.job_id)
        try:
            await self._leases.acquire(job, call.caller.terms.leases)
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
