"""What the program asks of its persistence, and the plain records that pass through.

An error out of any of these methods means trouble with the store itself and is always `StoreUnavailable`; "there is
none" is an answer, not an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from proxy.catalog import app_of
from proxy.errors import StoreUnavailable
from proxy.stores.retention import RetentionStore


class DataRefused(StoreUnavailable):
    """The store works, and does not take this data: the same again would fail again, and other data not."""


class TransactionAborted(StoreUnavailable):
    """The database undid a transaction for the sake of another one, as it does in a deadlock."""


class OutcomeUnknown(StoreUnavailable):
    """The database did not answer to a commit: the transaction may have been done or not."""


@dataclass(frozen=True)
class TenantKey:
    """A tenant's long-lived key as it is kept: only a hash of its secret half."""

    id: str
    tenant: str
    name: str
    secret_hash: str = field(repr=False)
    created_at: float
    last_used_at: float | None = None


@dataclass(frozen=True)
class Revocation:
    """Sessions that no longer count: one by its id, or all of a subject that were issued before a moment."""

    tenant: str
    session_id: str | None
    subject: str | None
    issued_before: float
    expires_at: float


@dataclass(frozen=True)
class DirectoryRows:
    """All that decides who may do what, as one consistent reading. `plans` and `tenants` are JSON documents."""

    version: int
    plans: Mapping[str, Mapping[str, Any]]
    tenants: Sequence[Mapping[str, Any]]
    keys: Sequence[TenantKey]
    revocations: Sequence[Revocation]
    newest_revocation: int = 0


@dataclass(frozen=True)
class NewRevocations:
    """The revocations behind one that is known, as one consistent reading with the directory's version."""

    version: int
    newest: int
    revocations: Sequence[Revocation]


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
        checked_at: when fal last told its state.
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


Outcome = Granted | Exhausted | Stale


@dataclass(frozen=True)
class Deferred:
    """The store does not answer yet; the operation is done as soon as it does."""


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


@dataclass(frozen=True)
class Upload:
    """One file on its way to fal. `id` and `upstream_url` open it for whoever knows them, so neither is shown.

    Attributes:
        upstream_url: fal's signed URL; sealed while it is kept.
        size: of the whole file, once fal has it; None before that.
        in_parts: whether it comes in parts that are joined at the end, or at once.
        session_id, issued_at: of the session that asked for it, which may be revoked; of a tenant key, its id alone.
    """

    id: str = field(repr=False)
    tenant: str
    subject: str
    content_type: str
    file_url: str
    upstream_url: str = field(repr=False)
    max_bytes: int
    expires_at: float
    plan: str
    size: int | None = None
    in_parts: bool = False
    session_id: str | None = None
    issued_at: float | None = None


#: The number of the only part of a file that comes at once.
WHOLE = 0


@dataclass(frozen=True)
class Part:
    """One attempt to send a part of a file, or the whole of it.

    Attributes:
        attempt: tells it from later ones at the same part: only the latest counts.
        etag: fal's, once fal has the part.
    """

    upload: str = field(repr=False)
    number: int
    attempt: str
    size: int
    etag: str | None = None


class DirectoryStore(Protocol):
    """Tenants, plans, keys and revocations."""

    async def version(self) -> int:
        """A number that grows with every change."""

    async def load(self) -> DirectoryRows: ...

    async def apply(self, plans: Mapping[str, Mapping[str, Any]], tenants: Sequence[Mapping[str, Any]]) -> bool:
        """Make these plans and tenants hold; False when they did already. Tenants that are not named stay."""

    async def add_key(self, key: TenantKey) -> None: ...

    async def revoke_key(self, key_id: str) -> bool:
        """Whether there was such a key."""

    async def touch_key(self, key_id: str, used_at: float) -> None: ...

    async def revoke(self, revocation: Revocation) -> None:
        """Add a revocation; the version grows by one."""

    async def revocations_after(self, number: int) -> NewRevocations:
        """What was revoked since the revocation of this number."""


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
        """fal told that the job still lives."""

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


class Window(NamedTuple):
    """One rate limit of one scope: at most `limit` hits in any `seconds`."""

    key: str
    limit: int
    seconds: int


class Hit(NamedTuple):
    """What came of trying several windows at once.

    Attributes:
        refused: the place in the list of the window that is full and frees latest; None if all had room.
        retry_after: seconds until there is room; 0 if there is.
        remaining: hits left, for each window.
        reset_after: seconds until each window's oldest hit leaves it.
    """

    refused: int | None
    retry_after: float
    remaining: tuple[int, ...]
    reset_after: tuple[float, ...]


@dataclass(frozen=True)
class Pool:
    """The in-flight slots of one scope."""

    key: str
    limit: int


class LeasesLost(Exception):
    """The counters lost their data since this process last restored its leases: it gets no new ones before it does."""


@dataclass(frozen=True)
class Beat:
    """What a sign of life found.

    Attributes:
        epoch: which life of the data this is; to be adopted once the leases are restored.
        is_empty: the data was lost, with the leases of all processes.
        was_away: this process is new, or was taken for dead: others may have ended its leases.
        dead: holders that gave no sign for too long.
    """

    epoch: str
    is_empty: bool
    was_away: bool
    dead: Sequence[str] = ()


