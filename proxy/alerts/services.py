"""Builds what raises and delivers alerts."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from functools import partial

from proxy.alerts import spend_watch, store_watch
from proxy.alerts.breakers import LOCKED_KIND, OPEN_KIND, BreakerWatch
from proxy.alerts.delivery import FAILING_KIND, AlertDelivery
from proxy.alerts.quota_watch import KIND, QuotaWatch
from proxy.alerts.receivers import Receivers
from proxy.alerts.spend_watch import SpendWatch
from proxy.alerts.store_watch import StoreWatch
from proxy.alerts.watch import AlertWatch
from proxy.alerts.webhooks import WebhookSender
from proxy.clock import Clock
from proxy.settings import Settings
from proxy.stores.base import Stores
from proxy.stores.counters import Counters
from proxy.telemetry.metrics import Metrics
from proxy.tenants.directory import Directory
from proxy.upstream.guard import Guard

KINDS = (KIND, LOCKED_KIND, OPEN_KIND, FAILING_KIND, store_watch.KIND, spend_watch.KIND)


class AlertServices:
    """All that has to do with alerts in a process, from `start` to `close`.

    Args:
        ssl_context: what verifies receivers; as for fal if None.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        stores: Stores,
        counters: Counters,
        directory: Directory,
        guard: Guard,
        metrics: Metrics,
        clock: Clock,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        receivers = Receivers(settings, directory)
        quotas, breakers = QuotaWatch(clock), BreakerWatch(guard, clock)
        directory.listen(quotas.learn)
        stores.ledger.listen(quotas.note)
        raised = AlertMetrics(metrics)
        sender = WebhookSender(settings.alerts.networks, clock, ssl_context)
        self._delivery = AlertDelivery(
            stores.deliveries, receivers, sender, clock, raised.count_deliveries, raised.note_oldest
        )
        checks = {"database": stores.ping, "counters": counters.ping}
        self._stores = StoreWatch(checks, clock)
        raised.show_stores({name: partial(self._stores.is_degraded, name) for name in checks})
        self._spend = SpendWatch(stores.spend, directory, clock)
        sources = (quotas.take, breakers.take, self._delivery.take, self._stores.take, self._spend.take)
        self._watch = AlertWatch(stores.alerts, sources, raised.count_raised, receivers.list_for)

    def start(self) -> None:
        """Begin to look and to deliver."""
        self._watch.start()
        self._delivery.start()
        self._stores.start()
        self._spend.start()

    async def close(self) -> None:
        await self._spend.close()
        await self._stores.close()
        await self._watch.close()
        await self._delivery.close()


class AlertMetrics:
    """What a process counts of alerts."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        raised = metrics.add_counts("fal_proxy_alerts", "Alerts raised, by kind.", ["kind"])
        delivered = metrics.add_counts(
            "fal_proxy_alert_deliveries", "Deliveries of alerts, by outcome: sent, failed or dead.", ["outcome"]
        )
        self._raised = {kind: raised.of(kind) for kind in KINDS}
        self._deliveries = {outcome: delivered.of(outcome) for outcome in ("sent", "failed", "dead")}
        self._oldest = 0.0
        text = "Seconds for which the oldest alert has waited for its receiver."
        metrics.add_gauge("fal_proxy_alert_oldest_waiting_seconds", text, lambda: self._oldest)

    def show_stores(self, are_degraded: Mapping[str, Callable[[], bool]]) -> None:
        """Show which stores have not worked for long."""
        text = "Whether a store has failed or was slow for half a minute, by store: database or counters."
        self._metrics.add_gauges("fal_proxy_store_degraded", text, "store", are_degraded)

    def count_raised(self, kind: str) -> None:
        self._raised[kind].value += 1

    def count_deliveries(self, outcome: str, number: int) -> None:
        self._deliveries[outcome].value += number

    def note_oldest(self, seconds: float) -> None:
        self._oldest = seconds
