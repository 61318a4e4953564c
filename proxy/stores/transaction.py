"""One transaction of the ledger: a batch of operations, worked out in memory between locking and writing.

It cannot deadlock with another: every transaction locks first the jobs it changes, by id, then the accounts it touches,
in their order, then the accounts of grants, and inserts only jobs that no other one knows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from proxy.stores.grants import (
    GRANT_WINDOWS,
    Grant,
    GrantHolder,
    GrantStanding,
    find_missing,
    holder_of,
    pay_with_grants,
    split_use,
)
from proxy.stores.ledger import (
    OPEN_STATES,
    Accept,
    Account,
    Bucket,
    Charge,
    Exhausted,
    Granted,
    Job,
    Operation,
    Outcome,
    Reserve,
    Settle,
    Stale,
)

#: Charges as the column `charges` has them, in JSON: subject, unit, window, window_start, amount, limit.
PackedCharges = list[list[Any]]


_GRANTED = Granted()


class LedgerTransaction(Protocol):
    """What a batch asks of a database, within one transaction."""

    def find_jobs(self, ids: Sequence[str]) -> Collection[Job]:
        """Lock jobs, in the order given, until the transaction ends, and read them. Those that are missing are left
        out."""

    def find_accounts(self, buckets: Sequence[Bucket]) -> Mapping[Bucket, Account]:
        """Lock accounts, in the order given, until the transaction ends, and read them. Those that are missing are left
        out."""

    def find_grants(self, holders: Sequence[GrantHolder], at: float) -> Mapping[GrantHolder, Sequence[Grant]]:
        """Read, of each holder, the `MOST_SPENT` grants to be spent next: those that have something left, and expire
        after `at`. The one that expires first comes first, then the one with the lower id."""

    def create_accounts(self, buckets: Sequence[Bucket]) -> None:
        """Insert accounts with nothing on them, in the order given. Those that exist stay as they are."""

    def update_accounts(self, accounts: Mapping[Bucket, Account]) -> None:
        """Write accounts that are locked."""

    def add_jobs(self, jobs: Collection[Job]) -> None:
        """Insert jobs."""

    def update_jobs(self, jobs: Collection[Job]) -> None:
        """Write what changes in the life of jobs that are locked: all but what a call was let in with."""


class AccountsMissing(Exception):
    """Accounts that were believed to exist do not."""

    def __init__(self, buckets: Sequence[Bucket]) -> None:
        super().__init__(f"{len(buckets)} accounts")
        self.buckets = buckets


@dataclass
class Batch:
    """The state that the operations of one transaction see and change, before it is written."""

    jobs: dict[str, Job]
    accounts: dict[Bucket, Account] = field(default_factory=dict)
    grants: Mapping[GrantHolder, Sequence[Grant]] = field(default_factory=dict)
    _added: list[Job] = field(default_factory=list)
    _changed: dict[str, Job] = field(default_factory=dict)
    _touched: set[Bucket] = field(default_factory=set)

    def buckets_of(self, operations: Iterable[Operation]) -> list[Bucket]:
        charged = [charge for operation in operations for charge in self._charges_of(operation)]
        return sorted({charge.bucket for charge in charged})

    def _charges_of(self, operation: Operation) -> tuple[Charge, ...]:
        if isinstance(operation, Reserve):
            return operation.job.charges
        job = self.jobs.get(operation.job_id)
        return job.charges if job and isinstance(operation, Settle) else ()

    def list_holders(self, operations: Iterable[Operation]) -> list[GrantHolder]:
        """List the holders whose grants the operations may spend: they take more than is left of an account."""
        wanted: Counter[Bucket] = Counter()
        for operation in operations:
            for bucket, amount, *_ in self._charges_of(operation):
                if isinstance(operation, Settle):
                    amount = (operation.used or {}).get(bucket.unit, 0) - amount
                wanted[bucket] += max(0, amount)
        reserved = (one.job for one in operations if isinstance(one, Reserve) and one.has_grants)
        short = (
            holder_of(charge.bucket)
            for job in reserved
            for charge in job.charges
            if charge.limit - sum(self.accounts[charge.bucket]) < wanted[charge.bucket]
        )
        return sorted({holder for holder in short if holder is not None})

    def do(self, operation: Operation) -> Outcome:
        if isinstance(operation, Reserve):
            return self._reserve(operation.job)
        job = self.jobs.get(operation.job_id)
        if job is None:
            return Stale()
        if isinstance(operation, Accept):
            return self._accept(job, operation)
        return self._settle(job, operation) if job.state in OPEN_STATES else Stale()

    def _reserve(self, job: Job) -> Outcome:
        granted = self._list_grants(job) if self.grants else {}
        missing = find_missing(job.charges, self.accounts, granted)
        if isinstance(missing, Exhausted):
            return missing
        if missing:
            job = job._replace(charges=pay_with_grants(job.charges, missing, granted))
        exceeded: tuple[Charge, ...] = ()
        for charge in job.charges:
            self._add(charge.bucket, reserved=charge.amount)
            if charge.warns_at is not None and sum(self.accounts[charge.bucket]) > charge.warns_at:
                exceeded += (charge,)
        self.jobs[job.id] = job
        self._added.append(job)
        return Granted(exceeded) if exceeded else _GRANTED

    def _list_grants(self, job: Job) -> dict[GrantHolder, list[GrantStanding]]:
        """List the grants that a call can spend, of each holder in their order."""
        holders = {holder_of(charge.bucket) for charge in job.charges} & self.grants.keys()
        return {
            holder: [
                GrantStanding(one, self.accounts[one.bucket])
                for one in self.grants[holder]
                if one.is_open(job.submitted_at)
            ]
            for holder in holders
            if holder is not None
        }

    def _accept(self, job: Job, operation: Accept) -> Outcome:
        if job.state in OPEN_STATES:
            self._change(
                job._replace(state="accepted", request_id=operation.request_id, expires_at=operation.expires_at)
            )
        elif job.is_booked and job.request_id is None:
            # It was booked before its id could be written down: its owner may still ask for what it paid.
            self._change(job._replace(request_id=operation.request_id))
        elif job.request_id != operation.request_id:
            return Stale()
        return _GRANTED

    def _settle(self, job: Job, operation: Settle) -> Outcome:
        for charge, used in zip(job.charges, split_use(job.charges, operation.used or {}), strict=True):
            self._add(charge.bucket, reserved=-charge.amount, used=used)
        state = "released" if operation.used is None else "settled"
        self._change(job._replace(state=state, used=dict(operation.used or {}), checked_at=operation.at))
        return _GRANTED

    def _add(self, bucket: Bucket, *, reserved: int = 0, used: int = 0) -> None:
        account = self.accounts[bucket]
        # An account that was deleted knows nothing of what was reserved before.
        self.accounts[bucket] = Account(account.used + used, max(0, account.reserved + reserved))
        self._touched.add(bucket)

    def _change(self, job: Job) -> None:
        self.jobs[job.id] = job
        self._changed[job.id] = job

    def write(self, transaction: LedgerTransaction) -> None:
        if self._touched:
            transaction.update_accounts({bucket: self.accounts[bucket] for bucket in sorted(self._touched)})
        if self._added:
            transaction.add_jobs([self._changed.pop(job.id, job) for job in self._added])
        if self._changed:
            transaction.update_jobs(self._changed.values())


def commit_operations(
    transaction: LedgerTransaction, *, operations: Sequence[Operation], known: Container[Bucket]
) -> tuple[Batch, list[Outcome]]:
    """Do a batch. `known` are accounts that exist, so that they need not be created.

    Raises:
        AccountsMissing: some of these are not there any more.
    """
    batch = Batch(_lock_jobs(transaction, operations))
    buckets = batch.buckets_of(operations)
    granted = [one for one in buckets if one.window in GRANT_WINDOWS]
    batch.accounts = _lock_accounts(transaction, [one for one in buckets if one.window not in GRANT_WINDOWS], known)
    batch.grants = _find_grants(transaction, batch, operations)
    granted += (grant.bucket for grants in batch.grants.values() for grant in grants)
    batch.accounts |= _lock_accounts(transaction, sorted(set(granted)), known)
    outcomes = [batch.do(operation) for operation in operations]
    batch.write(transaction)
    return batch, outcomes


def _find_grants(
    transaction: LedgerTransaction, batch: Batch, operations: Sequence[Operation]
) -> Mapping[GrantHolder, Sequence[Grant]]:
    """Find the grants that a batch may spend. If no tenant has any, or nothing is used up, no statement is needed."""
    times = [one.job.submitted_at for one in operations if isinstance(one, Reserve) and one.has_grants]
    holders = batch.list_holders(operations) if times else []
    return transaction.find_grants(holders, min(times)) if holders else {}


def _lock_jobs(transaction: LedgerTransaction, operations: Iterable[Operation]) -> dict[str, Job]:
    """Lock the jobs that a batch accepts or settles: a job is settled once, by the first to come."""
    ids = {operation.job_id for operation in operations if not isinstance(operation, Reserve)}
    return {job.id: job for job in transaction.find_jobs(sorted(ids))} if ids else {}


def _lock_accounts(
    transaction: LedgerTransaction, buckets: Sequence[Bucket], known: Container[Bucket]
) -> dict[Bucket, Account]:
    if not buckets:
        return {}
    if fresh := [bucket for bucket in buckets if bucket not in known]:
        transaction.create_accounts(fresh)
    locked = dict(transaction.find_accounts(buckets))
    if len(locked) < len(buckets):
        raise AccountsMissing([bucket for bucket in buckets if bucket not in locked])
    return locked


def pack_charges(job: Job) -> PackedCharges:
    return [
        [bucket.subject, bucket.unit, bucket.window, bucket.window_start, amount, limit]
        for bucket, amount, limit, *_ in job.charges
    ]


def unpack_charges(tenant: str, packed: PackedCharges) -> tuple[Charge, ...]:
    return tuple(
        Charge(Bucket(tenant, subject, unit, window, start), amount, limit)
        for subject, unit, window, start, amount, limit in packed
    )
