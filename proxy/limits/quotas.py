"""Quotas: what a call may use at most is reserved before anything is sent, and what it used is booked exactly once."""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

from proxy.catalog import TOKEN_FIELDS, Endpoint
from proxy.clock import Clock
from proxy.errors import InvalidInput, NotFound
from proxy.ids import draw_id
from proxy.limits.accounts import Payer, buckets_of
from proxy.limits.learned import Learned
from proxy.limits.learned_keeper import LearnedKeeper
from proxy.limits.quota_notices import QuotaWarnings, quota_exceeded
from proxy.numbers import MOST
from proxy.stores.batching import LedgerBatcher, LedgerTimeouts
from proxy.stores.grants import GrantHolder, GrantStanding, GrantStore, find_missing
from proxy.stores.learned import LearnedStore
from proxy.stores.ledger import UPLOAD as UPLOAD
from proxy.stores.ledger import (
    Accept,
    Charge,
    Deferred,
    Exhausted,
    Granted,
    Job,
    Ledger,
    Outcome,
    Reserve,
    Settle,
    SizeClass,
    Stale,
)
from proxy.stores.ledger_metrics import LedgerMetrics
from proxy.stores.spool import Spool
from proxy.tenants.terms import MILLION as MILLION
from proxy.tenants.terms import Terms

#: After so many seconds a run or stream is over, also if nothing was heard of it; fal's own limits are lower.
CALL_SECONDS = 1_200.0
#: A queued job lives for as long as fal says so, and for so many seconds without news.
JOB_SECONDS = 86_400.0
#: The time of fal's machines that is reserved for a call; the time that it took is booked.
COMPUTE_SECONDS_CEILING = 60.0
#: The holders whose accounts let in a call that needs less than it reserves. Other accounts bound a stolen session or a
#: script, which could go beyond the limit by one call again and again.
MAY_EXCEED = frozenset({"subject", "tenant"})


def ceilings(endpoint: Endpoint, body: Mapping[str, Any], price: float) -> dict[str, int]:
    """Return the most that one call can use, by unit, in millionths; `price` is that of a second."""
    tokens = [int(body[name]) for name in TOKEN_FIELDS if name in body]
    seconds = COMPUTE_SECONDS_CEILING
    return {
        "requests": MILLION,
        "tokens": max(tokens, default=endpoint.default_tokens or 0) * MILLION,
        "compute_seconds": int(seconds * MILLION),
        "usd": int(seconds * price * MILLION),
    }


def list_charges(
    terms: Terms, payer: Payer, amounts: Mapping[str, int], now: float, needs: Mapping[str, int] | None = None
) -> tuple[Charge, ...]:
    """List what a call takes from each account that binds it; `needs` is what must be left, by unit, if it is less."""
    charges = [
        Charge(
            bucket,
            amounts[one.unit],
            MOST if one.limit is None else one.limit,
            one.warns_at,
            needs[one.unit] if needs is not None and one.per in MAY_EXCEED else None,
        )
        for one, bucket in zip(terms.accounts, buckets_of(terms.accounts, payer, now), strict=True)
        if one.unit in amounts
    ]
    return tuple(charges)


def new_job_id(now: float) -> str:
    """Make an id that grows with time: what is written together lies together, so a transaction changes fewer pages."""
    return f"{int(now * 1000):012x}{draw_id(20)}"


def new_job(
    terms: Terms,
    payer: Payer,
    kind: str,
    endpoint: str,
    amounts: Mapping[str, int],
    now: float,
    *,
    needs: Mapping[str, int] | None = None,
    size: SizeClass | None = None,
) -> Job:
    """Make the record of a call to be made, with the most it can use, and what it needs as `list_charges`.

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
        tenant=payer.tenant,
        subject=payer.subject,
        submitted_at=now,
        expires_at=now + CALL_SECONDS,
        charges=list_charges(terms, payer, amounts, now, needs),
        checked_at=now,
        used=dict(amounts),
        # Of an upload that a tenant key began, the payer has the id of the key.
        session=(payer.session_id or None) if payer.subject else None,
        tags=payer.tags,
        size=size,
    )


class Quotas:
    """The ledger as calls use it.

    Args:
        timeouts: how long callers wait for the ledger.
        spool: keeps entries that the process could not write before its end.
        metrics: counts charges and refusals; None to count nothing.
        grants: pay where a quota is used up; None for no grants.
        list_granted: lists the tenants that ever had a grant.
        learned_store: keeps what calls usually use; None to keep nothing.

    Attributes:
        learned: what calls usually use.
    """

    def __init__(
        self,
        ledger: Ledger,
        clock: Clock,
        timeouts: LedgerTimeouts | None = None,
        spool: Spool | None = None,
        metrics: LedgerMetrics | None = None,
        grants: GrantStore | None = None,
        list_granted: Callable[[], Container[str]] = tuple,
        learned_store: LearnedStore | None = None,
    ) -> None:
        self.learned = Learned()
        self._keeper = None if learned_store is None else LearnedKeeper(self.learned, learned_store, clock)
        self._ledger = ledger
        self._batcher = LedgerBatcher(ledger, timeouts, spool, metrics)
        self._clock = clock
        self._grants = grants
        self._list_granted = list_granted
        self._warnings = QuotaWarnings()

    def now(self) -> float:
        return self._clock.now()

    async def reserve(self, job: Job) -> None:
        """Reserve the most that a call can use.

        Raises:
            QuotaExceeded: an account has not that much left; nothing was taken from any.
            StoreUnavailable: it could not be written down, so it does not hold.
        """
        outcome = await self._batcher.commit(Reserve(job, job.tenant in self._list_granted()))
        if isinstance(outcome, Exhausted):
            raise quota_exceeded(outcome, self._clock.now())
        if isinstance(outcome, Granted) and outcome.exceeded:
            self._warnings.log(outcome.exceeded)

    async def check(self, job: Job) -> None:
        """Refuse a call that `reserve` would refuse now; reserve nothing.

        Raises:
            QuotaExceeded: an account has not that much left.
            StoreUnavailable: the ledger does not answer.
        """
        accounts = await self._ledger.accounts([charge.bucket for charge in job.charges])
        granted: Mapping[GrantHolder, Sequence[GrantStanding]] = {}
        if self._grants is not None and job.tenant in self._list_granted():
            granted = await self._grants.list_spendable(job)
        missing = find_missing(job.charges, accounts, granted)
        if isinstance(missing, Exhausted):
            raise quota_exceeded(missing, self._clock.now())

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

    def settle(self, job_id: str, used: Mapping[str, int] | None) -> Future[Outcome | Deferred]:
        """Book what was used, in millionths by unit, or with None free everything. Only the first settlement counts.

        It is on its way when this returns. If the database does not answer in time, it is booked as soon as it does.
        """
        return self._batcher.commit(Settle(job_id, used, self._clock.now()))

    def count_waiting(self) -> int:
        """Count the entries that wait for a database that does not answer."""
        return len(self._batcher)

    def start(self) -> None:
        """Write what a process before this one could not, and read what it learned."""
        self._batcher.start()
        if self._keeper is not None:
            self._keeper.start()

    async def spool(self) -> None:
        """Keep in files what is not written yet."""
        await self._batcher.spool()

    async def close(self) -> None:
        """Write what was asked for, to the spool if the database does not answer."""
        if self._keeper is not None:
            await self._keeper.close()
        await self._batcher.close()
