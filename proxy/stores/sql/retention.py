"""Removes what is past its time, and keeps what jobs used in sums a day.

Rows are found by a reading that locks nothing. A transaction then locks a batch of them by their keys, in the order of
the keys as every transaction does, leaves those that changed meanwhile, and deletes the others. What jobs used is added
to `usage_days` in the transaction that deletes them, so a report finds each job once: in its row or in the sum of its
day. A version of the program without such sums neither changes nor deletes what a settled job used.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Delete,
    Select,
    Table,
    and_,
    bindparam,
    delete,
    exists,
    false,
    func,
    or_,
    select,
    text,
    tuple_,
)

from proxy.stores.ledger import UNITS
from proxy.stores.retention import Expiry, Row
from proxy.stores.sql.database import Database, insert_of
from proxy.stores.sql.direct import Executor
from proxy.stores.sql.schema import idempotency, jobs, quota_usage, revocations, upload_parts, uploads, usage_days
from proxy.stores.sql.transaction import OPEN_STATES, OVER_STATES
from proxy.stores.sql.usage import MILLION, day_of

#: Held until the end of a transaction, by one process at a time. SQLite has its own lock of the file.
_TRY_LOCK = text("SELECT pg_try_advisory_xact_lock(7287870002)")


@dataclass(frozen=True, eq=False)
class _Kind:
    """How rows of a table are locked and deleted.

    Attributes:
        seen: the columns by which a change since the finding shows: the key, and more.
    """

    seen: tuple[ColumnElement[Any], ...]
    lock: Select[Any]
    delete: Delete
    key: tuple[str, ...]

    def key_of(self, row: Row) -> Any:
        return row[0] if len(self.key) == 1 else tuple(row[: len(self.key)])


def _kind(table: Table, *seen: str, read: Sequence[str] = ()) -> _Kind:
    """`read` are columns that the removal needs, and its finding does not."""
    key = tuple(table.primary_key)
    both = (*key, *(table.c[name] for name in seen))
    named = (key[0] if len(key) == 1 else tuple_(*key)).in_(bindparam("keys", expanding=True))
    lock = select(*both, *(table.c[name] for name in read)).where(named).order_by(*key).with_for_update()
    found = (column == bindparam(f"of_{column.name}") for column in key)
    return _Kind(both, lock, delete(table).where(*found), tuple(column.name for column in key))


_KINDS = {
    "idempotency": _kind(idempotency, "created_at"),
    "upload_parts": _kind(upload_parts),
    "uploads": _kind(uploads),
    "revocations": _kind(revocations),
    "jobs": _kind(jobs, read=("tenant", "subject", "endpoint", "state", "submitted_at", "used")),
    "accounts": _kind(quota_usage, "reserved"),
}


class SqlRetention:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def oldest_open(self) -> float | None:
        oldest = select(func.min(jobs.c.submitted_at)).where(jobs.c.state.in_(OPEN_STATES))
        async with self._database.reading() as connection:
            found: float | None = (await connection.execute(oldest)).scalar()
            return found

    async def find(self, kind: str, expiry: Expiry, most: int) -> Sequence[Row]:
        wanted = select(*_KINDS[kind].seen).where(_is_due(kind, expiry)).limit(most)
        async with self._database.reading() as connection:
            return (await connection.execute(wanted)).all()

    async def remove(self, kind: str, found: Sequence[Row]) -> int | None:
        removed = await self._database.run(partial(_remove, kind=_KINDS[kind], found=found))
        if removed:
            # Old rows lie all over the file: left to later, what they write to the log would hold up calls at once.
            await self._database.tidy_up()
        return removed


def _is_due(kind: str, expiry: Expiry) -> ColumnElement[bool]:
    if kind == "jobs":
        return and_(jobs.c.state.in_(OVER_STATES), jobs.c.checked_at < expiry.jobs)
    if kind == "accounts":
        return _is_account_due(expiry)
    if kind == "idempotency":
        return idempotency.c.created_at < expiry.idempotency
    if kind == "upload_parts":
        return upload_parts.c.upload.in_(select(uploads.c.id).where(uploads.c.expires_at < expiry.uploads))
    if kind == "uploads":
        has_parts = exists().where(upload_parts.c.upload == uploads.c.id)
        return and_(uploads.c.expires_at < expiry.uploads, ~has_parts)
    # The newest one stays: SQLite would give its number to the next one, and processes read what is behind a number.
    newest = select(func.max(revocations.c.id)).scalar_subquery()
    return and_(revocations.c.expires_at < expiry.revocations, revocations.c.id < newest)


def _is_account_due(expiry: Expiry) -> ColumnElement[bool]:
    """An account of an old window on which nothing is reserved."""
    account = quota_usage.c
    olds = [and_(account.window == window, account.window_start < first) for window, first in expiry.accounts.items()]
    return and_(account.reserved == 0, or_(false(), *olds))


def _remove(connection: Executor, *, kind: _Kind, found: Sequence[Row]) -> int | None:
    if connection.dialect.name == "postgresql":
        ((is_alone,),) = connection.execute(_TRY_LOCK, {})
        if not is_alone:
            return None
    before = {tuple(row) for row in found}
    locked = connection.execute(kind.lock, {"keys": [kind.key_of(row) for row in found]})
    rows = [row for row in locked if tuple(row[: len(kind.seen)]) in before]
    if not rows:
        return 0
    if kind is _KINDS["jobs"]:
        _keep_sums(connection, rows)
    connection.execute(kind.delete, [{f"of_{name}": getattr(row, name) for name in kind.key} for row in rows])
    return len(rows)


def _keep_sums(connection: Executor, removed: Sequence[Any]) -> None:
    """Add what settled jobs used to the sums of their days."""
    calls: defaultdict[tuple[Any, ...], int] = defaultdict(int)
    used: defaultdict[tuple[Any, ...], int] = defaultdict(int)
    for job in removed:
        if job.state == "settled":
            group = job.tenant, job.subject, day_of(job.submitted_at), job.endpoint
            calls[group] += 1
            for unit in UNITS:
                used[*group, unit] += job.used.get(unit, 0)
    if calls:
        sums = [_sum_values(group, count, [used[*group, unit] for unit in UNITS]) for group, count in calls.items()]
        connection.execute(_add_sums(connection.dialect.name), sums)


def _sum_values(group: tuple[Any, ...], calls: int, used: Sequence[int]) -> dict[str, Any]:
    values = dict(zip(("tenant", "subject", "day", "endpoint"), group, strict=True)) | {"calls": calls}
    for unit, amount in zip(UNITS, used, strict=True):
        values[f"{unit}_whole"], values[f"{unit}_rest"] = divmod(amount, MILLION)
    return values


@cache
def _add_sums(dialect: str) -> Any:
    statement = insert_of(dialect, usage_days)
    sums = [column for column in usage_days.c if not column.primary_key]
    more = {column.name: column + statement.excluded[column.name] for column in sums}
    return statement.on_conflict_do_update(index_elements=list(usage_days.primary_key), set_=more)
