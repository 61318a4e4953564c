"""Raises alerts: each once in all processes, as a row, a line of the log and a count."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Sequence

from cachetools import LRUCache

from proxy.recurring import Recurring
from proxy.stores.alerts import Alert, AlertStore
from proxy.telemetry.log_limit import LogLimit

#: How often is looked, and so how late an alert may be.
LOOK_SECONDS = 1.0
#: Alerts that one transaction adds, those that wait for the database, and those that are known to be there.
ADDED_AT_ONCE, MOST_WAITING, REMEMBERED = 100, 10_000, 20_000
_log = logging.getLogger(__name__)


class AlertWatch:
    """Takes alerts from their sources, and adds those that are not there yet.

    Args:
        sources: each gives what it has seen since it was last asked.
        count: is given the kind of each new alert.
        find_receivers: gives the receivers of an alert.
    """

    def __init__(
        self,
        store: AlertStore,
        sources: Sequence[Callable[[], Iterable[Alert]]],
        count: Callable[[str], None],
        find_receivers: Callable[[Alert], Collection[str]] = lambda _: (),
    ) -> None:
        self._store = store
        self._sources = sources
        self._count = count
        self._find_receivers = find_receivers
        self._waiting: dict[str, Alert] = {}
        self._known: LRUCache[str, bool] = LRUCache(REMEMBERED)
        self._log_limit = LogLimit()
        self._running = Recurring("alerts", self.run_once, lambda: LOOK_SECONDS)

    def start(self) -> None:
        """Begin to look, until `close`."""
        self._running.start()

    async def close(self) -> None:
        await self._running.close()

    async def run_once(self) -> None:
        """Raise what there is now.

        Raises:
            StoreUnavailable: the database does not answer. What is not added yet is tried the next time.
        """
        for alert in (alert for take in self._sources for alert in take()):
            if alert.id not in self._known and len(self._waiting) < MOST_WAITING:
                self._waiting.setdefault(alert.id, alert)
        while some := list(self._waiting.values())[:ADDED_AT_ONCE]:
            added = await self._store.add(some, self._find_receivers)
            for alert in some:
                del self._waiting[alert.id]
                self._known[alert.id] = True
                if alert.id in added:
                    self._raise(alert)

    def _raise(self, alert: Alert) -> None:
        self._count(alert.kind)
        if self._log_limit.admits(alert.id):
            fields = {"id": alert.id, "kind": alert.kind, "tenant": alert.tenant, **alert.details}
            _log.warning("alert", extra={"log_fields": fields})
