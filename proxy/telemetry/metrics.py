"""What a process counts, for Prometheus."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from proxy.telemetry.worker_metrics import WorkerMetrics


class Metrics:
    """The process's counters; labels are of a small, fixed set, never an id of a caller."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._of_workers: WorkerMetrics | None = None
        counter, gauge = partial(Counter, registry=self.registry), partial(Gauge, registry=self.registry)
        self.requests = counter("fal_proxy_requests", "Requests answered.", ["surface", "status"])
        self.seconds = Histogram(
            "fal_proxy_request_seconds", "Time to the end of the answer.", ["surface"], registry=self.registry
        )
        self.refusals = counter("fal_proxy_refusals", "Requests refused, by error_type.", ["error_type"])
        self.uncounted = counter("fal_proxy_uncounted", "Limits that could not be checked: the counters were down.")
        self.unheard = counter(
            "fal_proxy_refusals_over_budget",
            "Requests refused because their address had used up its budget of refusals.",
        )
        self.connections = gauge("fal_proxy_connections", "Connections that callers hold open.")
        self.body_bytes = gauge("fal_proxy_body_bytes", "Bytes of large request bodies in memory.")
        self.connections_refused = counter(
            "fal_proxy_connections_refused",
            "Connections refused, by the limit that was reached: process or address.",
            ["limit"],
        )
        self.connections_evicted = counter(
            "fal_proxy_connections_evicted",
            "Connections that waited for their caller and were closed to make room for others.",
        )
        self.upstream_refusals = counter(
            "fal_proxy_upstream_refusals", "Calls that fal refused or failed at, by reason.", ["reason"]
        )
        self.reloads = counter(
            "fal_proxy_config_reloads", "Reloads of the configuration, by outcome: applied or refused.", ["outcome"]
        )
        self.retention_removed = counter(
            "fal_proxy_retention_removed", "Database rows removed because they were past their time, by kind.", ["kind"]
        )
        # Finding a labelled counter costs more than counting.
        self._of_surface = lru_cache(maxsize=1024)(self._counters_of)

    def count_answer(self, surface: str, status: int, seconds: float) -> None:
        """Count one request, by the route that stands for its path."""
        requests, duration = self._of_surface(surface, status)
        requests.inc()
        duration.observe(seconds)

    def _counters_of(self, surface: str, status: int) -> tuple[Counter, Histogram]:
        return self.requests.labels(surface, status), self.seconds.labels(surface)

    async def share(self, folder: Path) -> None:
        """Add up with the other workers from here on, whose metrics meet in a folder."""
        self._of_workers = WorkerMetrics(self.registry, folder)
        await self._of_workers.start()

    async def unshare(self) -> None:
        """Leave what was counted to the other workers, at the end of this one."""
        if self._of_workers is not None:
            await self._of_workers.close()

    async def render(self) -> bytes:
        """All there is to know, in Prometheus's text format."""
        return generate_latest(self.registry) if self._of_workers is None else await self._of_workers.render()

    def upstream_refused(self, reason: str) -> None:
        self.upstream_refusals.labels(reason).inc()

    def rows_removed(self, kind: str, rows: int) -> None:
        self.retention_removed.labels(kind).inc(rows)

    def gauge(
        self,
        watched_jobs: Callable[[], int],
        open_streams: Callable[[], int],
        open_breakers: Callable[[], int],
        deferred: Callable[[], int],
    ) -> None:
        """Tell at each reading what goes on now."""
        for name, text, read in (
            ("fal_proxy_watched_jobs", "Jobs whose status stream is open at fal.", watched_jobs),
            ("fal_proxy_open_streams", "Event streams that callers hold open.", open_streams),
            ("fal_proxy_upstream_breakers_open", "Breakers that keep new calls from fal.", open_breakers),
            ("fal_proxy_ledger_deferred", "Ledger entries that wait for the database.", deferred),
            ("fal_proxy_tasks", "Tasks of the event loop.", lambda: len(asyncio.all_tasks())),
        ):
            Gauge(name, text, registry=self.registry).set_function(read)
