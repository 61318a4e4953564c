"""What was used: from the ledger's jobs to the figures that a tenant, a subject or the operator reads."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple

from proxy.clock import to_iso
from proxy.errors import BadRequest
from proxy.limits.accounts import Payer, bucket_of, window_end
from proxy.stores.ledger import UNITS, Account, Bucket, Ledger
from proxy.stores.usage import DETAILS, GROUP_NAMES, UsageRow, reads_jobs
from proxy.tenants.terms import MILLION, AccountLimit, Terms

GROUPS = tuple(name for name in GROUP_NAMES if name != "tenant")
#: Of a report of all tenants; each row has its tenant.
GROUPS_OF_ALL = ("tenant", "day", "endpoint")
#: Without a start, this many days up to today.
DEFAULT_DAYS = 30
DAY_SECONDS = 86_400
#: Of a report by hour, session or tag.
MOST_DETAILED_DAYS = 31
#: Jobs that a report reads where there are no sums.
MOST_JOBS = 50_000
_DAY = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2})")
_HOUR = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:00:00\+00:00")


@dataclass(frozen=True)
class Period:
    """Whole days, UTC, both ends included."""

    first: date
    last: date

    @property
    def since(self) -> float:
        return datetime(self.first.year, self.first.month, self.first.day, tzinfo=UTC).timestamp()

    @property
    def until(self) -> float:
        # Not the day after it: the last day of the calendar has none.
        return replace(self, first=self.last).since + DAY_SECONDS


def parse_period(first: str | None, last: str | None, now: float) -> Period:
    """Parse the days from `first` to `last`, both as YYYY-MM-DD.

    Raises:
        BadRequest: one is no date, or they are the wrong way round.
    """
    today = datetime.fromtimestamp(now, UTC).date()
    period = Period(
        parse_day("from", first) if first else today - timedelta(days=DEFAULT_DAYS - 1),
        parse_day("to", last) if last else today,
    )
    if period.first > period.last:
        raise BadRequest("from: must not be after to")
    return period


def parse_groups_of_all(text: str | None) -> frozenset[str]:
    """Parse what to group the usage of all tenants by: `tenant`, and any of `day` and `endpoint`.

    Raises:
        BadRequest: another word.
    """
    return _parse_groups(text or "tenant", GROUPS_OF_ALL) | {"tenant"}


def parse_groups(text: str | None) -> frozenset[str]:
    """Parse what to group by: any of `GROUPS`, comma-separated; by day if nothing is said.

    Raises:
        BadRequest: another word.
    """
    return _parse_groups(text or "day", GROUPS)


def _parse_groups(text: str, known: Sequence[str]) -> frozenset[str]:
    groups = frozenset(filter(None, (part.strip() for part in text.split(","))))
    if unknown := sorted(groups - set(known)):
        hint = "; name a tenant for others" if known is GROUPS_OF_ALL else ""
        raise BadRequest(f"group_by: {unknown[0][:40]!r} is not one of {', '.join(known)}{hint}")
    return groups


def parse_day(name: str, text: str) -> date:
    """Parse a day that is written as YYYY-MM-DD.

    Raises:
        BadRequest: it is none; `name` is what it was given as.
    """
    # Not all that `date.fromisoformat` reads from Python 3.11 on: 20260131, 2026-W05-6.
    if match := _DAY.fullmatch(text):
        with suppress(ValueError):
            return date(*map(int, match.groups()))
    raise BadRequest(f"{name}: must be a day such as 2026-01-31")


def check_hour(name: str, text: str) -> None:
    """Make sure that a text is an hour as rows have it.

    Raises:
        BadRequest: it is none; `name` is what it was given as.
    """
    with suppress(ValueError):
        if _HOUR.fullmatch(text) and datetime.fromisoformat(text):
            return
    raise BadRequest(f"{name}: must be an hour such as 2026-01-31T08:00:00+00:00")


class UsageQuestion(NamedTuple):
    """Whose usage is asked for, of which days, and by what.

    Attributes:
        tenant: None for all of them.
    """

    tenant: str | None
    subject: str | None
    period: Period
    groups: frozenset[str]

    @property
    def is_detailed(self) -> bool:
        """Whether it is of the jobs that are kept, and not of the sums of days."""
        return self.tenant is not None and not self.groups.isdisjoint(DETAILS)

    @property
    def reads_jobs(self) -> bool:
        """Whether each job has to be read for it."""
        return self.is_detailed and reads_jobs(self.subject, self.groups)


def parse_question(
    tenant: str | None, subject: str | None, query: Mapping[str, str | None], now: float
) -> UsageQuestion:
    """Read `from`, `to` and `group_by` of a query.

    Raises:
        BadRequest: one cannot be understood, or a report by hour, session or tag is of too many days.
    """
    period = parse_period(query.get("from"), query.get("to"), now)
    groups = (parse_groups_of_all if tenant is None else parse_groups)(query.get("group_by"))
    question = UsageQuestion(tenant, subject, period, groups)
    if question.is_detailed and (period.last - period.first).days >= MOST_DETAILED_DAYS:
        raise BadRequest(
            f"from: by {', '.join(DETAILS)}, a report has at most {MOST_DETAILED_DAYS} days; shorten the period"
        )
    return question


async def read_usage(
    ledger: Ledger, question: UsageQuestion, *, after: Sequence[str] = (), most: int | None = None
) -> Sequence[UsageRow]:
    """Read the rows of a report, or a page of them.

    Raises:
        BadRequest: it would have to read too many jobs.
        StoreUnavailable: the ledger does not answer.
    """
    tenant, subject, period, groups = question
    if tenant is not None and question.is_detailed:
        if question.reads_jobs and await ledger.has_more_jobs(tenant, subject, period.since, period.until, MOST_JOBS):
            raise BadRequest(
                f"from: this report reads each call, at most {MOST_JOBS:,}, and the period has more; shorten it. Of a "
                "whole tenant by hour or by tag, alone or with day and endpoint, there is no such limit"
            )
        return await ledger.usage_of_jobs(tenant, subject, period.since, period.until, groups, after=after, most=most)
    return await ledger.usage(tenant, subject, period.since, period.until, groups, after=after, most=most)


async def read_total(ledger: Ledger, question: UsageQuestion) -> Sequence[UsageRow]:
    """Read the sum of a report: of the same jobs as its rows, each once, however many tags it has.

    Raises:
        StoreUnavailable: the ledger does not answer.
    """
    tenant, subject, period, _ = question
    if tenant is not None and question.is_detailed:
        return await ledger.usage_of_jobs(tenant, subject, period.since, period.until, frozenset())
    return await ledger.usage(tenant, subject, period.since, period.until, frozenset())


def describe(question: UsageQuestion, rows: Sequence[UsageRow], total: Sequence[UsageRow]) -> dict[str, Any]:
    """Return a report as JSON: one row a group, and the sum of `total`. Without a tenant it is of all of them."""
    tenant, subject, period, groups = question
    return {
        **({} if tenant is None else {"tenant": tenant}),
        **({} if subject is None else {"subject": subject}),
        "from": period.first.isoformat(),
        "to": period.last.isoformat(),
        "usage": list_rows(rows, groups),
        "total": _figures(sum(row.calls for row in total), _sum(total)),
    }


def list_columns(groups: frozenset[str]) -> list[str]:
    """List the columns of a report's rows: what they are grouped by, and what was used."""
    return [*(name for name in GROUP_NAMES if name in groups), "calls", *UNITS]


