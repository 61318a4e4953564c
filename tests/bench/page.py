"""docs/performance.md from what the benchmarks measured: `python -m tests.bench.page`.

Reads bench.json, bench-limits.json, bench-uploads.json and bench-endurance.json in build/, as `make bench`
leaves them, and what other benchmarks leave beside them. Of what is missing, but for the first, the page says nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bench.goals import Goal, goals_of, rows_of
from tests.bench.markdown import write_number, write_paragraph, write_table
from tests.bench.million_page import describe_million
from tests.bench.native_jobs import describe_native_jobs
from tests.bench.page_texts import BEFORE, FLAME, GOALS, HEAD, LEDGER, SAVINGS, TRIED, UPLOADS
from tests.bench.processes import ROOT
from tests.bench.rounds import median, ratio

PAGE = ROOT / "docs" / "performance.md"
Report = Mapping[str, Any]

#: What the page says beside the first, in this order.
OTHERS = ("limits", "uploads", "endurance", "flame", "million")


def page(
    bench: Report,
    limits: Report | None = None,
    uploads: Report | None = None,
    endurance: Report | None = None,
    flame: Report | None = None,
    million: Report | None = None,
) -> str:
    """The whole page."""
    parts = [HEAD, _where(bench), _beside(bench), _latency(bench), _footprint(bench), _streams(bench)]
    if "native_jobs" in bench:
        parts.append(describe_native_jobs(bench["native_jobs"]))
    if limits is not None:
        parts.append(_limits(limits))
    if uploads is not None:
        parts.append(_uploads(uploads))
    if endurance is not None:
        parts.append(_endurance(endurance))
    parts.append(_goals(goals_of(bench, limits, uploads, endurance)))
    if flame is not None:
        parts.append(_flame(flame))
    if million is not None:
        parts.append(describe_million(million))
    return "\n".join([*parts, SAVINGS, TRIED, _rounds(bench, limits)])


def _where(bench: Report) -> str:
    machine = bench["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in bench["versions"].items())
    return write_paragraph(
        f"""Measured on {machine["cores"]} cores of {machine["cpu"]}, {machine["system"]}, Python {machine["python"]},
        load {machine["load_before"]} before; {bench["connections"]} connections, {bench["rounds"]} rounds of
        {bench["seconds"]:g} seconds. {versions}."""
    )


def _beside(bench: Report) -> str:
    results = bench["results"]
    ours, *others = next(iter(results.values()))
    rows = []
    for workload, turns in results.items():
        rates = [write_number(median(turns[name], "per_cpu_second")) for name in (ours, *others)]
        rows.append([workload, *rates, *(f"{ratio(turns[ours], turns[name]):.2f}" for name in others)])
    table = write_table(["a second of processor time", ours, *others, *(f"÷ {name}" for name in others)], rows)
    words = write_paragraph(
        f"""A status call polls a running job. A whole job is a submit, {bench["polls"]} polls and the result. The
        static upstream alone answers {write_number(bench["upstream_alone"]["per_second"])} calls a second under its
        load; the fastest proxy in front of it passes on {write_number(bench["fastest_contestant"])}."""
    )
    return f"## Comparison with other proxies\n\n{table}\n\n{words}"


def _latency(bench: Report) -> str:
    rows = [
        [workload, name, write_number(one["per_second"]), f"{one['p50_ms']:.2f}", f"{one['p99_ms']:.2f}"]
        for workload, found in bench["latency"].items()
        for name, one in found.items()
    ]
    words = write_paragraph(
        """The table shows how much longer a call takes than the same call to the upstream itself, with the same
        connections and pauses, at half of the rate that each proxy reached."""
    )
    table = write_table(["call", "through", "calls a second", "median, ms", "99th percentile, ms"], rows)
    return f"## Added latency\n\n{words}\n{table}\n"


def _footprint(bench: Report) -> str:
    found = bench["footprint"]
    words = f"""The proxy is ready {found["start_seconds"]:.2f} s after the command. One idle process takes
        {found["idle_mib"]:.0f} MiB of memory, and {found["after_load_mib"]:.0f} MiB after some seconds of submits."""
    return f"## Start and memory\n\n{write_paragraph(words)}"


def _streams(bench: Report) -> str:
    streams, fan_out = bench["streams"], bench["fan_out"]
    samples = streams["kib_each_over_time"]
    words = f"""With {streams["streams"]} jobs and one watcher each, a stream of a fresh process takes
        {streams["kib_each"]:.1f} KiB.
        With {fan_out["watchers"]} watchers of one job, the last learns of its end
        {fan_out["last_after_first_ms"]:.0f} ms after the first."""
    if len(samples) > 1:
        minutes = (len(samples) - 1) * streams["seconds_between"] / 60
        words += f""" Over {minutes:.0f} minutes, a stream took {min(samples):.1f} to {max(samples):.1f} KiB. About half
            of what it grew by is the database's: SQLite keeps up to 2 MiB of pages for each connection."""
    return f"## Open status streams\n\n{write_paragraph(words)}"


