"""Removes rows that are past their time, in SQL.

Rows are found by a reading that locks nothing. A transaction then locks some of them by their keys, in the order of the
keys as every transaction does, leaves those that changed meanwhile, deletes the others, and goes on with the next ones
while it has time. Then what the jobs used is added to the sums of their days, unless it was counted there already.
All calls wait for a SQLite file meanwhile, so what is only to be deleted there is deleted without SQLAlchemy.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from itertools import takewhile
from time import perf_counter
from typing import Any

import orjson
from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Delete,
    Select,
    Table,
    and_,
    delete,
    exists,
    false,
    func,
    or_,
    select,
)

from proxy.stores.audit_chain import Link
from proxy.stores.ledger import ADDRESS_PREFIX, OPEN_STATES, OVER_STATES
from proxy.stores.retention import Expiry, Removal, Row
from proxy.stores.spend import HOUR_SECONDS
from proxy.stores.sql.audit import move_anchor
from proxy.stores.sql.database import Database
from proxy.stores.sql.keys import is_named, key_values
from proxy.stores.sql.schema import (
    alert_deliveries,
    alerts,
    audit,
    grants,
    idempotency,
    jobs,
    quota_usage,
    revocations,
    spend_hours,
    upload_parts,
    uploads,
)
from proxy.stores.sql.usage_rollup import add_to_sums, is_alone
from proxy.stores.sqlite.file import OLD_ROWS
from proxy.stores.sqlite.rows import KeyedRows

#: Rows that two statements lock and delete, between two looks at the time.
ROWS_AT_ONCE = 10
#: For how long a transaction removes rows. On SQLite every call waits for it, and one that removes few rows costs
#: hardly more for each; on PostgreSQL hardly any call waits, and each statement is a round trip.
FILE_SECONDS, SERVER_SECONDS = 0.0005, 0.004
_ABOVE_ALL = 2**63 - 1


class _Kind:
    """How rows of a table are locked and deleted.

    Args:
        seen: names of columns by which, beside the key, a change since the finding shows.
        read: names of columns of which something is kept elsewhere when a row goes.
        only: the condition, in SQL, of the rows of which something is kept.
        shown: names of columns that the finding has too.
        is_plain: whether nothing is kept of a found row.

    Attributes:
        seen: the columns of the key, and those.
        may_change: whether more than the existence of a row shows that it is as it was.
        in_file: the SQL for SQLite.
    """

    def __init__(
        self,
        table: Table,
        *seen: str,
        read: Sequence[str] = (),
        only: str = "TRUE",
        shown: Sequence[str] = (),
        is_plain: Callable[[Any], bool] = lambda _row: True,
    ) -> None:
        self.table = table
        self.seen: tuple[Column[Any], ...] = (*table.primary_key, *(table.c[name] for name in seen))
        self.read = tuple(table.c[name] for name in read)
        self.shown = tuple(table.c[name] for name in shown)
        self.may_change = bool(seen)
        self.is_plain = is_plain
        names = [column.name for column in (*self.seen, *self.read)]
        self.in_file = KeyedRows(table.name, [column.name for column in table.primary_key], names, only)


_KINDS = {
    "idempotency": _Kind(idempotency, "created_at"),
    "upload_parts": _Kind(upload_parts),
    "uploads": _Kind(uploads),
    "revocations": _Kind(revocations),
    "jobs": _Kind(
        jobs,
        read=("tenant", "subject", "endpoint", "state", "submitted_at", "used", "charges"),
        only="state = 'settled'",
        shown=["state"],
        is_plain=lambda job: job.state != "settled",
    ),
    "grants": _Kind(grants),
    "accounts": _Kind(quota_usage, "reserved"),
    "alert_deliveries": _Kind(alert_deliveries),
    "alerts": _Kind(alerts),
    "spend_hours": _Kind(spend_hours),
    "audit": _Kind(audit, read=("hash",), is_plain=lambda _entry: False),
}


@cache
def _lock_rows(kind: _Kind, number: int) -> Select[Any]:
    """Select so many rows of a kind by their keys, in the order of the keys."""
    return (
        select(*kind.seen, *kind.read)
        .where(is_named(kind.table, number))
        .order_by(*kind.table.primary_key)
        .with_for_update()
    )


@cache
def _delete_rows(kind: _Kind, number: int) -> Delete:
    return delete(kind.table).where(is_named(kind.table, number))


class SqlRetention:
    """`RetentionStore` in SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._calls = 0
        self.batch_seconds = SERVER_SECONDS if database.dialect.name == "postgresql" else FILE_SECONDS

    async def oldest_open(self) -> float | None:
        oldest = select(func.min(jobs.c.submitted_at)).where(jobs.c.state.in_(OPEN_STATES))
        async with self._database.reading() as connection:
            found: float | None = (await connection.execute(oldest)).scalar()
            return found

    async def find(self, kind: str, expiry: Expiry, most: int) -> Sequence[Row]:
        wanted = select(*_KINDS[kind].seen, *_KINDS[kind].shown).where(_is_due(kind, expiry)).limit(most)
        if kind == "audit":
            # The chain has no gaps: its oldest entries go.
            wanted = wanted.order_by(audit.c.number)
        async with self._database.reading() as connection:
            return (await connection.execute(wanted)).all()

    async def remove(self, kind: str, found: Sequence[Row], seconds: float) -> Removal | None:
        one, is_file = _KINDS[kind], self._database.dialect.name == "sqlite"
        if is_file and (plain := list(takewhile(one.is_plain, found))):
            work = partial(_remove_plain, kind=one, found=plain, seconds=seconds)
            removal: Removal | None = await self._database.change_file(work, OLD_ROWS)
        else:
            removal = await self._database.write(partial(_remove, kind=one, found=found, seconds=seconds), OLD_ROWS)
        await self._database.wait_for_checkpoint()
        calls, self._calls = self._database.calls - self._calls, self._database.calls
        return removal._replace(calls=calls) if removal is not None else None