def name_file(tenant: str | None, period: Period) -> str:
    """Name the file of a report: it has no character that a header or a file system takes for its own."""
    whose = "all-tenants" if tenant is None else re.sub(r"[^A-Za-z0-9._-]+", "-", tenant)
    return f"usage-{whose}-{period.first}-{period.last}.csv"


def list_rows(rows: Sequence[UsageRow], groups: frozenset[str]) -> list[dict[str, Any]]:
    """Write the rows of a report: what they are grouped by, and what was used."""
    return [_row(row, groups) for row in rows]


def _row(row: UsageRow, groups: frozenset[str]) -> dict[str, Any]:
    named = {name: getattr(row, name) for name in GROUP_NAMES if name in groups}
    return named | _figures(row.calls, row.used)


def _sum(rows: Sequence[UsageRow]) -> dict[str, int]:
    return {unit: sum(row.used.get(unit, 0) for row in rows) for unit in UNITS}


def _figures(calls: int, used: Mapping[str, int]) -> dict[str, Any]:
    return {"calls": calls} | {unit: to_units(used.get(unit, 0)) for unit in UNITS}


def to_units(millionths: int) -> int | float:
    """Return an amount as people write it."""
    whole, rest = divmod(millionths, MILLION)
    return whole if rest == 0 else millionths / MILLION


async def left(ledger: Ledger, terms: Terms, payer: Payer, now: float) -> list[dict[str, Any]]:
    """Return what is left of each quota that binds a caller.

    Raises:
        StoreUnavailable: the ledger does not answer.
    """
    buckets = [bucket_of(one, payer, now) for one in terms.accounts]
    accounts = await ledger.accounts(buckets)
    return [
        _describe_account(one, bucket, mode, limit, accounts.get(bucket, Account()))
        for bucket, one in zip(buckets, terms.accounts, strict=True)
        for mode, limit in (("enforce", one.limit), ("warn", one.warns_at))
        if limit is not None
    ]


def _describe_account(one: AccountLimit, bucket: Bucket, mode: str, limit: int, account: Account) -> dict[str, Any]:
    end = window_end(one.window, bucket.window_start)
    return {
        "per": one.per,
        "unit": one.unit,
        "window": one.window,
        "mode": mode,
        "limit": to_units(limit),
        "used": to_units(account.used),
        "reserved": to_units(account.reserved),
        "left": to_units(max(0, limit - account.used - account.reserved)),
        "resets_at": None if end is None else to_iso(end),
    }
