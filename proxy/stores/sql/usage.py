"""What was used, added up by the database: a year of jobs is never read into the process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from functools import cache
from math import ceil, floor
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Float,
    FromClause,
    Integer,
    Row,
    Select,
    String,
    Table,
    bindparam,
    cast,
    column,
    func,
    literal_column,
    null,
    select,
    true,
    tuple_,
    union_all,
)
from sqlalchemy.sql.selectable import TableValuedAlias

from proxy.clock import to_iso
from proxy.stores.ledger import BOOKED_STATES, UNITS
from proxy.stores.sql.schema import USAGE_SUMS, jobs, usage_days, usage_hours, usage_tags, usage_totals
from proxy.stores.usage import GROUP_NAMES, UsageRow, sort_groups

_DAY_SECONDS, _HOUR_SECONDS, _FIRST_DAY = 86_400, 3_600, date(1970, 1, 1)
#: Whole units and the rest are added up apart: all millionths of a large tenant together are more than 64 bits hold.
MILLION = 1_000_000
#: The columns that rows are grouped and sorted by, by name.
_Groups = dict[str, ColumnElement[Any]]


def sums_of_days(subject: str | None, group_by: frozenset[str]) -> Table:
    """Return the table of the sums of all counted jobs, by day."""
    return usage_totals if subject is None and "subject" not in group_by else usage_days


def sums_of_jobs(group_by: frozenset[str]) -> Table:
    """Return the table of the sums of the jobs that are kept, where they need not be read: see `reads_jobs`."""
    return usage_tags if "tag" in group_by else usage_hours


def usage_values(table: Table, tenant: str | None, subject: str | None, since: float, until: float) -> dict[str, Any]:
    """Give the values of a `usage_query` of jobs that were submitted in [since, until).

    Of jobs that were counted there are sums of whole days, or hours: one counts if it begins in that time.
    """
    seconds = _HOUR_SECONDS if table is usage_hours else _DAY_SECONDS
    whose = {"of_tenant": tenant, "of_subject": subject}
    return {
        **{name: value for name, value in whose.items() if value is not None},
        "first": ceil(since / seconds),
        "end": ceil(until / seconds),
        "since": since,
        "until": until,
    }


def usage_page(group_by: frozenset[str], after: Sequence[str], most: int | None) -> dict[str, Any]:
    """Give the values of a `usage_query` of some groups; `after` are the names of one, and later ones are wanted."""
    values: dict[str, Any] = {} if most is None else {"most": most}
    if after:
        values |= {f"after_{name}": value for name, value in zip(sort_groups(group_by), after, strict=True)}
    if "after_day" in values:
        values["after_day"] = (date.fromisoformat(values["after_day"]) - _FIRST_DAY).days
    if "after_hour" in values:
        values["after_hour"] = floor(datetime.fromisoformat(values["after_hour"]).timestamp() / _HOUR_SECONDS)
    return values


@cache
def usage_query(dialect: str, table: Table, group_by: frozenset[str], values: frozenset[str]) -> Select[Any]:
    """Select the sums of jobs, a row a group, in the order of the groups; `values` are the names of those it gets."""
    names = sort_groups(group_by)
    both = union_all(_of_settled(dialect, names, values), _of_sums(dialect, table, names, values)).subquery()
    groups = [(both.c[name] if name in group_by else null()).label(name) for name in GROUP_NAMES]
    sums = [func.sum(both.c[name]).label(name) for name in USAGE_SUMS]
    keys = [both.c[name] for name in names]
    query = select(*groups, *sums).group_by(*keys).order_by(*keys)
    return query.limit(bindparam("most")) if "most" in values else query


@cache
def details_query(dialect: str, group_by: frozenset[str], values: frozenset[str]) -> Select[Any]:
    """Select the sums of a tenant's jobs that are kept, counted or not, as `usage_query` does.

    It reads the jobs of the time, so the caller bounds that.
    """
    names = sort_groups(group_by)
    groups = _groups_of_jobs(dialect, names)
    at = jobs.c.submitted_at
    wanted = [jobs.c.tenant == bindparam("of_tenant"), at >= bindparam("since"), at < bindparam("until")]
    if "of_subject" in values:
        wanted.append(jobs.c.subject == bindparam("of_subject"))
    wanted += [jobs.c.state.in_(BOOKED_STATES), *_is_later(groups, values)]
    labels = [groups.get(name, null()).label(name) for name in GROUP_NAMES]
    keys = list(groups.values())
    query = select(*labels, func.count().label("calls"), *_sums()).where(*wanted).group_by(*keys).order_by(*keys)
    query = query.select_from(_jobs_with_tags(dialect, names))
    return query.limit(bindparam("most")) if "most" in values else query


@cache
def count_query(values: frozenset[str]) -> Select[Any]:
    """Count the jobs of the time, up to so many, in an index alone."""
    at = jobs.c.submitted_at
    wanted = [jobs.c.tenant == bindparam("of_tenant"), at >= bindparam("since"), at < bindparam("until")]
    if "of_subject" in values:
        wanted.append(jobs.c.subject == bindparam("of_subject"))
    some = select(at).where(*wanted).limit(bindparam("most")).subquery()
    return select(func.count()).select_from(some)


def _of_settled(dialect: str, names: Sequence[str], values: frozenset[str]) -> Select[Any]:
    """Sum the jobs that are settled, and not counted in any sums yet."""
    groups = _groups_of_jobs(dialect, names)
    at = jobs.c.submitted_at
    # Few are, of all tenants. An index by tenant would lead to all jobs of this one instead: the condition hides it.
    wanted = [at >= bindparam("since"), at < bindparam("until")]
    if "of_tenant" in values:
        wanted.append(jobs.c.tenant + "" == bindparam("of_tenant"))
    if "of_subject" in values:
        wanted.append(jobs.c.subject + "" == bindparam("of_subject"))
    wanted += _is_later(groups, values)
    query = select(*_label_columns(groups), func.count().label("calls"), *_sums()).select_from(
        _jobs_with_tags(dialect, names)
    )
    return query.where(*wanted, jobs.c.state == "settled").group_by(*groups.values())


def _groups_of_jobs(dialect: str, names: Sequence[str]) -> _Groups:
    columns = {
        "tenant": jobs.c.tenant,
        "day": _period_of(dialect, _DAY_SECONDS),
        "hour": _period_of(dialect, _HOUR_SECONDS),
        "endpoint": jobs.c.endpoint,
        # The index of owners has this order, and would lead SQLite to all jobs of a tenant: this hides it.
        "subject": jobs.c.subject + literal_column("''", String) if dialect == "sqlite" else jobs.c.subject,
        # Not a parameter: PostgreSQL would not find the same expression in the groups.
        "session": func.coalesce(jobs.c.session, literal_column("''", String)),
        "tag": _each_tag(dialect).c.value,
    }
    return _group_columns(dialect, columns, names)


def _jobs_with_tags(dialect: str, names: Sequence[str]) -> FromClause:
    return jobs.join(_each_tag(dialect), true()) if "tag" in names else jobs


@cache
def _each_tag(dialect: str) -> TableValuedAlias:
    """Select a row for each tag of a job, or one with '' if it has none."""
    tags = func.coalesce(jobs.c.tags, literal_column("""'[""]'"""))
    value = column("value", String)
    if dialect == "sqlite":
        return func.json_each(tags).table_valued(value, name="each_tag")
    return func.json_array_elements_text(tags).table_valued(value, name="each_tag").render_derived()


def _of_sums(dialect: str, table: Table, names: Sequence[str], values: frozenset[str]) -> Select[Any]:
    """Sums of the jobs that were counted.

    A page needs no more groups than it has rows: with the indexes in their order, the database reads only those.
    """
    columns: dict[str, ColumnElement[Any]] = dict(table.c)
    period = columns["hour"] if table is usage_hours else columns["day"]
    if table is usage_hours:
        columns["day"] = period // 24
    groups = _group_columns(dialect, columns, names)
    if dialect == "sqlite" and names[:1] == ["subject"] and "of_subject" not in values:
        # It would choose the index by day, and sort all subjects of a tenant for each page: the condition hides it.
        period = period + 0
    wanted = [period >= bindparam("first"), period < bindparam("end")]
    if "of_tenant" in values:
        wanted.append(table.c.tenant == bindparam("of_tenant"))
    if "of_subject" in values:
        wanted.append(table.c.subject == bindparam("of_subject"))
    wanted += _is_later(groups, values)
    if dialect == "sqlite" and names == ["subject", "endpoint"] and "most" in values:
        # PostgreSQL sorts the rows of a subject as it comes to them; SQLite would sort those of all.
        first = select(table.c.subject).distinct().where(*wanted).order_by(table.c.subject).limit(bindparam("most"))
        wanted.append(table.c.subject.in_(first))
    sums = [func.sum(table.c[name]).label(name) for name in USAGE_SUMS]
    keys = list(groups.values())
    query = select(*_label_columns(groups), *sums).where(*wanted).group_by(*keys)
    if not (names and "most" in values):
        return query
    # SQLite takes a limit on a part of a union only within a query of its own.
    return select(query.order_by(*keys).limit(bindparam("most")).subquery())


def _group_columns(dialect: str, columns: Mapping[str, ColumnElement[Any]], names: Sequence[str]) -> _Groups:
    return {name: _sorted_as_bytes(dialect, columns[name]) for name in names}


def _label_columns(groups: _Groups) -> list[ColumnElement[Any]]:
    return [column.label(name) for name, column in groups.items()]


def _is_later(groups: _Groups, values: frozenset[str]) -> list[ColumnElement[bool]]:
    """Make the condition of a group that is behind another; none if there is no other."""
    after = [bindparam(f"after_{name}", type_=column.type) for name, column in groups.items()]
    is_first = not any(one.key in values for one in after)
    return [] if is_first else [tuple_(*groups.values()) > tuple_(*after)]


def _sorted_as_bytes(dialect: str, column: ColumnElement[Any]) -> ColumnElement[Any]:
    """Sort a column in the one order that both databases have."""
    is_text = dialect == "postgresql" and isinstance(column.type, String)
    return column.collate("C") if is_text else column


def usage_rows(rows: Sequence[Row[Any]]) -> list[UsageRow]:
    """Read the answer to `usage_query`."""
    return [
        UsageRow(
            _date(row.day),
            row.endpoint,
            row.subject,
            int(row.calls),
            _used_amounts(row),
            row.tenant,
            None if row.hour is None else to_iso(row.hour * _HOUR_SECONDS),
            row.session,
            row.tag,
        )
        for row in rows
        # Without groups there is a row also of no jobs.
        if row.calls
    ]


def day_of(moment: float) -> int:
    """Return the number of the day that a moment lies in, as the database computes it."""
    return floor(moment / _DAY_SECONDS)


def _period_of(dialect: str, seconds: int) -> ColumnElement[Any]:
    """Number the days or hours. SQLite cuts off a fraction, and may lack `floor`; PostgreSQL would round."""
    # Not a parameter: SQLite would not find that the groups have the order of the rows, and sort them again.
    periods = jobs.c.submitted_at / literal_column(f"{seconds}.0", Float)
    return cast(periods, Integer) if dialect == "sqlite" else cast(func.floor(periods), Integer)


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
    return None if day is None else (_FIRST_DAY + timedelta(days=day)).isoformat()
