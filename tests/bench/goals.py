"""The goals of the benchmarks, beside the measured figures."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tests.bench.contestants import OURS
from tests.bench.rounds import JOBS, RUN, STATUS, SUBMIT, ratio

Report = Mapping[str, Any]
HONO = "official, hono"


class Goal(NamedTuple):
    """A figure with its goal; a lower one is better where `is_most`."""

    name: str
    goal: float
    reached: float
    unit: str = ""
    is_most: bool = False

    @property
    def is_met(self) -> bool:
        return self.reached <= self.goal if self.is_most else self.reached >= self.goal


def goals_of(bench: Report, limits: Report | None, uploads: Report | None, endurance: Report | None) -> list[Goal]:
    """All goals about which there are results."""
    found = [*_of_bench(bench)]
    if limits is not None:
        found.append(_of_stores(limits["results"][RUN.name]))
    if uploads is not None:
        found.append(_of_uploads(uploads["results"]))
    if endurance is not None:
        found += _of_endurance(endurance)
    return found


def _of_bench(bench: Report) -> Iterator[Goal]:
    for workload, goal in ((RUN, 3.5), (SUBMIT, 3.0), (STATUS, 15.0), (JOBS, 6.0)):
        turns = bench["results"][workload.name]
        yield Goal(f"{workload.name} ÷ {HONO}", goal, ratio(turns[OURS], turns[HONO]))
    if "native_jobs" in bench:
        native = statistics.median(bench["native_jobs"])
        yield Goal("native job, one POST with its event stream, processor time", 500, native, " µs", is_most=True)
    for workload in (RUN, SUBMIT):
        added = bench["latency"][workload.name][OURS]
        yield Goal(f"{workload.name}, added at half load, median", 0.7, added["p50_ms"], " ms", is_most=True)
        yield Goal(f"{workload.name}, added at half load, 99th percentile", 2.5, added["p99_ms"], " ms", is_most=True)
    footprint = bench["footprint"]
    yield Goal("memory of an idle process", 65, footprint["idle_mib"], " MiB", is_most=True)
    yield Goal("start", 0.45, footprint["start_seconds"], " s", is_most=True)
    yield Goal("memory of an open stream", 28, max(bench["streams"]["kib_each_over_time"]), " KiB", is_most=True)


def _of_stores(turns: Mapping[str, Sequence[Report]]) -> Goal:
    """A run with all limits, with SQLite and memory beside PostgreSQL and Redis."""
    _, local, _, remote = turns.values()
    return Goal("run: PostgreSQL and Redis ÷ SQLite, processor time", 1.6, ratio(local, remote), is_most=True)


def _of_uploads(results: Mapping[str, Sequence[float]]) -> Goal:
    *_, beside = results
    share = statistics.median(one / other for one, other in zip(results[OURS], results[beside], strict=True))
    return Goal(f"a file of 200 MiB ÷ {beside}", 0.8, share)


def _of_endurance(endurance: Report) -> Iterator[Goal]:
    runs = endurance["slow_upstream"]["microseconds_a_run"][OURS]
    yield Goal("run before a slow upstream, processor time", 200, statistics.median(runs), " µs", is_most=True)
    yield Goal("stalls over 20 ms in half load", 0, endurance["stalls"]["over_20_ms"], is_most=True)


def goals_of_million(databases: Collection[Report]) -> Iterator[Goal]:
    """The goals of databases with a million jobs."""
    each = [turns.values() for one in databases for turns in one["results"].values()]
    shares = [ratio(full, empty, "per_second") for empty, full in each]
    yield Goal("calls beside a million jobs ÷ an empty database", 0.9, min(shares))
    reports = [milliseconds for one in databases for path, milliseconds in one["pages"].items() if "/usage" in path]
    yield Goal("slowest report of usage of a million jobs", 100, max(reports), " ms", is_most=True)


def rows_of(goals: Sequence[Goal]) -> list[list[str]]:
    """The rows of a table: what, its goal, what was reached, and whether that is enough."""
    return [
        [one.name, f"{'≤' if one.is_most else '≥'} {one.goal:g}{one.unit}", f"{one.reached:.3g}{one.unit}",
         _rate(one)]
        for one in goals
    ]  # fmt: skip


def _rate(goal: Goal) -> str:
    if goal.is_met:
        return "yes"
    return f"no: {goal.reached / goal.goal:.2f} times the goal" if goal.goal else "no"