def _is_due(kind: str, expiry: Expiry) -> ColumnElement[bool]:
    if kind == "jobs":
        return and_(jobs.c.state.in_(OVER_STATES), jobs.c.checked_at < expiry.jobs)
    if kind == "grants":
        return grants.c.expires_at < expiry.grants
    if kind == "accounts":
        return _is_account_due(expiry)
    if kind == "idempotency":
        return idempotency.c.created_at < expiry.idempotency
    if kind == "upload_parts":
        return upload_parts.c.upload.in_(select(uploads.c.id).where(uploads.c.expires_at < expiry.uploads))
    if kind == "uploads":
        has_parts = exists().where(upload_parts.c.upload == uploads.c.id)
        return and_(uploads.c.expires_at < expiry.uploads, ~has_parts)
    if kind == "alert_deliveries":
        return alert_deliveries.c.at < expiry.alerts
    if kind == "alerts":
        return alerts.c.at < expiry.alerts
    if kind == "spend_hours":
        return spend_hours.c.hour < int(expiry.spend_hours // HOUR_SECONDS)
    if kind == "audit":
        stays = select(audit.c.number).where(audit.c.at >= expiry.audit).order_by(audit.c.number).limit(1)
        return audit.c.number < func.coalesce(stays.scalar_subquery(), _ABOVE_ALL)
    # The newest one stays: SQLite would give its number to the next one, and processes read what is behind a number.
    newest = select(func.max(revocations.c.id)).scalar_subquery()
    return and_(revocations.c.expires_at < expiry.revocations, revocations.c.id < newest)


def _is_account_due(expiry: Expiry) -> ColumnElement[bool]:
    """Make the condition of an account of an old window on which nothing is reserved."""
    of_address = quota_usage.c.subject.startswith(ADDRESS_PREFIX)
    is_old = or_(_is_before(expiry.accounts), and_(of_address, _is_before(expiry.address_accounts)))
    return and_(quota_usage.c.reserved == 0, is_old)


def _is_before(firsts: Mapping[str, float]) -> ColumnElement[bool]:
    """Make the condition of an account whose window is earlier than the first of its kind that stays."""
    account = quota_usage.c
    return or_(false(), *(and_(account.window == window, account.window_start < at) for window, at in firsts.items()))


def _remove_plain(connection: sqlite3.Connection, *, kind: _Kind, found: Sequence[Row], seconds: float) -> Removal:
    """Remove rows of a SQLite file of which nothing is kept."""
    tried, removed, end = 0, 0, perf_counter() + seconds
    while tried < len(found) and (not tried or perf_counter() < end):
        some = found[tried : tried + ROWS_AT_ONCE]
        tried += len(some)
        removed += _delete_from_file(connection, kind, some)
    return Removal(tried, removed)


def _remove(connection: Connection, *, kind: _Kind, found: Sequence[Row], seconds: float) -> Removal | None:
    if not is_alone(connection):
        return None
    tried, removed, read, end = 0, 0, list[Any](), perf_counter() + seconds
    remove_some = _remove_from_file if connection.dialect.name == "sqlite" else _remove_from_server
    while tried < len(found) and (not tried or perf_counter() < end):
        some = found[tried : tried + ROWS_AT_ONCE]
        gone, rows = remove_some(connection, kind, some)
        tried += len(some)
        removed += gone
        read += rows
    _keep_what_counts(connection, kind, read)
    return Removal(tried, removed)


def _remove_from_server(connection: Connection, kind: _Kind, found: Sequence[Row]) -> tuple[int, Sequence[Any]]:
    """Delete the rows that are as they were found; return how many those are, and the rows."""
    locked = connection.execute(_lock_rows(kind, len(found)), key_values(kind.table, found))
    rows = _list_unchanged(kind, found, locked)
    if rows:
        connection.execute(_delete_rows(kind, len(rows)), key_values(kind.table, rows))
    return len(rows), rows


def _remove_from_file(connection: Connection, kind: _Kind, found: Sequence[Row]) -> tuple[int, Sequence[Any]]:
    """Do the same in a SQLite file, which is locked; give those rows of which something is kept."""
    driver: Any = connection.connection.driver_connection
    rows = kind.in_file.read(driver, found)
    return _delete_from_file(driver, kind, found), rows


def _delete_from_file(connection: sqlite3.Connection, kind: _Kind, found: Sequence[Row]) -> int:
    going = _list_unchanged(kind, found, kind.in_file.read(connection, found)) if kind.may_change else found
    return kind.in_file.delete(connection, going) if going else 0


def _list_unchanged(kind: _Kind, found: Sequence[Row], now: Iterable[Any]) -> list[Any]:
    size = len(kind.seen)
    before = {tuple(row[:size]) for row in found}
    return [row for row in now if tuple(row[:size]) in before]


def _keep_what_counts(connection: Connection, kind: _Kind, removed: Sequence[Any]) -> None:
    """Add what removed jobs used to the sums, and note where the audit log begins now."""
    if kind is _KINDS["jobs"]:
        add_to_sums(connection, [_decode(job) for job in removed if job.state == "settled"])
    if kind is _KINDS["audit"] and removed:
        last = max(removed, key=lambda entry: entry.number)
        move_anchor(connection, Link(last.number, last.hash))


def _decode(job: Any) -> Any:
    """Read the JSON of a job as SQLite gives it; SQLAlchemy has read that of PostgreSQL."""
    if not isinstance(job.used, str):
        return job
    return job._replace(used=orjson.loads(job.used), charges=orjson.loads(job.charges))
