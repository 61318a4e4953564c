"""The order of checks before anything is sent to fal: cheap and local first, paid last.

On the list and in the caller's scope -> for a job's status, result, stream or cancel: is it the caller's? -> rate
limits -> the input -> a slot -> the quota.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from proxy.auth.callers import Caller
from proxy.catalog import Catalog, Endpoint
from proxy.drain import Drain
from proxy.errors import EndpointNotAllowed, TooManyJobs
from proxy.files import FileUrls
from proxy.jobs.owners import Owners
from proxy.policy.inputs import check_input
from proxy.policy.leases import Leases
from proxy.policy.quota import Bookkeeper, ceilings, new_job
from proxy.policy.ratelimit import Allowance, RateLimiter
from proxy.stores.base import Job
from proxy.targets import Target


@dataclass(frozen=True, slots=True)
class Admission:
    """The right to make one call once.

    Attributes:
        job: what a run, stream or submit has reserved, or the caller's own job that the call is about.
        input: what may be sent to the model; None for calls without an input.
    """

    target: Target
    allowance: Allowance
    job: Job | None = None
    input: dict[str, Any] | None = None


class Gate:
    def __init__(
        self,
        catalog: Catalog,
        owners: Owners,
        limiter: RateLimiter,
        leases: Leases,
        bookkeeper: Bookkeeper,
        drain: Drain,
        *,
        files: FileUrls,
    ) -> None:
        self._catalog = catalog
        self._owners = owners
        self._limiter = limiter
        self._leases = leases
        self._bookkeeper = bookkeeper
        self._drain = drain
        self._files = files

    async def admit(
        self,
        caller: Caller,
        target: Target,
        address: str,
        read_input: Callable[[], Awaitable[Any]],
        job_id: str | None = None,
        allowance: Allowance | None = None,
    ) -> Admission:
        """Decide on one call. `read_input` gives the parsed JSON of a run, stream or submit, and is asked late.

        `job_id` is the id that its job is to have; a fresh one if not given. `allowance` is that of a call that was
        counted before.

        Raises:
            Draining: it is new work, and this process is stopping. What is told of a job is told to the last.
            EndpointNotAllowed: not in the catalogue, or not in the caller's scope; for an upload, none is in it.
            InvalidInput: the schema or a ceiling of the plan is broken.
            NotFound: the job is not the caller's.
            RateLimited, TooManyJobs, QuotaExceeded: a limit is reached; nothing was taken from any other.
            StoreUnavailable: a limit cannot be checked.
        """
        if target.kind.names_endpoint:
            endpoint = self._endpoint(caller, target)
            # First: nothing is read or parsed for a caller who has no calls left.
            allowance = allowance or await self._limiter.hit(caller, address, polls=False)
            given = self._files.meant(await read_input())
            body = check_input(endpoint, caller.plan, given, own_files=self._files.cdn_url)
            return Admission(target, allowance, await self._reserve(caller, target, endpoint, body, job_id), body)
        if target.kind.names_job:
            if target.app not in self._catalog.apps(caller.endpoints):
                raise _not_allowed(target.app)
            job = await self._owners.find(target, caller)
            return Admission(target, await self._limiter.hit(caller, address, polls=True), job)
        self._drain.refuse_new_work()
        if not caller.endpoints:
            raise EndpointNotAllowed("No endpoint is open to you, so there is nothing to upload a file for.")
        return Admission(target, await self._limiter.hit(caller, address, polls=False))

    def check_endpoint(self, caller: Caller, target: Target) -> None:
        """Whether a caller may call a target's endpoint at all, now.

        Raises:
            Draining: this process is stopping.
            EndpointNotAllowed: not in the catalogue, or not in the caller's scope.
        """
        self._endpoint(caller, target)

    def open_to(self, caller: Caller) -> list[str]:
        """The endpoints a caller may call."""
        return sorted(endpoint for endpoint in caller.endpoints if endpoint in self._catalog)

    def _endpoint(self, caller: Caller, target: Target) -> Endpoint:
        self._drain.refuse_new_work()
        endpoint = self._catalog.get(target.endpoint)
        if endpoint is None or target.endpoint not in caller.endpoints:
            raise _not_allowed(target.endpoint)
        return endpoint

    async def _reserve(
        self, caller: Caller, target: Target, endpoint: Endpoint, body: dict[str, Any], job_id: str | None
    ) -> Job:
        """A slot and the quota, or neither."""
        amounts, now = ceilings(endpoint, body), self._bookkeeper.now()
        job = new_job(caller.terms, caller.tenant.id, caller.subject, target.kind.value, endpoint.id, amounts, now)
        if job_id is not None:
            job = replace(job, id=job_id)
        try:
            await self._leases.acquire(job, caller.terms.slots)
            await self._bookkeeper.reserve(job)
        except TooManyJobs:
            raise
        except BaseException:
            # Also when the slot's own answer was lost: it may have been taken, and nobody would return it.
            await self._leases.release(job)
            raise
        return job


def _not_allowed(endpoint: str) -> EndpointNotAllowed:
    return EndpointNotAllowed(f"The endpoint {endpoint} is not open to you; GET /v1/endpoints lists those that are.")
