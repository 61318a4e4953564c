"""What a process counts, for Prometheus."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector

from proxy import __version__
from proxy.errors import ProxyError
from proxy.telemetry.instruments import Count, Counts, Distribution, Distributions
from proxy.telemetry.worker_metrics import WorkerMetrics, read_registry, render_registry

#: Seconds, for what takes milliseconds: stores, queues in this process, the event loop.
SHORT = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
#: For what may wait for a model.
LONG = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_REFUSALS = "fal_proxy_refusals"
#: What fal may answer with and others may make of it; all else is one label.
_STATUSES = frozenset({*map(int, HTTPStatus), 499})


@dataclass(frozen=True)
class LiveValues:
    """What is read at each scrape, and the most that each of them may be."""

    watched_jobs: Callable[[], int]
    open_streams: Callable[[], int]
    open_breakers: Callable[[], int]
    deferred: Callable[[], int]
    max_streams: int


def _kinds_of(kind: type[ProxyError]) -> Iterator[type[ProxyError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _kinds_of(child)


class Metrics:
    """The process's counters; labels are of a small, fixed set, never an id of a caller.

    Args:
        commit: the revision of the source, if it is known.
    """

    def __init__(self, commit: str | None = None) -> None:
        self.registry = CollectorRegistry()
        self._of_workers: WorkerMetrics | None = None
        self._add_traffic()
        self._add_refusals()
        self._add_durations()
        self._add_process(commit)
        self._answers: dict[tuple[str, int], tuple[Count, Distribution]] = {}

    def _add_traffic(self) -> None:
        gauge = partial(Gauge, registry=self.registry)
        self.requests = Counts(self.registry, "fal_proxy_requests", "Requests answered.", ["surface", "status"])
        self.seconds = Distributions(
            self.registry, "fal_proxy_request_seconds", "Time to the end of the answer.", ["surface"], LONG
        )
        self.connections = gauge("fal_proxy_connections", "Connections that callers hold open.")
        self.connections_limit = gauge("fal_proxy_connections_limit", "Connections that callers may hold open.")
        self.body_bytes = gauge("fal_proxy_body_bytes", "Bytes of large request bodies in memory.")

    def _add_refusals(self) -> None:
        counter = partial(Counter, registry=self.registry)
        self.refusals = counter(_REFUSALS, "Requests refused, by error_type.", ["error_type"])
        self.uncounted = counter("fal_proxy_uncounted", "Limits that could not be checked: the counters were down.")
        self.unheard = counter(
            "fal_proxy_refusals_over_budget",
            "Requests refused because their address had used up its budget of refusals.",
        )
        self.origins_refused = counter(
            "fal_proxy_origins_refused",
            "Pages refused for their origin, by what was refused: preflight, cookie or guest.",
            ["check"],
        )
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
        self._expect(self.refusals, (kind.code for kind in _kinds_of(ProxyError)))
        self._expect(self.connections_refused, ("process", "address"))
        self._expect(self.reloads, ("applied", "refused"))
        self._expect(self.origins_refused, ("preflight", "cookie", "guest"))

    async def list_refusals(self) -> dict[str, int]:
        """List how many requests all workers have refused since the server's start, by error_type; without zeros."""
        report = read_registry(self.registry) if self._of_workers is None else await self._of_workers.read()
        samples = (sample for family in report if family["name"] == _REFUSALS for sample in family["samples"])
        totals = {labels["error_type"]: int(value) for _, labels, value in samples}
        return {code: total for code, total in sorted(totals.items()) if total}

    def _expect(self, counter: Counter, labels: Iterable[str]) -> None:
        """Show labels from the start, as 0: of a counter that begins with 1, Prometheus sees no increase."""
        for label in labels:
            counter.labels(label)

    def expect_upstream_refusals(self, reasons: Iterable[str]) -> None:
        """Show the reasons that fal can have from the start."""
        self._expect(self.upstream_refusals, reasons)

    def _add_durations(self) -> None:
        add = partial(Distributions, self.registry)
        self.upstream_seconds = add(
            "fal_proxy_upstream_seconds",
            "Time from a request to fal to its answer, or to the head of a stream.",
            ["operation", "status"],
            LONG,
        )
        self.store_seconds = add(
            "fal_proxy_store_seconds",
            "Time for one step in the database or in Redis, with the wait for a connection.",
            ["store", "operation"],
            SHORT,
        )
        self.queue_seconds = add("fal_proxy_queue_seconds", "Time in a queue, by queue.", ["queue"], LONG)
        self.loop_lag = add("fal_proxy_event_loop_lag_seconds", "How late the event loop is.", [], SHORT)

    def _add_process(self, commit: str | None) -> None:
        ProcessCollector(registry=self.registry)
        Gauge("fal_proxy_workers", "Processes that serve.", registry=self.registry).set(1)
        build = Gauge(
            "fal_proxy_build_info", "What runs here: always 1.", ["version", "python", "commit"], registry=self.registry
        )
        build.labels(__version__, platform.python_version(), commit or "unknown").set(1)

    def add_counts(self, name: str, text: str, labels: Sequence[str] = ()) -> Counts:
        """Add counts of one name, which their owner alone changes."""
        return Counts(self.registry, name, text, labels)

    def add_gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Add a value that is read at each scrape."""
        Gauge(name, text, registry=self.registry).set_function(read)

    def add_gauges(self, name: str, text: str, label: str, reads: Mapping[str, Callable[[], float]]) -> None:
        """Add values that are read at each scrape, one for each value of a label."""
        gauge = Gauge(name, text, [label], registry=self.registry)
        for value, read in reads.items():
            gauge.labels(value).set_function(read)

    def count_answer(self, surface: str, status: int, seconds: float) -> None:
        """Count one request, by the route that stands for its path."""
        requests, duration = self._answers.get((surface, status)) or self._add_answer(surface, status)
        requests.value += 1
        duration.observe(seconds)

    def _add_answer(self, surface: str, status: int) -> tuple[Count, Distribution]:
        shown = str(status) if status in _STATUSES else "other"
        found = self.requests.of(surface, shown), self.seconds.of(surface)
        if shown != "other":
            self._answers[surface, status] = found
        return found

    def count_upstream(self, operation: str, status: int | None, seconds: float) -> None:
        """Count one exchange with fal, by the class of its answer; None if there was no answer."""
        shown = "none" if status is None else f"{status // 100}xx" if 200 <= status < 600 else "other"
        self.upstream_seconds.of(operation, shown).observe(seconds)

    async def share(self, folder: Path) -> None:
        """Add up the metrics of all workers from now on; `folder` is where they exchange them."""
        self._of_workers = WorkerMetrics(self.registry, folder)
        await self._of_workers.start()

    async def unshare(self) -> None:
        """Leave what was counted to the other workers, at the end of this one."""
        if self._of_workers is not None:
            await self._of_workers.close()

    async def render(self) -> bytes:
        """Render all metrics in Prometheus's text format."""
        return render_registry(self.registry) if self._of_workers is None else await self._of_workers.render()

    def upstream_refused(self, reason: str) -> None:
        self.upstream_refusals.labels(reason).inc()

    def rows_removed(self, kind: str, rows: int) -> None:
        self.retention_removed.labels(kind).inc(rows)

    def gauge(self, live: LiveValues) -> None:
        """Tell at each reading what goes on now."""
        reads: tuple[tuple[str, str, Callable[[], int]], ...] = (
            ("fal_proxy_watched_jobs", "Jobs whose status stream is open at fal.", live.watched_jobs),
            ("fal_proxy_open_streams", "Event streams that callers hold open.", live.open_streams),
            ("fal_proxy_open_streams_limit", "Event streams that callers may hold open.", lambda: live.max_streams),
            ("fal_proxy_upstream_breakers_open", "Breakers that keep new calls from fal.", live.open_breakers),
            ("fal_proxy_ledger_deferred", "Ledger entries that wait for the database.", live.deferred),
            ("fal_proxy_tasks", "Tasks of the event loop.", lambda: len(asyncio.all_tasks())),
        )
        for name, text, read in reads:
            Gauge(name, text, registry=self.registry).set_function(read)
