"""What tenants use in each hour of the last days, as far as it is needed to see that one uses much more than usual."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

#: What is summed up, in whole units.
SPEND_UNITS = ("requests", "usd")
HOUR_SECONDS = 3600
#: How long the sums are kept: a week before the current hours, and some more.
KEPT_SECONDS = 8 * 86_400.0


@dataclass(frozen=True)
class SpendHour:
    """The sums of a tenant's jobs that were submitted in one hour, counted from 1970 UTC, and are counted by now."""

    tenant: str
    hour: int
    requests: float
    usd: float

    def amount_of(self, unit: str) -> float:
        return self.usd if unit == "usd" else self.requests


class SpendStore(Protocol):
    """The sums, which the rollup of usage adds to."""

    async def list_above(self, hours: Collection[int], floors: Mapping[str, float]) -> Sequence[SpendHour]:
        """List the sums of these hours that reach the floor of some unit."""

    async def list_hours(self, tenants: Collection[str], first: int, end: int) -> Sequence[SpendHour]:
        """List the sums of some tenants in the hours from `first` to before `end`. Hours without jobs have none."""
