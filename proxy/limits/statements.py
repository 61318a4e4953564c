"""Monthly statements: what a tenant used of each endpoint in one month, UTC, with the sum in US dollars.

A statement adds up the same sums as a usage report, so it stays the same when jobs are removed. Its amounts are decimal
texts, exact to the millionth as the ledger's are: a JSON number would lose digits of large ones.
"""

from __future__ import annotations

import re
from calendar import monthrange
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from proxy.errors import BadRequest
from proxy.limits.usage import Period
from proxy.stores.grants import TENANT_GRANT
from proxy.stores.ledger import UNITS, Ledger
from proxy.stores.statements import StatementStore
from proxy.tenants.terms import MILLION

#: The column that has the mean price of what was used.
PRICE = "usd_per_compute_second"
#: The sum in US dollars is the last one.
FIGURES = ("calls", *(unit for unit in UNITS if unit != "usd"), PRICE, "usd")
#: Of a statement as a table.
COLUMNS = ("tenant", "month", "status", "endpoint", *FIGURES)
PRELIMINARY, FINAL = "preliminary", "final"
#: How long after a month a call of its last second may still be on its way to the ledger.
GRACE_SECONDS = 300
_MONTH = re.compile(r"([0-9]{4})-([0-9]{2})")


@dataclass(frozen=True)
class Line:
    """What was used of one endpoint, or of all. Amounts are millionths."""

    calls: int
    used: Mapping[str, int]

    def describe(self) -> dict[str, Any]:
        """Describe the figures, amounts as decimal texts."""
        figures: dict[str, Any] = {unit: to_decimal(self.used.get(unit, 0)) for unit in UNITS}
        return {name: ({"calls": self.calls, PRICE: self._mean_price()} | figures)[name] for name in FIGURES}

    def _mean_price(self) -> str | None:
        """Compute US dollars a compute second, to the millionth; None if no seconds were used. Prices change."""
        seconds, usd = self.used.get("compute_seconds", 0), self.used.get("usd", 0)
        return to_decimal((2 * usd * MILLION + seconds) // (2 * seconds)) if seconds else None


@dataclass(frozen=True)
class Statement:
    """What one tenant used in one month.

    Attributes:
        is_final: whether the month is over, and so are all calls of that month.
        lines: by endpoint, sorted.
        granted: what grants paid of it, in millionths: by `tenant` or `subject`, in whose place they pay, and unit.
    """

    tenant: str
    period: Period
    is_final: bool
    lines: Mapping[str, Line]
    granted: Mapping[tuple[str, str], int]

    @property
    def month(self) -> str:
        return self.period.first.isoformat()[:7]

    @property
    def status(self) -> str:
        return FINAL if self.is_final else PRELIMINARY

    @property
    def total(self) -> Line:
        lines = self.lines.values()
        used = {unit: sum(line.used.get(unit, 0) for line in lines) for unit in UNITS}
        return Line(sum(line.calls for line in lines), used)

    def describe(self) -> dict[str, Any]:
        """Describe the statement as JSON."""
        return {
            "tenant": self.tenant,
            "month": self.month,
            "from": self.period.first.isoformat(),
            "to": self.period.last.isoformat(),
            "status": self.status,
            "lines": [{"endpoint": endpoint, **line.describe()} for endpoint, line in self.lines.items()],
            "total": self.total.describe(),
            "granted": [
                {"per": per, "unit": unit, "used": to_decimal(used)}
                for (per, unit), used in sorted(self.granted.items())
            ],
        }

    def list_rows(self) -> list[dict[str, Any]]:
        """List the statement as rows of a table: behind the total, what grants paid."""
        head = {"tenant": self.tenant, "month": self.month, "status": self.status}
        found = self.describe()
        lines = [*found["lines"], {"endpoint": "total", **found["total"]}]
        for per in sorted({per for per, _ in self.granted}):
            paid = {one["unit"]: one["used"] for one in found["granted"] if one["per"] == per}
            lines.append({"endpoint": f"paid by grants per {per}", **dict.fromkeys(FIGURES), **paid})
        return [head | line for line in lines]


def parse_month(text: str, now: float) -> Period:
    """Parse a month that is written as YYYY-MM, and return its days.

    Raises:
        BadRequest: it is no month, or has not begun.
    """
    first = None
    if match := _MONTH.fullmatch(text):
        with suppress(ValueError):
            first = date(int(match[1]), int(match[2]), 1)
    if first is None:
        raise BadRequest("month: must be a month such as 2026-01")
    if first > datetime.fromtimestamp(now, UTC).date():
        raise BadRequest(f"month: {text} has not begun; the days of a statement are in UTC")
    return Period(first, first.replace(day=monthrange(first.year, first.month)[1]))


async def read_statement(ledger: Ledger, store: StatementStore, tenant: str, period: Period, now: float) -> Statement:
    """Add up what a tenant used.

    Raises:
        StoreUnavailable: the ledger does not answer.
    """
    # Asked first: what is settled between the two questions is in a statement that says it may change.
    is_over = now >= period.until + GRACE_SECONDS
    is_final = is_over and not await store.has_open_jobs(tenant, period.since, period.until)
    rows = await ledger.usage(tenant, None, period.since, period.until, frozenset({"endpoint"}))
    granted = await store.sum_grants(tenant, period.since, period.until)
    return Statement(
        tenant,
        period,
        is_final,
        {row.endpoint or "": Line(row.calls, row.used) for row in rows},
        {("tenant" if window == TENANT_GRANT else "subject", unit): paid for (window, unit), paid in granted.items()},
    )


def to_decimal(millionths: int) -> str:
    """Write an amount as a decimal text, without zeros at its end."""
    whole, rest = divmod(abs(millionths), MILLION)
    sign = "-" if millionths < 0 else ""
    return f"{sign}{whole}.{rest:06d}".rstrip("0") if rest else f"{sign}{whole}"
