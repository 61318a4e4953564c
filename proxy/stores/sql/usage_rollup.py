"""Adds what settled jobs used to the sums of their days, in SQL.

A settled job is counted once: the transaction that adds what it used to `usage_days` also changes its state to
`counted`, or deletes it. A report adds up the sums and the jobs that are settled and not counted yet, so it finds each
job once. An older version of the program that runs beside this one does not know the state: it leaves such jobs out of
its reports, where their sums are, and does not remove them.
"""

from __future__ import annotations

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import orjson
from sqlalchemy import Connection, bindparam, select, text, update

from proxy.stores.grants import sum_granted
from proxy.stores.ledger import UNITS
from proxy.stores.sql.database import Database
from proxy.stores.sql.insertions import add_rows
from proxy.stores.sql.schema import grant_days, jobs, usage_days
from proxy.stores.sql.spend import add_to_hours
from proxy.stores.sql.usage import MILLION, day_of
from proxy.stores.sqlite.file import MANY_ROWS
from proxy.stores.sqlite.usage_sums import add_granted, count_settled, find_granted
from proxy.stores.transaction import PackedCharges, unpack_charges

#: Held until the end of a transaction, by one process at a time. SQLite has its own lock of the file.
_TRY_LOCK = text("SELECT pg_try_advisory_xact_lock(7287870002)")
_is_named = jobs.c.id.in_(bindparam("ids", expanding=True))
_find = select(jobs.c.id).where(jobs.c.state == "settled").order_by(jobs.c.checked_at).limit(bindparam("most"))
_columns = [
    jobs.c[name] for name in ("id", "tenant", "subject", "endpoint", "state", "submitted_at", "used", "charges")
]
_lock = select(*_columns).where(_is_named).order_by(jobs.c.id).with_for_update()
_mark = update(jobs).where(_is_named).values(state="counted")


class _Settled(NamedTuple):
    """A job that a grant may have paid for, as far as that matters."""

    tenant: str
    submitted_at: float
    used: Mapping[str, int]
    charges: PackedCharges

    @classmethod
    def read(cls, row: Sequence[Any]) -> _Settled:
        """Read the row of a SQLite file."""
        tenant, submitted_at, used, charges = row
        return cls(tenant, submitted_at, orjson.loads(used), orjson.loads(charges))


class SqlUsageRollup:
    """`UsageRollup` in SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def count(self, most: int) -> int | None:
        if self._database.dialect.name == "sqlite":
            counted = await self._database.change_file(partial(_count_in_file, most=most), MANY_ROWS)
            await self._database.wait_for_checkpoint()
            return counted
        async with self._database.reading() as connection:
            ids = (await connection.scalars(_find, {"most": most})).all()
        if not ids:
            return 0
        return await self._database.write(partial(_count, ids=ids))


def _count_in_file(connection: sqlite3.Connection, *, most: int) -> int:
    if granted := find_granted(connection, most):
        add_granted(connection, _sum_grants(map(_Settled.read, granted)))
    return count_settled(connection, most)


def _count(connection: Connection, *, ids: Sequence[str]) -> int | None:
    if not is_alone(connection):
        return None
    # Another process may have counted some since they were found.
    found = [job for job in connection.execute(_lock, {"ids": ids}) if job.state == "settled"]
    if found:
        add_to_sums(connection, found)
        connection.execute(_mark, {"ids": [job.id for job in found]})
    return len(found)


def is_alone(connection: Connection) -> bool:
    """Return whether this transaction is the only one that changes sums, or removes rows."""
    return connection.dialect.name != "postgresql" or bool(connection.execute(_TRY_LOCK).scalar())


def add_to_sums(connection: Connection, settled: Sequence[Any]) -> None:
    """Add what settled jobs used, and what grants paid of it, to the sums of their days and hours."""
    if grants := _sum_grants(settled):
        connection.execute(add_rows(connection.dialect.name, grant_days), grants)
    add_to_hours(connection, settled)
    calls: defaultdict[tuple[Any, ...], int] = defaultdict(int)
    used: defaultdict[tuple[Any, ...], int] = defaultdict(int)
    for job in settled:
        group = job.tenant, job.subject, day_of(job.submitted_at), job.endpoint
        calls[group] += 1
        for unit, amount in job.used.items():
            used[*group, unit] += amount
    if calls:
        sums = [_sum_values(group, count, [used[*group, unit] for unit in UNITS]) for group, count in calls.items()]
        connection.execute(add_rows(connection.dialect.name, usage_days), sums)


def _sum_grants(settled: Iterable[Any]) -> list[dict[str, Any]]:
    """Sum what grants paid of settled jobs, as rows of `grant_days`."""
    paid: Counter[tuple[Any, ...]] = Counter()
    for job in settled:
        day = day_of(job.submitted_at)
        for names, amount in sum_granted(unpack_charges(job.tenant, job.charges), job.used).items():
            paid[job.tenant, day, *names] += amount
    keys = [column.name for column in grant_days.primary_key]
    return [
        dict(zip(keys, group, strict=True), paid_whole=amount // MILLION, paid_rest=amount % MILLION)
        for group, amount in paid.items()
    ]


def _sum_values(group: tuple[Any, ...], calls: int, used: Sequence[int]) -> dict[str, Any]:
    values = dict(zip(("tenant", "subject", "day", "endpoint"), group, strict=True)) | {"calls": calls}
    for unit, amount in zip(UNITS, used, strict=True):
        values[f"{unit}_whole"], values[f"{unit}_rest"] = divmod(amount, MILLION)
    return values
