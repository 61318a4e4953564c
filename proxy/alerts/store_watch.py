"""Looks whether the database and Redis work, also while no call needs them.

An alert is a row of the database, so one about the database waits in this process until the database works. The log and
the metrics say it at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from proxy.clock import Clock, to_iso
from proxy.limits.accounts import window_start
from proxy.recurring import Recurring
from proxy.store_check import Check, StoreCheck
from proxy.stores.alerts import Alert, alert_id

KIND = "store.degraded"
#: How often each store is checked, and after how long without an answer it counts as slow.
CHECK_SECONDS, SLOW_SECONDS = 10.0, 1.0
#: How long all checks of a store fail, or are slow, until that is an alert. It is one an hour.
DEGRADED_SECONDS = 30.0
_log = logging.getLogger(__name__)


class StoreWatch:
    """Checks the stores of a process, from `start` to `close`.

    Args:
        checks: by the names of the stores.
        slow_seconds: after how long a check is slow.
    """

    def __init__(self, checks: Mapping[str, Check], clock: Clock, slow_seconds: float = SLOW_SECONDS) -> None:
        self._stores = {name: _Store(name, check, clock, slow_seconds) for name, check in checks.items()}
        self._clock = clock
        self._running = Recurring("store watch", self.run_once, lambda: CHECK_SECONDS)

    def start(self) -> None:
        """Begin to check."""
        self._running.start()

    async def close(self) -> None:
        await self._running.close()
        for store in self._stores.values():
            await store.close()

    async def run_once(self) -> None:
        """Check all stores side by side, each for a second at most."""
        await asyncio.gather(*(store.look() for store in self._stores.values()))

    def is_degraded(self, name: str) -> bool:
        """Return whether a store has not worked for long."""
        return self._stores[name].is_degraded

    def take(self) -> list[Alert]:
        """Give an alert for each store that has not worked for long."""
        return [self._make_alert(store) for store in self._stores.values() if store.is_degraded]

    def _make_alert(self, store: _Store) -> Alert:
        now = self._clock.now()
        details = {"store": store.name, "problem": store.problem, "degraded_since": to_iso(store.bad_since or now)}
        return Alert(alert_id(KIND, "", store.name, window_start("hour", now)), KIND, "", now, details=details)


class _Store:
    """One store, and since when it has not worked.

    Attributes:
        bad_since: when a check failed or was slow first, since the last good one; None after a good one.
        problem: of the last check.
    """

    def __init__(self, name: str, check: Check, clock: Clock, slow_seconds: float) -> None:
        self.name = name
        self.bad_since: float | None = None
        self.is_degraded = False
        self.problem = ""
        self._check = StoreCheck(check, slow_seconds)
        self._clock = clock
        self._slow_seconds = slow_seconds

    async def look(self) -> None:
        began = self._clock.now()
        try:
            problem = await self._check.find_problem()
        except TimeoutError:
            self._note_problem(began, f"no answer within {self._slow_seconds:g} seconds")
            return
        if problem is None:
            self._note_answer()
        else:
            self._note_problem(began, problem.message)

    async def close(self) -> None:
        await self._check.close()

    def _note_problem(self, began: float, problem: str) -> None:
        self.problem = problem
        self.bad_since = began if self.bad_since is None else self.bad_since
        if not self.is_degraded and self._clock.now() - self.bad_since >= DEGRADED_SECONDS:
            self.is_degraded = True
            _log.warning("store degraded", extra={"log_fields": {"store": self.name, "problem": problem}})

    def _note_answer(self) -> None:
        if self.is_degraded:
            seconds = round(self._clock.now() - (self.bad_since or 0.0))
            _log.warning("store recovered", extra={"log_fields": {"store": self.name, "seconds": seconds}})
        self.bad_since, self.is_degraded, self.problem = None, False, ""
