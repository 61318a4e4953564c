"""This proxy beside the official one: `python -m tests.bench`, or `make bench`. Needs wrk, taskset and Node.

All proxies run at once, pinned to core 0; the static upstream and wrk share core 1. Of a round each proxy gets one
turn of each workload with 32 connections. The ratios are of calls per second of the proxy's own processor time, which
what else runs on the machine disturbs little; the median of the rounds' ratios is printed. Every number goes to
build/bench.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.bench.contestants import Contestant, fal_proxy, official
from tests.bench.processes import ROOT, cpu_seconds, machine, static_fal, versions
from tests.support.servers import free_port

PROXY_CORE, LOAD_CORE = 0, 1
CONNECTIONS = 32
ENDPOINT = "fal-ai/llava-next"
INPUT = {"image_url": "https://example.com/cat.png", "prompt": "What is in this picture?", "max_tokens": 64}


@dataclass(frozen=True)
class Workload:
    """One kind of call; `{id}` in `target` becomes a job that the caller has submitted."""

    name: str
    method: str
    target: str


WORKLOADS = (
    Workload("submit", "POST", f"https://queue.fal.run/{ENDPOINT}"),
    Workload("status", "GET", f"https://queue.fal.run/{ENDPOINT}/requests/{{id}}/status"),
    Workload("result", "GET", f"https://queue.fal.run/{ENDPOINT}/requests/{{id}}"),
    Workload("run", "POST", f"https://fal.run/{ENDPOINT}"),
)


def submitted_job(contestant: Contestant) -> str:
    """A job of the caller's own."""
    response = httpx.post(
        contestant.url,
        headers={"x-fal-target-url": WORKLOADS[0].target, "authorization": f"Bearer {contestant.token}"},
        json=INPUT,
        trust_env=False,
    )
    response.raise_for_status()
    return str(response.json()["request_id"])


def turn(contestant: Contestant, workload: Workload, job: str, seconds: float) -> dict[str, Any]:
    """wrk's result of one turn; an error if not every answer was a good one."""
    script = Path(__file__).with_name("load.lua")
    command = [
        "taskset",
        "--cpu-list",
        str(LOAD_CORE),
        "wrk",
        "-t1",
        f"-c{CONNECTIONS}",
        f"-d{seconds:g}s",
        "--timeout",
        "20s",
    ]
    env = {
        **os.environ,
        "BENCH_METHOD": workload.method,
        "BENCH_TARGET": workload.target.format(id=job),
        "BENCH_TOKEN": contestant.token,
    }
    cpu_before = cpu_seconds(contestant.process)
    output = subprocess.run(
        [*command, "-s", str(script), contestant.url], env=env, capture_output=True, text=True, check=True
    ).stdout
    result: dict[str, Any] = json.loads(output.rpartition("RESULT ")[2])
    if result["refused"] or result["broken"]:
        raise RuntimeError(f"{contestant.name}, {workload.name}: not all answers were good: {result}")
    return {
        **result,
        "per_second": round(result["requests"] / result["microseconds"] * 1e6, 1),
        "per_cpu_second": round(result["requests"] / (cpu_seconds(contestant.process) - cpu_before), 1),
    }


Results = dict[str, dict[str, list[dict[str, Any]]]]


def measure(
    contestants: list[Contestant], rounds: int, seconds: float, workloads: Sequence[Workload] = WORKLOADS
) -> Results:
    """Workload -> contestant -> one result a round. The first contestant is the one that ratios are of."""
    jobs = {contestant.name: submitted_job(contestant) for contestant in contestants}
    results: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for workload in workloads:
        results[workload.name] = {contestant.name: [] for contestant in contestants}
        for contestant in contestants:
            turn(contestant, workload, jobs[contestant.name], 1)  # warms up what is compiled while it runs
        for _ in range(rounds):
            for contestant in contestants:
                result = turn(contestant, workload, jobs[contestant.name], seconds)
                results[workload.name][contestant.name].append(result)
        print(table(workload.name, results[workload.name]), end="\n\n", flush=True)
    return results


def table(workload: str, results: dict[str, list[dict[str, Any]]]) -> str:
    def medians(turns: list[dict[str, Any]]) -> list[float]:
        keys = ("per_second", "per_cpu_second", "p50_ms", "p99_ms")
        return [statistics.median(result[key] for result in turns) for key in keys]

    first = next(iter(results))
    lines = [f"{workload:28} {'calls/s':>8} {'per CPU s':>9} {'p50 ms':>8} {'p99 ms':>8}   {first} is faster by"]
    for name, turns in results.items():
        pairs = zip(results[first], turns, strict=True)
        ratios = [ours["per_cpu_second"] / theirs["per_cpu_second"] for ours, theirs in pairs]
        rate, cpu_rate, p50, p99 = medians(turns)
        lines.append(f"{name:28} {rate:8.0f} {cpu_rate:9.0f} {p50:8.2f} {p99:8.2f}   {statistics.median(ratios):.2f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bench.json")
    options = parser.parse_args()
    if (os.cpu_count() or 1) < 2:
        sys.exit("The proxies and the load need a core each.")
    report: dict[str, Any] = {
        "machine": machine(),
        "versions": versions("fal-proxy", "starlette", "uvicorn", "uvloop", "httptools", "aiohttp", "httpx"),
        "connections": CONNECTIONS,
        "seconds": options.seconds,
    }
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port = free_port()
        stack.enter_context(static_fal(port, LOAD_CORE, folder / "static-upstream.log"))
        upstream = f"http://127.0.0.1:{port}"
        contestants = [
            stack.enter_context(fal_proxy(upstream, PROXY_CORE, folder)),
            stack.enter_context(official("hono", upstream, PROXY_CORE, folder)),
            stack.enter_context(official("express", upstream, PROXY_CORE, folder)),
        ]
        report["results"] = measure(contestants, options.rounds, options.seconds)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written to {options.output}", file=sys.stderr)


if __name__ == "__main__":
    main()
