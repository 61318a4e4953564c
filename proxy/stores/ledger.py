"""The durable record of jobs and accounts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from proxy.catalog import app_of


class Bucket(NamedTuple):
    """One account of the ledger: what a tenant, or one of its subjects, uses of a unit in one window.

    Attributes:
        subject: '' for the account of the whole tenant.
        window_start: seconds since 1970 UTC.
    """

    tenant: str
    subject: str
    unit: str
    window: str
    window_start: int


class Charge(NamedTuple):
    """What one call takes from one account. Amounts are millionths of the unit, so that sums are exact."""

    bucket: Bucket
    amount: int
    limit: int


@dataclass(frozen=True)
class Job:
    """One call that costs something, from its reservation to its settlement: a queued request, a run or a stream.

    Attributes:
        id: ours, made before anything is sent.
        request_id: fal's, of a queued request that fal accepted; None before that, and for runs and streams.
        state: `reserved`, `accepted` (fal has it in its queue), then `settled` or `released`.
        charges: what is reserved for it; one for each account at most.
        expires_at: when a call that nothing more is heard of is over: a crash cannot keep its reservation.
        checked_at: when fal last gave its state.
        used: by unit, in millionths: the most it can use, and once it is settled what was booked.
    """

    id: str
    kind: str
    endpoint: str
    tenant: str
    subject: str
    submitted_at: float
    expires_at: float
    charges: tuple[Charge, ...] = ()
    request_id: str | None = None
    state: str = "reserved"
    checked_at: float = 0.0
    used: Mapping[str, int] = field(default_factory=dict)

    @property
    def app(self) -> str:
        return app_of(self.endpoint)


class OpenJob(NamedTuple):
    """What the leases have to know of a job that is neither settled nor released: there may be very many."""

    id: str
    kind: str
    tenant: str
    subject: str
    state: str
    expires_at: float


@dataclass(frozen=True)
class Reserve:
    """Take a job's charges, all or none, and note the job."""

    job: Job


@dataclass(frozen=True)
class Accept:
    """fal has the job in its queue, under this id."""

    job_id: str
    request_id: str
    expires_at: float


@dataclass(frozen=True)
class Settle:
    """Book what was used, by unit in millionths, and free the rest; `used` of None frees everything."""

    job_id: str
    used: Mapping[str, int] | None
    at: float


Operation = Reserve | Accept | Settle


@dataclass(frozen=True)
class Granted:
    """The operation was done."""


@dataclass(frozen=True)
class Exhausted:
    """A reservation was refused: this account has only so much left, in millionths."""

    bucket: Bucket
    left: int


@dataclass(frozen=True)
class Stale:
    """The job is not there, or was settled before: nothing was done."""


@dataclass(frozen=True)
class Deferred:
    """The store does not answer yet; the operation is done as soon as it does."""


Outcome = Granted | Exhausted | Stale


#: What calls are counted in, as the ledger names it.
UNITS = ("requests", "tokens", "compute_seconds", "usd", "upload_bytes")


@dataclass(frozen=True)
class UsageRow:
    """What was used in one group of jobs. Amounts in millionths."""

    day: str | None
    endpoint: str | None
    subject: str | None
    calls: int
    used: Mapping[str, int]


class Account(NamedTuple):
    """What stands on one account, in millionths."""

    used: int = 0
    reserved: int = 0


class Ledger(Protocol):
    """The durable record of reservations, of what was used, and of whose every job is."""

    async def commit(self, operations: Sequence[Operation]) -> list[Outcome]:
        """Do all operations in one transaction, in this order, each with its own outcome."""

    async def find(self, request_id: str) -> Job | None:
        """The job that fal knows by this id."""

    async def get(self, job_id: str) -> Job | None: ...

    async def open_jobs(self) -> Sequence[OpenJob]:
        """All jobs that are neither settled nor released."""

    async def queued_among(self, job_ids: Sequence[str]) -> set[str]:
        """Which of these jobs fal has in its queue."""

    async def take_due(self, checked_before: float, now: float, most: int) -> Sequence[Job]:
        """Open jobs that nothing was heard of since, marked as checked now so that no other process takes them too."""

    async def heard_of(self, job_id: str, at: float, expires_at: float) -> None:
        """Note that fal still has the job."""

    async def accounts(self, buckets: Sequence[Bucket]) -> Mapping[Bucket, Account]:
        """What stands on these accounts; those that are missing were never used."""

    async def usage(
        self, tenant: str, subject: str | None, since: float, until: float, group_by: frozenset[str]
    ) -> Sequence[UsageRow]:
        """What jobs submitted in [since, until) used, by `day`, `endpoint` or `subject`."""

    async def jobs_of(self, tenant: str, subject: str | None, most: int) -> Sequence[Job]:
        """The newest jobs of a tenant, or of one of its subjects."""

    async def queued_jobs_of(
        self, tenant: str, subject: str, most: int, endpoints: Sequence[str] | None = None
    ) -> Sequence[Job]:
        """The newest jobs of a subject that fal took into its queue; of some endpoints only, if these are given."""
