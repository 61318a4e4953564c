"""The work of a process beside its calls: abandoned jobs, the removal of old rows, the sums of usage, alerts."""

from __future__ import annotations

from proxy.alerts.services import AlertServices
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
            _new_alerts(parts),
        )

    def start(self) -> None:
        """Begin all work."""
        for work in self._works:
            work.start()

    async def close(self) -> None:
        """End all work."""
        for work in self._works:
            await work.close()


def _new_alerts(parts: Container) -> AlertServices:
    return AlertServices(
        settings=parts.settings,
        stores=parts.stores,
        counters=parts.counters,
        directory=parts.directory,
        guard=parts.upstream.guard,
        metrics=parts.metrics,
        clock=parts.clock,
        ssl_context=parts.issuer_tls,
    )
