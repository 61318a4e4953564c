"""In-flight leases of subjects, tenants and their guests: taken before a call, returned at its end; they expire too.

A lease is known by the id of its job, so all who learn of the job's end can return it: the call itself, a poll, a
stream, or the reconciler.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import lru_cache

from proxy.clock import Clock
from proxy.errors import StoreUnavailable, TooManyJobs
from proxy.limits.lease_keeper import LEASE_SECONDS as LEASE_SECONDS
from proxy.limits.lease_keeper import LeaseKeeper
from proxy.limits.lease_scopes import scope_keys, subject_scope_keys
from proxy.stores.counters import Counters, LeaseScope
from proxy.stores.ledger import Job, Ledger
from proxy.telemetry.log_limit import LogLimit
from proxy.tenants.terms import LeaseLimits

#: When a lease ends is not known; this is a moment to try again.
RETRY_SECONDS = 1.0
UNLIMITED = 1_000_000_000
_log = logging.getLogger(__name__)


class Leases:
    """Counts what is in flight against the limits of plans.

    Args:
        fails_open: whether calls are let through while the counters do not answer.
        failed: called for each call that could not be counted.
    """

    def __init__(
        self,
        counters: Counters,
        ledger: Ledger,
        clock: Clock,
        *,
        fails_open: bool = False,
        failed: Callable[[], None] = lambda: None,
    ) -> None:
        self.keeper = LeaseKeeper(counters, ledger, clock)
        self._counters = counters
        self._clock = clock
        self._fails_open = fails_open
        self._failed = failed
        self._log_limit = LogLimit()

    async def acquire(self, job: Job, limits: LeaseLimits) -> None:
        """Take a lease of the job's subject, of its tenant and, for a guest's job, of the tenant's guests.

        Raises:
            TooManyJobs: one of them has none left.
            StoreUnavailable: they cannot be counted, and calls are not let through without.
        """
        scopes = _scopes_of(job.tenant, job.subject, limits)
        try:
            full = await self.keeper.acquire(job.id, scopes)
        except StoreUnavailable:
            self._failed()
            if not self._fails_open:
                raise
            # As PROXY_RATE_LIMIT_ON_ERROR says.
            if calls := self._log_limit.count("leases"):
                _log.warning("leases not counted: calls let through", extra={"log_fields": {"calls": calls}})
            return
        if full is not None:
            raise _too_many_jobs(full, scopes[full].limit)

    async def check(self, job: Job, limits: LeaseLimits) -> None:
        """Refuse a call that `acquire` would refuse now; take no lease.

        Raises:
            TooManyJobs, StoreUnavailable: as `acquire`.
        """
        now = self._clock.now()
        try:
            for place, scope in enumerate(_scopes_of(job.tenant, job.subject, limits)):
                if await self._counters.in_use(scope.key, now) >= scope.limit:
                    raise _too_many_jobs(place, scope.limit)
        except StoreUnavailable:
            if not self._fails_open:
                raise

    async def renew(self, job: Job) -> None:
        now = self._clock.now()
        await self._counters.renew(job.id, scope_keys(job), now, now + LEASE_SECONDS)

    def release(self, job: Job) -> Awaitable[None]:
        """Return the leases of a job, later if the counters do not answer now."""
        return self.keeper.release(job.id, scope_keys(job))

    def hand_over(self, job: Job) -> None:
        """Let the leases of a job outlive this process: fal has it, or may have it, in its queue."""
        self.keeper.hand_over(job.id)

    async def restore(self, job: Job) -> None:
        """Take the leases of a job in fal's queue, whether or not there is room."""
        await self.keeper.restore({job.id: scope_keys(job)})

    async def is_idle(self, job: Job) -> bool:
        """Return whether nothing of a job's subject is in flight, so that no process makes the job's call any more.

        False where each process counts for itself.
        """
        if not self._counters.is_shared:
            return False
        try:
            return await self._counters.in_use(scope_keys(job)[0], self._clock.now()) == 0
        except StoreUnavailable:
            return False

    async def in_use(self, tenant: str, subject: str, limits: LeaseLimits) -> dict[str, dict[str, int | None]]:
        """Return how many leases are taken, and the most there can be (None: no limit), of each scope of a subject."""
        now = self._clock.now()
        used = [await self._counters.in_use(key, now) for key in subject_scope_keys(tenant, subject)]
        scopes = zip(limits._fields, used, limits, strict=False)
        return {scope: {"used": taken, "limit": limit} for scope, taken, limit in scopes}


@lru_cache(maxsize=4096)
def _scopes_of(tenant: str, subject: str, limits: LeaseLimits) -> tuple[LeaseScope, ...]:
    # A scope without a limit is counted too: its plan may be lowered while jobs run.
    # `limits` may name one more than there are scopes: that of the guests.
    keys = subject_scope_keys(tenant, subject)
    return tuple(LeaseScope(key, limit or UNLIMITED) for key, limit in zip(keys, limits, strict=False))


def _too_many_jobs(place: int, limit: int) -> TooManyJobs:
    holder, scope = _HOLDERS[place]
    return TooManyJobs(
        f"{holder} {limit} calls and jobs in flight, which is all the plan allows.",
        retry_after=RETRY_SECONDS,
        scope=scope,
    )


#: For each scope, how a refusal speaks of it, and its scope there.
_HOLDERS = (
    ("This subject has", "subject"),
    ("This tenant has", "tenant"),
    ("All guests of this tenant together have", "tenant"),
)
