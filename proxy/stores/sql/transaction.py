"""One transaction of the ledger: a batch of operations, worked out in memory between locking and writing.

It cannot deadlock with another: every transaction locks first the jobs it changes, by id, then the accounts it touches,
in their order, and inserts only jobs that no other one knows. The number of statements does not grow with the batch.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import bindparam, insert, select, tuple_, update

from proxy.stores.ledger import (
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
from proxy.stores.sql.database import insert_missing
from proxy.stores.sql.direct import Executor
from proxy.stores.sql.schema import jobs, quota_usage

OPEN_STATES = ("reserved", "accepted")
OVER_STATES = ("settled", "released")
#: Built once, as all expressions are that do not change: a new one of this kind leaves cycles of objects behind.
IS_OPEN = jobs.c.state.in_(OPEN_STATES)
_BUCKET = tuple(quota_usage.c[name] for name in ("tenant", "subject", "unit", "window", "window_start"))


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
        for charge in job.charges:
            account = self.accounts[charge.bucket]
            left = charge.limit - account.used - account.reserved
            if charge.amount > left:
                return Exhausted(charge.bucket, max(0, left))
        for charge in job.charges:
            self._add(charge.bucket, reserved=charge.amount)
        self.jobs[job.id] = job
        self._added.append(job)
        return Granted()

    def _accept(self, job: Job, operation: Accept) -> Outcome:
        if job.state in OPEN_STATES:
            self._change(
                replace(job, state="accepted", request_id=operation.request_id, expires_at=operation.expires_at)
            )
        elif job.state == "settled" and job.request_id is None:
            # It was booked before its id could be written down: its owner may still ask for what it paid.
            self._change(replace(job, request_id=operation.request_id))
        elif job.request_id != operation.request_id:
            return Stale()
        return Granted()

    def _settle(self, job: Job, operation: Settle) -> Outcome:
        for charge in job.charges:
            used = (operation.used or {}).get(charge.bucket.unit, 0)
            self._add(charge.bucket, reserved=-charge.amount, used=used)
        state = "released" if operation.used is None else "settled"
        self._change(replace(job, state=state, used=dict(operation.used or {}), checked_at=operation.at))
        return Granted()

    def _add(self, bucket: Bucket, *, reserved: int = 0, used: int = 0) -> None:
        account = self.accounts[bucket]
        # An account that was deleted knows nothing of what was reserved before.
        self.accounts[bucket] = Account(account.used + used, max(0, account.reserved + reserved))
        self._touched.add(bucket)

    def _change(self, job: Job) -> None:
        self.jobs[job.id] = job
        self._changed[job.id] = job

    def write(self, connection: Executor) -> None:
        if self._touched:
            values = [_account_values(bucket, self.accounts[bucket]) for bucket in sorted(self._touched)]
            connection.execute(_set_account, values)
        added = [_job_values(self._changed.pop(job.id, job)) for job in self._added]
        if added:
            connection.execute(_add_job, added)
        if self._changed:
            connection.execute(_set_job, [_changed_values(job) for job in self._changed.values()])


#: Statements are built once: building one costs more than running it.
_add_job = insert(jobs)
_find_jobs = select(jobs).where(jobs.c.id.in_(bindparam("ids", expanding=True))).order_by(jobs.c.id).with_for_update()
find_accounts = select(quota_usage).where(tuple_(*_BUCKET).in_(bindparam("keys", expanding=True))).order_by(*_BUCKET)
_lock_accounts = find_accounts.with_for_update()
_set_account = (
    update(quota_usage)
    .where(*(column == bindparam(f"of_{column.name}") for column in _BUCKET))
    .values(used=bindparam("now_used"), reserved=bindparam("now_reserved"))
)
_set_job = (
    update(jobs)
    .where(jobs.c.id == bindparam("of_id"))
    .values({name: bindparam(f"now_{name}") for name in ("request_id", "state", "used", "checked_at", "expires_at")})
)


def commit_operations(
    connection: Executor, *, operations: Sequence[Operation], known: Container[Bucket]
) -> tuple[Batch, list[Outcome]]:
    """Do a batch within the transaction of a connection."""
    batch = Batch(_jobs_of(connection, operations))
    batch.accounts = _lock_accounts_of(connection, batch.buckets_of(operations), known)
    outcomes = [batch.do(operation) for operation in operations]
    batch.write(connection)
    return batch, outcomes


def _jobs_of(connection: Executor, operations: Iterable[Operation]) -> dict[str, Job]:
    """The jobs that a batch accepts or settles, locked: a job is settled once, by the first to come."""
    ids = sorted({operation.job_id for operation in operations if not isinstance(operation, Reserve)})
    if not ids:
        return {}
    return {row.id: job_of(row) for row in connection.execute(_find_jobs, {"ids": ids})}


def _lock_accounts_of(
    connection: Executor, buckets: Sequence[Bucket], known: Container[Bucket]
) -> dict[Bucket, Account]:
    """The accounts, made where there are none, and locked in the order given until the transaction ends.

    `known` are those that were there before, so that they need not be made.

    Raises:
        AccountsMissing: some of these are not there any more.
    """
    if not buckets:
        return {}
    if fresh := [_account_values(bucket, Account(), prefix="") for bucket in buckets if bucket not in known]:
        connection.execute(insert_missing(connection.dialect.name, quota_usage), fresh)
    rows = connection.execute(_lock_accounts, {"keys": account_keys(buckets)})
    locked = {bucket_of(row): Account(row.used, row.reserved) for row in rows}
    if len(locked) < len(buckets):
        raise AccountsMissing([bucket for bucket in buckets if bucket not in locked])
    return locked


def account_keys(buckets: Sequence[Bucket]) -> list[tuple[str, str, str, str, int]]:
    return [(one.tenant, one.subject, one.unit, one.window, one.window_start) for one in buckets]


def _account_values(bucket: Bucket, account: Account, prefix: str = "of_") -> dict[str, Any]:
    key = {f"{prefix}{column.name}": getattr(bucket, column.name) for column in _BUCKET}
    now = "now_" if prefix else ""
    return key | {f"{now}used": account.used, f"{now}reserved": account.reserved}


def _changed_values(job: Job) -> dict[str, Any]:
    return {
        "of_id": job.id,
        "now_request_id": job.request_id,
        "now_state": job.state,
        "now_used": dict(job.used),
        "now_checked_at": job.checked_at,
        "now_expires_at": job.expires_at,
    }


def _job_values(job: Job) -> dict[str, Any]:
    values = {column.name: getattr(job, column.name) for column in jobs.c}
    charges = [[one.bucket.subject, one.bucket.unit, one.bucket.window, one.bucket.window_start] for one in job.charges]
    amounts = [[one.amount, one.limit] for one in job.charges]
    packed = [key + amount for key, amount in zip(charges, amounts, strict=True)]
    return values | {"charges": packed, "used": dict(job.used)}


def job_of(row: Any) -> Job:
    charges = tuple(
        Charge(Bucket(row.tenant, subject, unit, window, start), amount, limit)
        for subject, unit, window, start, amount, limit in row.charges
    )
    return Job(**{**row._asdict(), "charges": charges})


def bucket_of(row: Any) -> Bucket:
    return Bucket(row.tenant, row.subject, row.unit, row.window, row.window_start)
