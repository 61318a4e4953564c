"""Quotas: what a call may use at most is reserved before anything is sent, and what it used is booked exactly once."""

from __future__ import annotations

import secrets
from calendar import monthrange
from collections.abc import Awaitable, Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from proxy.catalog import TOKEN_FIELDS, Endpoint
from proxy.clock import Clock
from proxy.errors import InvalidInput, NotFound, QuotaExceeded
from proxy.numbers import MOST
from proxy.stores.batching import LedgerBatcher, LedgerTimeouts
from proxy.stores.ledger import Accept, Bucket, Charge, Deferred, Exhausted, Job, Ledger, Reserve, Settle, Stale
from proxy.stores.spool import Spool
from proxy.tenants.terms import MILLION as MILLION
from proxy.tenants.terms import AccountLimit, Terms

#: A run or stream that nothing more is heard of is over after this; fal's own limits are below it.
CALL_SECONDS = 1_200.0
#: A queued job lives as long as fal says so; this is how long without any word.
JOB_SECONDS = 86_400.0
#: What a call may take of fal's machines, for plans that ration it; what it really took is booked.
COMPUTE_SECONDS_CEILING = 60.0
#: The kind of an upload's entry: it takes no lease.
UPLOAD = "upload"
#: No subject can be called these: they begin with a space.
TENANT_ITSELF = " tenant key"
ALL_GUESTS = " guests"


WINDOWS = ("minute", "hour", "day", "month")


def window_start(window: str, now: float) -> int:
    """The start of the calendar window, UTC, that a moment lies in."""
    return _window_start(window, int(now // 60))


@lru_cache(maxsize=64)
def _window_start(window: str, minute: int) -> int:
    moment = datetime.fromtimestamp(minute * 60, UTC)
    if window in ("hour", "day", "month"):
        moment = moment.replace(minute=0)
    if window in ("day", "month"):
        moment = moment.replace(hour=0)
    if window == "month":
        moment = moment.replace(day=1)
    return int(moment.timestamp())


def window_end(window: str, start: int) -> int:
    """The start of the window after it."""
    moment = datetime.fromtimestamp(start, UTC)
    days = monthrange(moment.year, moment.month)[1]
    length = {"minute": timedelta(minutes=1), "hour": timedelta(hours=1), "day": timedelta(days=1)}
    return int((moment + length.get(window, timedelta(days=days))).timestamp())


def ceilings(endpoint: Endpoint, body: Mapping[str, Any]) -> dict[str, int]:
    """The most that one call can use, by unit, in millionths."""
    tokens = [int(body[name]) for name in TOKEN_FIELDS if name in body]
    seconds = COMPUTE_SECONDS_CEILING
    return {
        "requests": MILLION,
        "tokens": max(tokens, default=endpoint.default_tokens or 0) * MILLION,
        "compute_seconds": int(seconds * MILLION),
        "usd": int(seconds * (endpoint.price_per_compute_second or 0) * MILLION),
    }


def list_charges(terms: Terms, tenant: str, subject: str, amounts: Mapping[str, int], now: float) -> tuple[Charge, ...]:
    """What a call takes from each account that binds it."""
    return tuple(
        Charge(bucket_of(one, tenant, subject, now), amounts[one.unit], one.limit)
        for one in terms.accounts
        if one.unit in amounts
    )


def new_job_id(now: float) -> str:
    """Ids grow with time: what is written together lies together, so that a transaction changes fewer pages."""
    return f"{int(now * 1000):012x}{secrets.token_hex(10)}"


def new_job(
    terms: Terms, tenant: str, subject: str, kind: str, endpoint: str, amounts: Mapping[str, int], now: float
) -> Job:
    """The record of a call that is about to be made, with the most it can use.

    Raises:
        InvalidInput: it can use more than a ledger holds. Written down, that would fail the calls of others too.
    """
    if max(amounts.values()) > MOST:
        problem = "This call could use more than any quota holds"
        raise InvalidInput([{"loc": ["body"], "msg": problem, "type": "less_than_equal"}])
    return Job(
        id=new_job_id(now),
        kind=kind,
        endpoint=endpoint,
        tenant=tenant,
        subject=subject,
        submitted_at=now,
        expires_at=now + CALL_SECONDS,
        charges=list_charges(terms, tenant, subject, amounts, now),
        checked_at=now,
        used=dict(amounts),
    )


def bucket_of(limit: AccountLimit, tenant: str, subject: str, now: float) -> Bucket:
    """The account that a limit is about, for a call made now."""
    # The tenant's own calls, made with its key, have no subject: their account must not be that of the tenant.
    name = (subject or TENANT_ITSELF) if limit.per == "subject" else _NAMES[limit.per]
    return Bucket(tenant, name, limit.unit, limit.window, window_start(limit.window, now))


#: Of the accounts that are no single subject's.
_NAMES = {"tenant": "", "guests": ALL_GUESTS}
_SPOKEN = {"": "this tenant", ALL_GUESTS: "all guests of this tenant"}


def quota_exceeded(refusal: Exhausted, now: float) -> QuotaExceeded:
    """The refusal in words: which account, and when it is filled again."""
    bucket = refusal.bucket
    holder = _SPOKEN.get(bucket.subject, "this subject")
    wait = window_end(bucket.window, bucket.window_start) - now
    return QuotaExceeded(
        f"The {bucket.window}'s quota of {bucket.unit} of {holder} is used up: {refusal.left / MILLION:g} left.",
        retry_after=wait,
        scope="tenant" if bucket.subject in _SPOKEN else "subject",
    )


class Quotas:
    """The ledger as the calls use it.

    Args:
        timeouts: how long callers wait for it.
        spool: what keeps entries that a process could not write before its end.
    """

    def __init__(
        self, ledger: Ledger, clock: Clock, timeouts: LedgerTimeouts | None = None, spool: Spool | None = None
    ) -> None:
        self._batcher = LedgerBatcher(ledger, timeouts, spool)
        self._clock = clock

    def now(self) -> float:
        return self._clock.now()

    async def reserve(self, job: Job) -> None:
        """Reserve the most that a call can use.

        Raises:
            QuotaExceeded: an account has not that much left; nothing was taken from any.
            StoreUnavailable: it could not be written down, so it does not hold.
        """
        outcome = await self._batcher.commit(Reserve(job))
        if isinstance(outcome, Exhausted):
            raise quota_exceeded(outcome, self._clock.now())

    async def accept(self, job: Job, request_id: str) -> bool:
        """Note under which id fal has a job in its queue.

        False if the database does not answer in time; the id is written down as soon as it does.

        Raises:
            DataRefused: another job has that id.
            NotFound: the job was released meanwhile.
        """
        outcome = await self._batcher.commit(Accept(job.id, request_id, self._clock.now() + JOB_SECONDS))
        if isinstance(outcome, Stale):
            raise NotFound
        return not isinstance(outcome, Deferred)

    def settle(self, job_id: str, used: Mapping[str, int] | None) -> Awaitable[object]:
        """Book what was used, in millionths by unit, or with None free everything. Only the first settlement counts.

        It is on its way when this returns. If the database does not answer in time, it is booked as soon as it does.
        """
        return self._batcher.commit(Settle(job_id, used, self._clock.now()))

    def waiting(self) -> int:
        """How many entries wait for a database that does not answer."""
        return len(self._batcher)

    def start(self) -> None:
        """Write what a process before this one could not."""
        self._batcher.start()

    async def spool(self) -> None:
        """Keep in files what is not written yet."""
        await self._batcher.spool()

    async def close(self) -> None:
        """Write what was asked for, to the spool if the database does not answer."""
        await self._batcher.close()
