"""The durable record of jobs and accounts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, Protocol

from proxy.catalog import app_of
from proxy.stores.usage import UsageLedger

#: The states of a job that is not over, and those of one that is.
OPEN_STATES = ("reserved", "accepted")
#: Booked, and either still to be counted in the sums that usage is reported from, or counted.
BOOKED_STATES = ("settled", "counted")
OVER_STATES = (*BOOKED_STATES, "released")


#: The kind of an upload's entry: it takes no lease.
UPLOAD = "upload"
#: The name of the key of fal's that `FAL_KEY` gives.
DEFAULT_UPSTREAM = "default"
#: The accounts of addresses and sessions begin so; no subject begins with a space.
ADDRESS_PREFIX, SESSION_PREFIX = " address ", " session "
#: The account of the calls that a tenant makes with its key.
TENANT_ITSELF = " tenant key"


class Bucket(NamedTuple):
    """One account of the ledger: what a tenant, or one of its subjects, uses of a unit in one window.

    Attributes:
        subject: '' for the account of the whole tenant.
        window_start: seconds since 1970 UTC; 0 for a window without an end.
    """

    tenant: str
    subject: str
    unit: str
    window: str
    window_start: int


class Charge(NamedTuple):
    """What one call takes from one account. Amounts are millionths of the unit, so that sums are exact.

    Attributes:
        warns_at: what the account may reach without a warning; not kept with the job.
        needed: what the account must have left, if that is less than the amount; not kept with the job.
    """

    bucket: Bucket
    amount: int
    limit: int
    warns_at: int | None = None
    needed: int | None = None


class SizeClass(NamedTuple):
    """Calls that are alike in what they use.

    Attributes:
        picture: the size of the pictures in their input, in powers of four of a byte or a pixel.
        tokens: their token ceiling, in powers of two.
    """

    endpoint: str
    picture: int
    tokens: int


_NOTHING_USED: Mapping[str, int] = MappingProxyType({})


class Job(NamedTuple):
    """One call that costs something, from its reservation to its settlement: a queued request, a run or a stream.

    A tuple: a call makes two of them, and a dataclass takes three times as long.

    Attributes:
        id: ours, made before anything is sent.
        request_id: fal's, of a queued request that fal accepted; None before that, and for runs and streams.
        state: `reserved`, `accepted` (fal has it in its queue), then `released`, or `settled` and later `counted`.
        charges: what is reserved for it; one for each account at most.
        expires_at: when a call that nothing more is heard of is over: a crash cannot keep its reservation.
        checked_at: when fal last gave its state.
        used: by unit, in millionths: the most it can use, and once it is settled what was booked.
        upstream: the name of the key of fal's that it is submitted with.
        session: the id of the session that it came with; None if it came with a tenant key.
        tags: those of that session.
        size: which calls are like it; not kept in the ledger.
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
    used: Mapping[str, int] = _NOTHING_USED
    upstream: str = DEFAULT_UPSTREAM
    session: str | None = None
    tags: tuple[str, ...] = ()
    size: SizeClass | None = None

    @property
    def app(self) -> str:
        return app_of(self.endpoint)

    @property
    def is_over(self) -> bool:
        return self.state in OVER_STATES

    @property
    def is_booked(self) -> bool:
        """Whether what it used is booked."""
        return self.state in BOOKED_STATES


@dataclass(frozen=True)
class JobFilter:
    """Which jobs of a tenant a listing has. What is None excludes none.

    Attributes:
        is_queued: only calls that fal accepted into its queue; not runs and streams.
        is_over: settled or released, or neither.
        since: submitted then or later, in seconds since 1970 UTC.
        after: time of submission and id of the last job of the page before.
    """

    tenant: str
    subject: str | None = None
    endpoints: Sequence[str] | None = None
    is_queued: bool = False
    is_over: bool | None = None
    since: float | None = None
    after: tuple[float, str] | None = None


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
    """Take a job's charges, all or none, and note the job.

    Attributes:
        has_grants: whether the tenant was ever given a grant, so that it is looked for where a quota is used up.
    """

    job: Job
    has_grants: bool = False


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
    """The operation was done.

    Attributes:
        exceeded: the charges of a reservation whose accounts are now above what warns.
    """

    exceeded: tuple[Charge, ...] = ()


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


class Account(NamedTuple):
    """What stands on one account, in millionths."""

    used: int = 0
    reserved: int = 0


#: Is shown what a transaction has committed: the jobs and the accounts it touched, as they are now, and its outcomes.
LedgerListener = Callable[[Collection[Job], Mapping[Bucket, Account], Sequence[Outcome]], None]


class Ledger(UsageLedger, Protocol):
    """The durable record of reservations, of what was used, and of whose every job is."""

    def listen(self, listener: LedgerListener) -> None:
        """Have every transaction of this process shown to a listener once it is committed."""

    async def commit(self, operations: Sequence[Operation]) -> list[Outcome]:
        """Do all operations in one transaction, in this order, each with its own outcome."""

    async def find(self, request_id: str) -> Job | None:
        """Find the job that fal knows by this id."""

    async def get(self, job_id: str) -> Job | None: ...

    async def open_jobs(self) -> Sequence[OpenJob]:
        """List all jobs that are neither settled nor released."""

    async def count_in_flight(self) -> Mapping[str, int]:
        """Count the calls and jobs that fal has by each of its keys, by the key's name; no uploads."""

    async def queued_among(self, job_ids: Sequence[str]) -> set[str]:
        """Return which of these jobs fal has in its queue."""

    async def take_due(self, checked_before: float, now: float, most: int) -> Sequence[Job]:
        """Open jobs that nothing was heard of since, marked as checked now so that no other process takes them too."""

    async def renew_jobs(self, job_ids: Sequence[str], at: float, expires_at: float) -> None:
        """Note that fal still has these jobs, or that their content is on its way."""

    async def accounts(self, buckets: Sequence[Bucket]) -> Mapping[Bucket, Account]:
        """Return what stands on these accounts; those that are missing were never used."""

    async def list_jobs(self, wanted: JobFilter, limit: int) -> Sequence[Job]:
        """List jobs, the newest first."""
