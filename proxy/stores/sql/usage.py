"""What was used, added up by the database: a year of jobs is never read into the process."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from math import ceil, floor
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Integer, Row, Select, bindparam, cast, func, null, select, union_all

from proxy.stores.ledger import UNITS, UsageRow
from proxy.stores.sql.schema import jobs, usage_days

_DAY_SECONDS = 86_400
#: Whole units and the rest are added up apart: all millionths of a large tenant together are more than 64 bits hold.
MILLION = 1_000_000
_GROUPS = ("day", "endpoint", "subject")
_SUMS = ("calls", *(f"{unit}_{part}" for unit in UNITS for part in ("whole", "rest")))


def usage_values(tenant: str, subject: str | None, since: float, until: float) -> dict[str, Any]:
    """Give the values of a `usage_query` of jobs that were submitted in [since, until).

    Of jobs that were removed there are sums of whole days: a day counts if it begins in that time.
    """
    days = {"first": ceil(since / _DAY_SECONDS), "end": ceil(until / _DAY_SECONDS)}
    whose = {"of_tenant": tenant} if subject is None else {"of_tenant": tenant, "of_subject": subject}
    return {**whose, **days, "since": since, "until": until}


@cache
def usage_query(dialect: str, group_by: frozenset[str], *, of_subject: bool) -> Select[Any]:
    """Select the sums of jobs, a row a group. Its values are those of `usage_values`."""
    both = union_all(_of_jobs(dialect, group_by, of_subject), _of_days(group_by, of_subject)).subquery()
    groups = [(both.c[name] if name in group_by else null()).label(name) for name in _GROUPS]
    sums = [func.sum(both.c[name]).label(name) for name in _SUMS]
    return select(*groups, *sums).group_by(*(both.c[name] for name in _GROUPS if name in group_by))


def _of_jobs(dialect: str, group_by: frozenset[str], of_subject: bool) -> Select[Any]:
    """Sums of the jobs that are there."""
    columns = {"day": _day(dialect), "endpoint": jobs.c.endpoint, "subject": jobs.c.subject}
    groups = [columns[name].label(name) for name in _GROUPS if name in group_by]
    at = jobs.c.submitted_at
    wanted = [jobs.c.tenant == bindparam("of_tenant"), at >= bindparam("since"), at < bindparam("until")]
    if of_subject:
        wanted.append(jobs.c.subject == bindparam("of_subject"))
    query = select(*groups, func.count().label("calls"), *_sums()).where(*wanted, jobs.c.state == "settled")
    return query.group_by(*(columns[name] for name in _GROUPS if name in group_by))


def _of_days(group_by: frozenset[str], of_subject: bool) -> Select[Any]:
    """Sums of the jobs that were removed."""
    days, groups = usage_days.c, [usage_days.c[name] for name in _GROUPS if name in group_by]
    wanted = [days.tenant == bindparam("of_tenant"), days.day >= bindparam("first"), days.day < bindparam("end")]
    if of_subject:
        wanted.append(days.subject == bindparam("of_subject"))
    return select(*groups, *(func.sum(days[name]).label(name) for name in _SUMS)).where(*wanted).group_by(*groups)


def usage_rows(rows: Sequence[Row[Any]]) -> list[UsageRow]:
    """Read the answer to `usage_query`, in the order of the groups' names."""
    found = [
        UsageRow(_date(row.day), row.endpoint, row.subject, int(row.calls), _used_amounts(row))
        for row in rows
        # Without groups there is a row also of no jobs.
        if row.calls
    ]
    return sorted(found, key=lambda one: str((one.day, one.endpoint, one.subject)))


def day_of(moment: float) -> int:
    """The number of the day that a moment lies in, as the database computes it."""
    return floor(moment / _DAY_SECONDS)


def _day(dialect: str) -> ColumnElement[Any]:
    """The number of the day. SQLite cuts off a fraction, and may be built without `floor`; PostgreSQL would round."""
    days = jobs.c.submitted_at / float(_DAY_SECONDS)
    return cast(days, Integer) if dialect == "sqlite" else cast(func.floor(days), Integer)


def _sums() -> list[ColumnElement[Any]]:
    sums: list[ColumnElement[Any]] = []
    for unit in UNITS:
        amount = cast(func.coalesce(jobs.c.used[unit].as_string(), "0"), BigInteger)
        sums.append(func.sum(amount // MILLION).label(f"{unit}_whole"))
        sums.append(func.sum(amount % MILLION).label(f"{unit}_rest"))
    return sums


def _used_amounts(row: Row[Any]) -> dict[str, int]:
    sums = {unit: (int(row._mapping[f"{unit}_whole"]), int(row._mapping[f"{unit}_rest"])) for unit in UNITS}
    return {unit: whole * MILLION + rest for unit, (whole, rest) in sums.items() if whole or rest}


def _date(day: int | None) -> str | None:
    return None if day is None else datetime.fromtimestamp(day * _DAY_SECONDS, UTC).date().isoformat()