class Holder(Protocol):
    """This process as one that holds leases. What is held by a process that is dead can be ended by another."""

    async def beat(self, now: float, expires_at: float) -> Beat:
        """Give a sign of life, which counts until `expires_at`."""

    def adopt(self, epoch: str) -> None:
        """Take leases under this epoch from now on: those of this process are restored."""

    async def hand_over(self, leases: Sequence[str]) -> None:
        """Let leases outlive this process: fal has their jobs in its queue."""

    async def held_by(self, holder: str) -> Mapping[str, Sequence[str]]:
        """The leases of a holder, each with its pools as `free` takes them."""

    async def free(self, holder: str, leases: Mapping[str, Sequence[str]], now: float, expires_at: float) -> None:
        """End leases of a dead holder; one without pools is left to expire.

        A holder that lives again keeps its own: its sign of life counts from now on, until `expires_at` at the latest.
        """

    async def leave(self) -> None:
        """Be no holder any more: nothing is held."""


class Counters(Protocol):
    """Counts that need no durability: rate limits and leases.

    `now` and `expires_at` are the caller's clock. A store with a clock of its own dates by that, and takes from them
    only how long a lease lasts.
    """

    @property
    def is_shared(self) -> bool:
        """Whether all processes count together."""

    @property
    def holder(self) -> Holder: ...

    async def hit(self, windows: Sequence[Window], now: float, *, counts: bool = True) -> Hit:
        """Count one hit in every window, or in none if one of them is full. One round trip.

        Without `counts` it is only tried: the answer says whether there is room, and nothing is taken.
        """

    async def acquire(self, lease: str, pools: Sequence[Pool], now: float, expires_at: float) -> int | None:
        """Take a slot of every pool, or of none; the place of a pool that is full, else None. Idempotent.

        Raises:
            LeasesLost: the epoch is not the one that the holder adopted.
        """

    async def renew(self, lease: str, keys: Sequence[str], now: float, expires_at: float) -> None:
        """Keep the slots longer. A lease that was returned or has expired stays so."""

    async def restore(
        self, leases: Mapping[str, Sequence[str]], now: float, expires_at: float, *, holds: bool = False
    ) -> None:
        """Take the slots of leases, each with the keys of its pools, whether or not there is room.

        For calls that are known to be in flight. `holds`: they end with this process.
        """

    async def release(self, lease: str, keys: Sequence[str]) -> None: ...

    async def in_use(self, key: str, now: float) -> int: ...

    async def ping(self) -> None: ...

    async def close(self) -> None: ...


@dataclass(frozen=True)
class Claim:
    """One Idempotency-Key of one caller: for which body, which job came of it, and the answer once there is one.

    The key and the body are kept as hashes. `answer` is a JSON document, see `proxy.calls.idempotency`.
    """

    tenant: str
    subject: str
    key_hash: str
    body_hash: str
    job_id: str
    created_at: float
    answer: Mapping[str, Any] | None = field(default=None, repr=False)


class IdempotencyStore(Protocol):
    async def claim(self, claim: Claim, forgotten_before: float) -> Claim | None:
        """Take a key; None if it was free, else what holds it. Keys taken before `forgotten_before` are free again."""

    async def find(self, claim: Claim) -> Claim | None:
        """What holds the key now."""

    async def take_over(self, claim: Claim, from_job: str) -> bool:
        """Take a key from a job that never came to be; False if somebody else was quicker."""

    async def finish(self, claim: Claim, answer: Mapping[str, Any]) -> None: ...

    async def forget(self, claim: Claim) -> None:
        """Free the key again, as nothing came of it."""


class UploadStore(Protocol):
    """Files on their way. A part is begun before its bytes are sent and landed after; together they fit in the file."""

    async def add(self, upload: Upload) -> None: ...

    async def get(self, upload_id: str) -> Upload | None: ...

    async def begin(self, part: Part) -> bool | None:
        """Note an attempt, in the place of an earlier one; False if the file would be too large, None if it is over."""

    async def is_current(self, part: Part) -> bool:
        """Whether the attempt is still the latest, and the file not over."""

    async def land(self, part: Part, etag: str) -> bool:
        """fal has the part; False if it was begun again meanwhile, or the file is over: then this attempt is nothing.

        With the whole of a file, the file is over too.
        """

    async def drop(self, part: Part) -> None:
        """The attempt failed."""

    async def landed(self, upload_id: str) -> Sequence[Part]:
        """The parts that fal has, by their numbers."""

    async def finish(self, upload_id: str, size: int) -> bool:
        """fal has the whole file; False if it was finished before."""


class Stores(Protocol):
    """All persistence of one process, over one connection pool."""

    @property
    def directory(self) -> DirectoryStore: ...

    @property
    def ledger(self) -> Ledger: ...

    @property
    def uploads(self) -> UploadStore: ...

    @property
    def idempotency(self) -> IdempotencyStore: ...

    @property
    def retention(self) -> RetentionStore: ...

    async def prepare(self) -> None:
        """Make it usable, before anything else is asked of it."""

    async def ping(self) -> None:
        """Prove that the store takes what calls write, and has the schema of this version."""

    async def close(self) -> None: ...
