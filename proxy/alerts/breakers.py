"""Alerts about fal: its account is locked, or calls are kept from it."""

from __future__ import annotations

from proxy.clock import Clock
from proxy.limits.accounts import window_start
from proxy.stores.alerts import Alert, alert_id
from proxy.upstream.guard import ACCOUNT, Guard

LOCKED_KIND, OPEN_KIND = "upstream.account_locked", "upstream.breaker_open"


class BreakerWatch:
    """Looks which breakers of this process are open. Each is one alert an hour."""

    def __init__(self, guard: Guard, clock: Clock) -> None:
        self._guard = guard
        self._clock = clock

    def take(self) -> list[Alert]:
        """Give an alert for each breaker that is open."""
        return [self._make_alert(name) for name in self._guard.open_names()]

    def _make_alert(self, name: str) -> Alert:
        now, kind = self._clock.now(), LOCKED_KIND if name == ACCOUNT else OPEN_KIND
        return Alert(alert_id(kind, "", name, window_start("hour", now)), kind, "", now, details={"breaker": name})
