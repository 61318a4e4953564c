"""The work that a process does beside its calls: what abandoned jobs, old rows and reports need."""

from __future__ import annotations

from proxy.alerts.breakers import LOCKED_KIND, OPEN_KIND, BreakerWatch
from proxy.alerts.quota_watch import KIND, QuotaWatch
from proxy.alerts.watch import AlertWatch
from proxy.container import Container
from proxy.jobs.reconciler import Reconciler
from proxy.jobs.retention import Cleaner
from proxy.jobs.usage_rollup import UsageCounter


class Background:
    """All of it, from `start` to `close`. It need not be done in every process of a database."""

    def __init__(self, parts: Container) -> None:
        stores, clock, kept = parts.stores, parts.clock, parts.settings.stores
        self._works = (
            Reconciler(
                stores.ledger,
                parts.upstream,
                parts.queue,
                parts.settlement,
                parts.leases,
                clock,
                parts.hub.is_watching,
            ),
            Cleaner(stores.retention, clock, kept.retention_seconds, kept.audit_seconds, parts.metrics.rows_removed),
            UsageCounter(stores.usage_rollup),
            _watch_for_alerts(parts),
        )

    def start(self) -> None:
        """Begin all work."""
        for work in self._works:
            work.start()

    async def close(self) -> None:
        """End all work."""
        for work in self._works:
            await work.close()


def _watch_for_alerts(parts: Container) -> AlertWatch:
    counts = parts.metrics.add_counts("fal_proxy_alerts", "Alerts raised, by kind.", ["kind"])
    by_kind = {kind: counts.of(kind) for kind in (KIND, LOCKED_KIND, OPEN_KIND)}

    def count(kind: str) -> None:
        by_kind[kind].value += 1

    quotas = QuotaWatch(parts.clock)
    parts.directory.listen(quotas.learn)
    parts.stores.ledger.listen(quotas.note)
    breakers = BreakerWatch(parts.upstream.guard, parts.clock)
    return AlertWatch(parts.stores.alerts, (quotas.take, breakers.take), count)
