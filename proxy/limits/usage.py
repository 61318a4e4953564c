"""What was used: from the ledger's jobs to the figures that a tenant, a subject or the operator reads."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

from proxy.errors import BadRequest
from proxy.limits.quotas import bucket_of, window_end
from proxy.stores.ledger import UNITS, Account, Ledger, UsageRow
from proxy.tenants.terms import MILLION, Terms

GROUPS = ("day", "endpoint", "subject")
#: Without a start, this many days up to today.
DEFAULT_DAYS = 30
DAY_SECONDS = 86_400
_DAY = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2})")


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
    """The days from `first` to `last`, both as YYYY-MM-DD.

    Raises:
        BadRequest: one is no date, or they are the wrong way round.
    """
    today = datetime.fromtimestamp(now, UTC).date()
    period = Period(
        _date("from", first) if first else today - timedelta(days=DEFAULT_DAYS - 1),
        _date("to", last) if last else today,
    )
    if period.first > period.last:
        raise BadRequest("from: must not be after to")
    return period


def parse_groups(text: str | None) -> frozenset[str]:
    """What to group by: any of `day`, `endpoint` and `subject`, comma-separated; by day if nothing is said.

    Raises:
        BadRequest: another word.
    """
    groups = frozenset(filter(None, (part.strip() for part in (text or "day").split(","))))
    if unknown := sorted(groups - set(GROUPS)):
        raise BadRequest(f"group_by: {unknown[0][:40]!r} is not one of {', '.join(GROUPS)}")
    return groups


def _date(name: str, text: str) -> date:
    # Not all that `date.fromisoformat` reads from Python 3.11 on: 20260131, 2026-W05-6.
    if match := _DAY.fullmatch(text):
        with suppress(ValueError):
            return date(*map(int, match.groups()))
    raise BadRequest(f"{name}: must be a day such as 2026-01-31")


async def report(
    ledger: Ledger, tenant: str, subject: str | None, period: Period, groups: frozenset[str]
) -> dict[str, Any]:
    """Usage as JSON: one row a group, and the total.

    Raises:
        StoreUnavailable: the ledger does not answer.
    """
    rows = await ledger.usage(tenant, subject, period.since, period.until, groups)
    return {
        "tenant": tenant,
        **({} if subject is None else {"subject": subject}),
        "from": period.first.isoformat(),
        "to": period.last.isoformat(),
        "usage": [_row(row, groups) for row in rows],
        "total": _figures(sum(row.calls for row in rows), _sum(rows)),
    }


def _row(row: UsageRow, groups: frozenset[str]) -> dict[str, Any]:
    named = {"day": row.day, "endpoint": row.endpoint, "subject": row.subject}
    return {name: named[name] for name in GROUPS if name in groups} | _figures(row.calls, row.used)


def _sum(rows: Sequence[UsageRow]) -> dict[str, int]:
    return {unit: sum(row.used.get(unit, 0) for row in rows) for unit in UNITS}


def _figures(calls: int, used: Mapping[str, int]) -> dict[str, Any]:
    return {"calls": calls} | {unit: to_units(used.get(unit, 0)) for unit in UNITS}


def to_units(millionths: int) -> int | float:
    """An amount as people write it."""
    whole, rest = divmod(millionths, MILLION)
    return whole if rest == 0 else millionths / MILLION


async def left(ledger: Ledger, terms: Terms, tenant: str, subject: str, now: float) -> list[dict[str, Any]]:
    """What is left of each quota that binds a caller.

    Raises:
        StoreUnavailable: the ledger does not answer.
    """
    buckets = [bucket_of(one, tenant, subject, now) for one in terms.accounts]
    accounts = await ledger.accounts(buckets)
    figures = []
    for bucket, one in zip(buckets, terms.accounts, strict=True):
        used, reserved = accounts.get(bucket, Account())
        resets_at = datetime.fromtimestamp(window_end(one.window, bucket.window_start), UTC)
        figures.append(
            {
                "per": one.per,
                "unit": one.unit,
                "window": one.window,
                "limit": to_units(one.limit),
                "used": to_units(used),
                "reserved": to_units(reserved),
                "left": to_units(max(0, one.limit - used - reserved)),
                "resets_at": resets_at.isoformat(timespec="seconds"),
            }
        )
    return figures