def _limits(limits: Report) -> str:
    rows = []
    for workload, turns in limits["results"].items():
        each = list(turns.values())
        rows.append(
            [f"{workload}: calls a second of the proxy's processor time"]
            + [write_number(median(one, "per_cpu_second")) for one in each]
        )
        # Without limits and with them, in turns.
        shares = [f"{ratio(one, each[place // 2 * 2]):.2f}" for place, one in enumerate(each)]
        rows.append([f"{workload}: share of what the same stores reach without limits", *shares])
    return f"## Limits\n\n{write_table(['call', *turns], rows)}\n\n{LEDGER}{_credentials(limits['credentials'])}"


def _credentials(results: Mapping[str, Mapping[str, Sequence[Report]]]) -> str:
    shares = []
    for workload, turns in results.items():
        session, token = turns.values()
        shares.append(f"{ratio(token, session):.2f} for a {workload}")
    words = f"""With a token of the app's own identity provider, which was verified at its first use, the proxy reaches
        this share of what it reaches with a session: {", ".join(shares)}."""
    return f"\n{write_paragraph(words)}"


def _uploads(uploads: Report) -> str:
    results: Mapping[str, Sequence[float]] = uploads["results"]
    *_, beside = results
    rows = []
    for name, speeds in results.items():
        share = statistics.median(one / other for one, other in zip(speeds, results[beside], strict=True))
        rows.append([name, write_number(statistics.median(speeds)), f"{share:.2f}"])
    return f"## Uploads\n\n{write_table(['a file of 200 MiB', 'MB a second', f'share of {beside}'], rows)}\n\n{UPLOADS}"


def _endurance(endurance: Report) -> str:
    slow, stalls, left = endurance["slow_upstream"], endurance["stalls"], endurance["hang_ups"]
    each = ", ".join(
        f"{statistics.median(figures):,.0f} µs through {name}" for name, figures in slow["microseconds_a_run"].items()
    )
    words = (
        f"""In front of an upstream that takes {slow["milliseconds"]} ms, with {slow["connections"]} connections, a run
        takes this processor time: {each}.""",
        f"""During {stalls["seconds"]} seconds of half load, {stalls["over_20_ms"]} of {stalls["checks"]:,} health
        checks took longer than 20 ms; the longest took {stalls["longest_ms"]:.0f} ms.""",
        f"""After {left["streams"]:,} streams whose clients hung up, the process takes {left["mib_more"][-1]:.1f} MiB
        more than before; on the way there it took {", ".join(f"{sample:.1f}" for sample in left["mib_more"][:-1])} MiB
        more.""",
    )
    return "\n".join(["## Endurance", "", *map(write_paragraph, words)])


def _goals(goals: Sequence[Goal]) -> str:
    table = write_table(["figure", "goal", "reached", "met"], rows_of(goals))
    return f"## Goals\n\n{table}\n\n{GOALS}"


def _flame(flame: Report) -> str:
    places = list(dict.fromkeys(place for one in flame.values() for place in one["shares"]))
    rows = [[place, *(_share_of(one, place) for one in flame.values())] for place in places]
    rows = [row for row in rows if any(cell != "-" for cell in row[1:])]
    rows.append(["all", *(f"{one['microseconds']:.0f}" for one in flame.values())])
    table = write_table(["µs of processor time", *flame], rows)
    return f"## Where the time goes\n\n{FLAME}\n{table}\n\n![Flame graph of a run](images/run-flame.svg)\n\n{BEFORE}"


def _share_of(call: Report, place: str) -> str:
    """The microseconds of a call that a package takes; those below a percent are not shown."""
    share = call["shares"].get(place, 0)
    return f"{share * call['microseconds']:.1f}" if share >= 0.01 else "-"


def _rounds(bench: Report, limits: Report | None) -> str:
    lines = [f"- {line}" for line in _raw(bench["results"])]
    if limits is not None:
        lines += [f"- limits, {line}" for line in _raw(limits["results"])]
    intro = "Calls per second of the proxy's processor time, in the order of the rounds."
    return "\n".join(["## The rounds", "", intro, "", *lines, ""])


def _raw(results: Mapping[str, Mapping[str, Sequence[Report]]]) -> Iterable[str]:
    for workload, contestants in results.items():
        for name, turns in contestants.items():
            yield f"{workload}, {name}: {' '.join(write_number(one['per_cpu_second']) for one in turns)}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.page", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "build", help="of the results")
    parser.add_argument("--output", type=Path, default=PAGE)
    options = parser.parse_args()
    others = (_read(options.folder / f"bench-{name}.json") for name in OTHERS)
    bench = json.loads((options.folder / "bench.json").read_text())
    options.output.write_text(page(bench, *others))
    print(f"written to {options.output}")


def _read(path: Path) -> Report | None:
    return json.loads(path.read_text()) if path.exists() else None


if __name__ == "__main__":
    main()
