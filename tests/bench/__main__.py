"""This proxy beside the official one: `python -m tests.bench`, or `make bench`. Needs wrk, taskset, Node and nginx.

All proxies run at once, pinned to core 0; the static upstream and the load share core 1. Of a round each proxy gets one
turn of each workload with 32 connections. The ratios are of what is answered per second of the proxy's own processor
time, which what else runs on the machine disturbs little; the median of the rounds' ratios is printed. Every number
goes to build/bench.json, from which `python -m tests.bench.page` writes docs/performance.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.bench.contestants import Contestant, fal_proxy, nginx, official
from tests.bench.footprint import footprint
from tests.bench.latency import added
from tests.bench.native_jobs import measure_native_jobs
from tests.bench.processes import ROOT, machine, static_fal, versions
from tests.bench.rounds import CONNECTIONS, LOAD_CORE, POLLS, PROXY_CORE, RESULT, RUN, SUBMIT, loaded, measure, median
from tests.bench.streams import fan_out, memory
from tests.support.servers import free_port

PACKAGES = ("fal-proxy", "starlette", "uvicorn", "uvloop", "httptools", "httpx", "sqlalchemy")
WATCHERS = 200


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="of a turn")
    parser.add_argument("--streams", type=int, default=2000, help="open at once, for what each costs in memory")
    parser.add_argument("--hold-seconds", type=float, default=0, help="how long they are held open; 600 shows a leak")
    parser.add_argument(
        "--beside", type=Path, help="another checkout with a .venv, to compare this code with earlier code"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bench.json")
    return parser.parse_args()


def main() -> None:
    options = read_options()
    if (os.cpu_count() or 1) < 2:
        sys.exit("The proxies and the load need a core each.")
    report: dict[str, Any] = {
        "machine": machine(),
        "versions": versions(*PACKAGES),
        "connections": CONNECTIONS,
        "polls": POLLS,
        "rounds": options.rounds,
        "seconds": options.seconds,
    }
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port = free_port()
        stack.enter_context(static_fal(port, LOAD_CORE, folder / "static-upstream.log"))
        upstream = f"http://127.0.0.1:{port}"
        report["footprint"] = footprint(upstream, folder, 3)
        print(f"start and memory: {report['footprint']}", end="\n\n", flush=True)
        contestants = [
            stack.enter_context(fal_proxy(upstream, PROXY_CORE, folder)),
            stack.enter_context(official("hono", upstream, PROXY_CORE, folder)),
            stack.enter_context(official("express", upstream, PROXY_CORE, folder)),
            stack.enter_context(nginx(upstream, PROXY_CORE, folder)),
        ]
        if options.beside:
            beside = fal_proxy(upstream, PROXY_CORE, folder, name="earlier", checkout=options.beside.resolve())
            contestants.insert(1, stack.enter_context(beside))
        report |= under_load(contestants, upstream, options)
        # Of a process of its own: the other one still looks after the jobs that were submitted and left.
        with fal_proxy(upstream, PROXY_CORE, folder, name="native jobs") as fresh:
            report["native_jobs"] = measure_native_jobs(fresh, upstream, options.rounds)
        print(f"native jobs: {report['native_jobs']} µs of processor time each", end="\n\n", flush=True)
        report |= with_streams(contestants[0], upstream, folder, options)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written to {options.output}", file=sys.stderr)


def under_load(contestants: list[Contestant], upstream: str, options: argparse.Namespace) -> dict[str, Any]:
    """What is answered, and what is added to each answer."""
    alone = loaded(f"{upstream}/run", RUN, job="", token="none", seconds=options.seconds)
    print(f"the static upstream alone, beside its load: {alone['per_second']:.0f} calls/s", end="\n\n", flush=True)
    results = measure(contestants, options.rounds, options.seconds)
    fastest = max(median(turns, "per_second") for each in results.values() for turns in each.values())
    latency = {
        workload.name: added(contestants, workload, results, upstream, options.seconds)
        for workload in (RUN, SUBMIT, RESULT)
    }
    for name, found in latency.items():
        print(f"{name}, added at half load:")
        for contestant, one in found.items():
            print(f"{contestant:28} p50 {one['p50_ms']:6.2f} ms   p99 {one['p99_ms']:6.2f} ms")
    return {"upstream_alone": alone, "fastest_contestant": fastest, "results": results, "latency": latency}


def with_streams(contestant: Contestant, upstream: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What open streams cost; the memory is that of a fresh process, as one that had work has some to spare."""
    fans = fan_out(contestant, upstream, WATCHERS)
    print(f"\n{fans['watchers']} watchers of one job: the last hears {fans['last_after_first_ms']} ms after the first")
    with fal_proxy(upstream, PROXY_CORE, folder, name="streams") as fresh:
        streams = memory(fresh, options.streams, options.hold_seconds)
    print(f"{streams['streams']} open streams: {streams['kib_each']} KiB each", flush=True)
    return {"fan_out": fans, "streams": streams}


if __name__ == "__main__":
    main()
