"""Drift: the difference between the ledger and fal's record of the account, by day and endpoint. Nothing is changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from proxy.errors import BadRequest
from proxy.limits.statements import to_decimal
from proxy.limits.usage import Period
from proxy.stores.ledger import UPLOAD, Ledger
from proxy.tenants.terms import MILLION
from proxy.upstream.platform import Billed, DayOfEndpoint, FalPlatform

MOST_DAYS = 92


@dataclass(frozen=True)
class Booked:
    """What the ledger has; amounts are millionths."""

    calls: int = 0
    compute_seconds: int = 0
    usd: int = 0


@dataclass(frozen=True)
class Drift:
    """Two records of the same use."""

    ours: Booked = field(default_factory=Booked)
    fal: Billed = field(default_factory=Billed)

    def describe(self) -> dict[str, Any]:
        """Describe both as JSON, with what the ledger has more than fal. Amounts are texts, to the millionth."""
        units = sorted(self.fal.quantities.items())
        fal_usd = _to_millionths(self.fal.usd)
        return {
            "ours": {
                "calls": self.ours.calls,
                "compute_seconds": to_decimal(self.ours.compute_seconds),
                "usd": to_decimal(self.ours.usd),
            },
            "fal": {
                "calls": self.fal.calls,
                "quantities": [{"unit": unit, "quantity": to_decimal(_to_millionths(used))} for unit, used in units],
                "usd": to_decimal(fal_usd),
            },
            "difference": {
                "calls": self.ours.calls - self.fal.calls,
                "usd": to_decimal(self.ours.usd - fal_usd),
            },
        }


class DriftReports:
    """Compares the ledger with fal's record."""

    def __init__(self, ledger: Ledger, platform: FalPlatform) -> None:
        self._ledger = ledger
        self._platform = platform

    @property
    def is_set_up(self) -> bool:
        """Whether there is a key to ask fal with."""
        return self._platform.has_key

    async def report(self, period: Period) -> dict[str, Any]:
        """Report the drift of some days: a row for each day and endpoint that either side has, and the total.

        Raises:
            BadRequest: the days are too many, or no key is set.
            StoreUnavailable: the ledger does not answer.
            ProxyError: as `FalPlatform.read_usage`.
        """
        if (period.last - period.first).days >= MOST_DAYS:
            raise BadRequest(f"from, to: must be at most {MOST_DAYS} days")
        groups = frozenset({"day", "endpoint"})
        rows = await self._ledger.usage(None, None, period.since, period.until, groups)
        ours = {
            DayOfEndpoint(row.day or "", row.endpoint or ""): Booked(
                row.calls, row.used.get("compute_seconds", 0), row.used.get("usd", 0)
            )
            for row in rows
            # fal bills no uploads.
            if row.endpoint != UPLOAD
        }
        fal = await self._platform.read_usage(period.first, period.last, {key.endpoint for key in ours})
        return _describe(period, ours, fal)


def _describe(
    period: Period, ours: Mapping[DayOfEndpoint, Booked], fal: Mapping[DayOfEndpoint, Billed]
) -> dict[str, Any]:
    drifts = {key: Drift(ours.get(key, Booked()), fal.get(key, Billed())) for key in sorted({*ours, *fal})}
    return {
        "from": period.first.isoformat(),
        "to": period.last.isoformat(),
        "rows": [{**key._asdict(), **drift.describe()} for key, drift in drifts.items()],
        "total": _add_up(drifts.values()).describe(),
    }


def _add_up(drifts: Iterable[Drift]) -> Drift:
    figures: Counter[str] = Counter()
    billed = Billed()
    for drift in drifts:
        figures.update(vars(drift.ours))
        billed.calls += drift.fal.calls
        billed.usd += drift.fal.usd
        for unit, quantity in drift.fal.quantities.items():
            billed.quantities[unit] += quantity
    return Drift(Booked(**figures), billed)


def _to_millionths(amount: Decimal) -> int:
    return round(amount * MILLION)
