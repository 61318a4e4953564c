"""The statements of the ledger's transactions on PostgreSQL. Their number does not grow with the batch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import ARRAY, Connection, and_, bindparam, func, insert, select, update

from proxy.stores.grants import Grant, GrantHolder
from proxy.stores.ledger import OPEN_STATES, Account, Bucket, Job
from proxy.stores.sql.grant_rows import NEXT_GRANTS, grant_of
from proxy.stores.sql.insertions import insert_missing
from proxy.stores.sql.schema import jobs, quota_usage
from proxy.stores.transaction import pack_charges, unpack_charges

#: Built once, as all expressions are that do not change: a new one of this kind leaves cycles of objects behind.
IS_OPEN = jobs.c.state.in_(OPEN_STATES)
_KEY = tuple(quota_usage.c[name] for name in Bucket._fields)
#: What changes in the life of a job.
_LIFE = ("request_id", "state", "used", "checked_at", "expires_at")
_COLUMNS = tuple(column.name for column in jobs.c)

# Statements are built once: building one costs more than running it.
_keys = func.unnest(*(bindparam(column.name, type_=ARRAY(column.type)) for column in _KEY))
_named = _keys.table_valued(*Bucket._fields).render_derived()
_lock_accounts = (
    select(quota_usage)
    .join(_named, and_(*(column == _named.c[column.name] for column in _KEY)))
    .order_by(*_KEY)
    .with_for_update(of=quota_usage)
)
_update_account = (
    update(quota_usage)
    .where(*(column == bindparam(f"of_{column.name}") for column in _KEY))
    .values({name: bindparam(f"now_{name}") for name in Account._fields})
)
_lock_jobs = select(jobs).where(jobs.c.id.in_(bindparam("ids", expanding=True))).order_by(jobs.c.id).with_for_update()
_add_job = insert(jobs)
_update_job = (
    update(jobs).where(jobs.c.id == bindparam("of_id")).values({name: bindparam(f"now_{name}") for name in _LIFE})
)


class SqlTransaction:
    """A `LedgerTransaction` over a connection that has begun one."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def find_jobs(self, ids: Sequence[str]) -> list[Job]:
        return [job_of(row) for row in self._connection.execute(_lock_jobs, {"ids": ids})]

    def find_accounts(self, buckets: Sequence[Bucket]) -> dict[Bucket, Account]:
        columns = dict(zip(Bucket._fields, zip(*buckets, strict=True), strict=True))
        return {bucket_of(row): account_of(row) for row in self._connection.execute(_lock_accounts, columns)}

    def find_grants(self, holders: Sequence[GrantHolder], at: float) -> dict[GrantHolder, list[Grant]]:
        tenants, subjects, units = zip(*holders, strict=True)
        asked = {"tenants": tenants, "subjects": subjects, "units": units, "open_at": at}
        found: dict[GrantHolder, list[Grant]] = {}
        for row in self._connection.execute(NEXT_GRANTS, asked):
            found.setdefault(GrantHolder(row.tenant, row.subject, row.unit), []).append(grant_of(row))
        return found

    def create_accounts(self, buckets: Sequence[Bucket]) -> None:
        empty = Account()._asdict()
        statement = insert_missing(self._connection.dialect.name, quota_usage)
        self._connection.execute(statement, [bucket._asdict() | empty for bucket in buckets])

    def update_accounts(self, accounts: Mapping[Bucket, Account]) -> None:
        self._connection.execute(_update_account, [_account_values(*one) for one in accounts.items()])

    def add_jobs(self, jobs: Collection[Job]) -> None:
        self._connection.execute(_add_job, [_job_values(job) for job in jobs])

    def update_jobs(self, jobs: Collection[Job]) -> None:
        self._connection.execute(_update_job, [_life_values(job) for job in jobs])


def _account_values(bucket: Bucket, account: Account) -> dict[str, Any]:
    key = {f"of_{name}": value for name, value in bucket._asdict().items()}
    return key | {f"now_{name}": value for name, value in account._asdict().items()}


def _life_values(job: Job) -> dict[str, Any]:
    values = {f"now_{name}": getattr(job, name) for name in _LIFE}
    return values | {"of_id": job.id, "now_used": dict(job.used)}


def _job_values(job: Job) -> dict[str, Any]:
    values = {name: getattr(job, name) for name in _COLUMNS}
    return values | {"charges": pack_charges(job), "used": dict(job.used), "tags": list(job.tags) or None}


def job_of(row: Any) -> Job:
    return Job(**{**row._asdict(), "charges": unpack_charges(row.tenant, row.charges), "tags": tuple(row.tags or ())})


def bucket_of(row: Any) -> Bucket:
    return Bucket(row.tenant, row.subject, row.unit, row.window, row.window_start)


def account_of(row: Any) -> Account:
    return Account(row.used, row.reserved)
