"""Sees a tenant that uses far more in an hour than it usually does.

Usual is the median of the hours in which the tenant made calls, in the week before. It is read once an hour, for
tenants that use enough to matter.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from statistics import median

from cachetools import LRUCache

from proxy.clock import Clock, to_iso
from proxy.recurring import Recurring
from proxy.stores.alerts import Alert, alert_id
from proxy.stores.spend import HOUR_SECONDS, SPEND_UNITS, SpendHour, SpendStore
from proxy.tenants.directory import Directory

KIND = "spend.rate"
#: How often a process looks.
EVERY_SECONDS = 60.0
#: How many times as much as usual is an alert, if it is as much as this at all.
FACTOR, FLOORS = 4.0, {"requests": 100.0, "usd": 1.0}
#: The hours that are compared with the current ones, and how many of them must have calls.
WEEK_HOURS, LEAST_HOURS = 168, 6
#: Tenants whose usual amounts one run reads, and those that are remembered.
READ_AT_ONCE, REMEMBERED = 50, 20_000


class SpendWatch:
    """Compares the current hour and the one before with the usual hours, from `start` to `close`."""

    def __init__(self, store: SpendStore, directory: Directory, clock: Clock) -> None:
        self._store = store
        self._directory = directory
        self._clock = clock
        #: By tenant and hour, the usual amount of each unit; none without enough hours.
        self._usual: LRUCache[tuple[str, int], dict[str, float]] = LRUCache(REMEMBERED)
        self._alerts: list[Alert] = []
        # Replicas that started together do not look together.
        self._running = Recurring("spend watch", self.run_once, lambda: EVERY_SECONDS * random.uniform(0.5, 1.0))

    def start(self) -> None:
        """Begin to look."""
        self._running.start()

    async def close(self) -> None:
        await self._running.close()

    def take(self) -> list[Alert]:
        """Give the alerts of what was seen since the last time."""
        alerts, self._alerts = self._alerts, []
        return alerts

    async def run_once(self) -> None:
        """Look at the current hour, and at the one before: the last jobs of an hour are counted in the next.

        Raises:
            StoreUnavailable: the database does not answer.
        """
        now = int(self._clock.now() // HOUR_SECONDS)
        tenants = self._directory.latest.tenants
        found = [one for one in await self._store.list_above((now - 1, now), FLOORS) if one.tenant in tenants]
        await self._read_usual({one.tenant for one in found}, now)
        self._alerts += [alert for one in found for alert in self._judge(one, self._usual.get((one.tenant, now)))]

    async def _read_usual(self, tenants: Iterable[str], now: int) -> None:
        unknown = sorted(tenant for tenant in tenants if (tenant, now) not in self._usual)[:READ_AT_ONCE]
        hours: dict[str, list[SpendHour]] = {tenant: [] for tenant in unknown}
        if hours:
            for one in await self._store.list_hours(unknown, now - 1 - WEEK_HOURS, now - 1):
                hours[one.tenant].append(one)
        for tenant, listed in hours.items():
            self._usual[tenant, now] = _find_usual(listed)

    def _judge(self, one: SpendHour, usual: dict[str, float] | None) -> Iterable[Alert]:
        for unit, often in (usual or {}).items():
            amount = one.amount_of(unit)
            if amount >= FLOORS[unit] and amount > FACTOR * often:
                yield self._make_alert(one, unit, often)

    def _make_alert(self, one: SpendHour, unit: str, usual: float) -> Alert:
        hour = one.hour * HOUR_SECONDS
        details = {
            "unit": unit,
            "hour": to_iso(hour),
            "amount": round(one.amount_of(unit), 6),
            "usual": round(usual, 6),
        }
        return Alert(alert_id(KIND, one.tenant, unit, hour), KIND, one.tenant, self._clock.now(), details=details)


def _find_usual(hours: Sequence[SpendHour]) -> dict[str, float]:
    """Return the median of each unit; nothing if there are too few hours."""
    if len(hours) < LEAST_HOURS:
        return {}
    return {unit: median(hour.amount_of(unit) for hour in hours) for unit in SPEND_UNITS}
