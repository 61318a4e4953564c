"""What was used, added up by the database: a year of jobs is never read into the process."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Integer, Row, Select, cast, func, null, select

from proxy.stores.base import UNITS, UsageRow
from proxy.stores.sql.schema import jobs

_DAY_SECONDS = 86_400
#: Whole units and the rest are added up apart: all millionths of a large tenant together are more than 64 bits hold.
_MILLION = 1_000_000


def usage_query(
    dialect: str, tenant: str, subject: str | None, since: float, until: float, group_by: frozenset[str]
) -> Select[Any]:
    """Select the sums of jobs that were submitted in [since, until), a row a group."""
    groups = {
        "day": _day(dialect) if "day" in group_by else null(),
        "endpoint": jobs.c.endpoint if "endpoint" in group_by else null(),
        "subject": jobs.c.subject if "subject" in group_by else null(),
    }
    named = [column.label(name) for name, column in groups.items()]
    wanted = (jobs.c.tenant == tenant) & (jobs.c.submitted_at >= since) & (jobs.c.submitted_at < until)
    if subject is not None:
        wanted &= jobs.c.subject == subject
    query = select(*named, func.count().label("calls"), *_sums()).where(wanted & (jobs.c.state == "settled"))
    return query.group_by(*(groups[name] for name in groups if name in group_by))


def usage_rows(rows: Sequence[Row[Any]]) -> list[UsageRow]:
    """Read the answer to `usage_query`, in the order of the groups' names."""
    found = [
        UsageRow(_date(row.day), row.endpoint, row.subject, row.calls, _used(row))
        for row in rows
        # Without groups there is a row also of no jobs.
        if row.calls
    ]
    return sorted(found, key=lambda one: str((one.day, one.endpoint, one.subject)))


def _day(dialect: str) -> ColumnElement[Any]:
    """The number of the day. SQLite cuts off a fraction, and may be built without `floor`; PostgreSQL would round."""
    days = jobs.c.submitted_at / float(_DAY_SECONDS)
    return cast(days, Integer) if dialect == "sqlite" else cast(func.floor(days), Integer)


def _sums() -> list[ColumnElement[Any]]:
    sums: list[ColumnElement[Any]] = []
    for unit in UNITS:
        amount = cast(func.coalesce(jobs.c.used[unit].as_string(), "0"), BigInteger)
        sums.append(func.sum(amount // _MILLION).label(f"{unit}_whole"))
        sums.append(func.sum(amount % _MILLION).label(f"{unit}_rest"))
    return sums


def _used(row: Row[Any]) -> dict[str, int]:
    sums = {unit: (int(row._mapping[f"{unit}_whole"]), int(row._mapping[f"{unit}_rest"])) for unit in UNITS}
    return {unit: whole * _MILLION + rest for unit, (whole, rest) in sums.items() if whole or rest}


def _date(day: int | None) -> str | None:
    return None if day is None else datetime.fromtimestamp(day * _DAY_SECONDS, UTC).date().isoformat()
