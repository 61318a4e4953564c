"""A command writes docs/performance.md from the measurements; the page has that command's text."""

from __future__ import annotations

from typing import Any

from tests.bench.million_page import MILLION, replace_section
from tests.bench.page import PAGE, page
from tests.bench.page_texts import GOALS, HEAD, LEDGER, SAVINGS, TRIED

NAMES = ("fal-proxy", "official, hono")


def turns(*rates: float) -> list[dict[str, Any]]:
    return [{"per_cpu_second": rate, "per_second": rate / 2, "p50_ms": 1.0, "p99_ms": 2.0} for rate in rates]


def report(**more: Any) -> dict[str, Any]:
    return {
        "machine": {"cpu": "a processor", "cores": 2, "load_before": 0.1, "system": "Linux", "python": "3.11"},
        "versions": {"fal-proxy": "0.1.0"},
        "connections": 32,
        "polls": 20,
        "rounds": 3,
        "seconds": 4.0,
        "upstream_alone": {"per_second": 64_000.0},
        "fastest_contestant": 20_000.0,
        "results": {
            workload: dict(zip(NAMES, (turns(3000, 3300, 2000), turns(1000, 1000, 1000)), strict=True))
            for workload in ("run", "submit", "status", "whole jobs")
        },
        "latency": {
            workload: {"fal-proxy": {"per_second": 1000.0, "p50_ms": 0.51, "p99_ms": 4.02}}
            for workload in ("run", "submit")
        },
        "footprint": {"start_seconds": 0.75, "idle_mib": 87.4, "after_load_mib": 95.0},
        "streams": {"streams": 2000, "kib_each": 20.1, "seconds_between": 10.0, "kib_each_over_time": [20.1]},
        "fan_out": {"watchers": 200, "last_after_first_ms": 12.3},
        **more,
    }


def test_ratios_are_the_medians_of_the_rounds() -> None:
    written = page(report(), None)
    assert "| run | 3,000 | 1,000 | 3.00 |" in written
    assert "| run | fal-proxy | 1,000 | 0.51 | 4.02 |" in written
    assert "- run, fal-proxy: 3,000 3,300 2,000" in written
    words = " ".join(written.split())
    assert "0.75 s" in words and "87 MiB" in words and "12 ms after the first" in words
    assert "## Limits" not in written and "minutes, a stream" not in written


def test_a_goal_that_is_not_reached_says_how_far_it_is_missed() -> None:
    written = page(report())
    assert "| run ÷ official, hono | ≥ 3.5 | 3 | no: 0.86 times the goal |" in written
    assert "| memory of an idle process | ≤ 65 MiB | 87.4 MiB | no: 1.34 times the goal |" in written
    assert "| submit ÷ official, hono | ≥ 3 | 3 | yes |" in written


def test_other_measurements_are_stated_too() -> None:
    stores = {"SQLite, off": 2000, "SQLite, on": 1500, "PostgreSQL, off": 1000, "PostgreSQL, on": 600}
    credentials = {"session": turns(2000), "identity token": turns(1960)}
    limits = {
        "results": {workload: {name: turns(rate) for name, rate in stores.items()} for workload in ("submit", "run")},
        "credentials": {"run": credentials, "status": credentials},
    }
    held = {"streams": 2000, "kib_each": 20.0, "seconds_between": 10.0, "kib_each_over_time": [20.0] * 60 + [21.5]}
    written = page(report(streams=held), limits)
    assert "| submit: share of what the same stores reach without limits | 1.00 | 0.75 | 1.00 | 0.60 |" in written
    assert "with a session: 0.98 for a run, 0.98 for a status." in " ".join(written.split())
    assert "Over 10 minutes, a stream took 20.0 to 21.5 KiB." in " ".join(written.split())


def test_the_endurance_figures_are_stated() -> None:
    endurance = {
        "slow_upstream": {
            "milliseconds": 100,
            "connections": 600,
            "microseconds_a_run": {"fal-proxy": [250.4, 260.0, 240]},
        },
        "stalls": {"seconds": 60, "checks": 9000, "over_20_ms": 2, "longest_ms": 31.4},
        "hang_ups": {"streams": 50_000, "mib_more": [0.5, 0.75, 0.9]},
    }
    words = " ".join(page(report(), endurance=endurance).split())
    assert "with 600 connections, a run takes this processor time: 250 µs through fal-proxy." in words
    assert "2 of 9,000 health checks took longer than 20 ms; the longest took 31 ms." in words
    assert "After 50,000 streams whose clients hung up, the process takes 0.9 MiB more" in words
    assert "## Endurance" not in page(report())


def million(**pages: float) -> dict[str, Any]:
    found = {"pages": pages, "results": {"submit": {"sqlite empty": turns(2000), "sqlite full": turns(1960)}}}
    return {"machine": report()["machine"], "jobs": 10**6, "rows": 2 * 10**6, "databases": {"sqlite": found}}


def test_a_million_jobs_are_stated_and_can_be_measured_again() -> None:
    written, without = page(report(), million=million(**{"/v1/admin/usage": 12.3, "/console": 120})), page(report())
    words = " ".join(written.split())
    assert "1,000,000 jobs and 2,000,000 sums" in words and "0.98 for a submit on SQLite" in words
    assert "| calls beside a million jobs ÷ an empty database | ≥ 0.9 | 0.98 | yes |" in written
    assert "| slowest report of usage of a million jobs | ≤ 100 ms | 12.3 ms | yes |" in written
    assert f"{MILLION}\n" in written and MILLION not in without
    section = "\n".join([MILLION, "", "| `/v1/admin/usage` | 45 |", ""])
    again = replace_section(written, section)
    assert "| `/v1/admin/usage` | 45 |" in again and "| `/v1/admin/usage` | 12 |" not in again
    assert replace_section(without, section) == again, "the other sections stay as they are"


def test_no_line_is_longer_than_those_of_the_other_pages() -> None:
    lines = page(report(), None).splitlines()
    assert max(len(line) for line in lines if not line.startswith(("|", "-"))) <= 120


def test_the_page_has_the_words_of_the_command() -> None:
    written = PAGE.read_text()
    assert written.startswith(HEAD) and all(text in written for text in (GOALS, LEDGER, SAVINGS, TRIED))
