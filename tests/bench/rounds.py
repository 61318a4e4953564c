"""Contestants under the same load, in turns: what each answers per second of its own processor time."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.bench.contestants import Contestant
from tests.bench.processes import cpu_seconds

PROXY_CORE, LOAD_CORE = 0, 1
CONNECTIONS = 32
POLLS = 20
ENDPOINT = "fal-ai/llava-next"
INPUT = {"image_url": "https://example.com/cat.png", "prompt": "What is in this picture?", "max_tokens": 64}


@dataclass(frozen=True)
class Workload:
    """One kind of call; `{id}` in `target` becomes a job that the caller has submitted.

    Attributes:
        script: what tells wrk what to send.
        counted: the figure of wrk's that is counted: requests, or whole jobs.
    """

    name: str
    method: str
    target: str
    script: str = "load.lua"
    counted: str = "requests"


SUBMIT = Workload("submit", "POST", f"https://queue.fal.run/{ENDPOINT}")
RUN = Workload("run", "POST", f"https://fal.run/{ENDPOINT}")
RESULT = Workload("result", "GET", f"https://queue.fal.run/{ENDPOINT}/requests/{{id}}")
STATUS = Workload("status", "GET", f"https://queue.fal.run/{ENDPOINT}/requests/{{id}}/status")
JOBS = Workload("whole jobs", "POST", SUBMIT.target, "jobs.lua", "jobs")
WORKLOADS = (SUBMIT, RUN, RESULT, STATUS, JOBS)

#: Workload -> contestant -> one result a round.
Results = dict[str, dict[str, list[dict[str, Any]]]]


def submitted_jobs(contestant: Contestant, count: int) -> list[str]:
    """Jobs of the caller's own."""
    headers = {"x-fal-target-url": SUBMIT.target, "authorization": f"Bearer {contestant.token}"}
    with httpx.Client(headers=headers, trust_env=False, timeout=60) as client:
        answers = [client.post(contestant.url, json=INPUT).raise_for_status() for _ in range(count)]
    return [str(answer.json()["request_id"]) for answer in answers]


def submitted_job(contestant: Contestant) -> str:
    return submitted_jobs(contestant, 1)[0]


def loaded(
    url: str,
    workload: Workload,
    *,
    job: str,
    token: str,
    seconds: int,
    delay_ms: float = 0,
    connections: int = CONNECTIONS,
) -> dict[str, Any]:
    """The figures of wrk after some seconds of load.

    Raises:
        RuntimeError: not every answer was a good one.
    """
    wrk = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "20s"]
    env = {
        "BENCH_METHOD": workload.method,
        "BENCH_TARGET": workload.target.format(id=job),
        "BENCH_TOKEN": token,
        "BENCH_POLLS": str(POLLS),
        "BENCH_DELAY_MS": f"{delay_ms:.0f}",
    }
    output = subprocess.run(
        ["taskset", "--cpu-list", str(LOAD_CORE), *wrk, "-s", str(Path(__file__).with_name(workload.script)), url],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    result: dict[str, Any] = json.loads(output.rpartition("RESULT ")[2])
    if result["refused"] or result["broken"] or not result["requests"]:
        raise RuntimeError(f"{url}, {workload.name}: not all answers were good: {result}")
    return {**result, "per_second": round(result[workload.counted] / result["microseconds"] * 1e6, 1)}


def turn(contestant: Contestant, workload: Workload, job: str, seconds: int) -> dict[str, Any]:
    """One turn of one contestant."""
    cpu_before = cpu_seconds(contestant.process)
    result = loaded(contestant.url, workload, job=job, token=contestant.token, seconds=seconds)
    spent = cpu_seconds(contestant.process) - cpu_before
    if not result[workload.counted]:
        raise RuntimeError(f"{contestant.name}, {workload.name}: the turn is too short for even one of them: {result}")
    return {**result, "per_cpu_second": round(result[workload.counted] / spent, 1)}


def measure(
    contestants: Sequence[Contestant], rounds: int, seconds: int, workloads: Sequence[Workload] = WORKLOADS
) -> Results:
    """All turns of all rounds. The first contestant is the one that ratios are of."""
    jobs = {contestant.name: submitted_job(contestant) for contestant in contestants}
    results: Results = {}
    for workload in workloads:
        results[workload.name] = {contestant.name: [] for contestant in contestants}
        for contestant in contestants:
            # Warms up what is compiled while it runs.
            loaded(contestant.url, workload, job=jobs[contestant.name], token=contestant.token, seconds=1)
        for _ in range(rounds):
            for contestant in contestants:
                result = turn(contestant, workload, jobs[contestant.name], seconds)
                results[workload.name][contestant.name].append(result)
        print(table(workload.name, results[workload.name]), end="\n\n", flush=True)
    return results


def median(turns: Sequence[dict[str, Any]], figure: str) -> float:
    return statistics.median(one[figure] for one in turns)


def ratio(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]], figure: str = "per_cpu_second") -> float:
    """How many times as much the first does, per second of processor time: the median of the rounds."""
    return statistics.median(one[figure] / other[figure] for one, other in zip(ours, theirs, strict=True))


def table(workload: str, results: dict[str, list[dict[str, Any]]]) -> str:
    first = next(iter(results))
    lines = [f"{workload:28} {'each s':>8} {'per CPU s':>9} {'p50 ms':>8} {'p99 ms':>8}   {first} is faster by"]
    for name, turns in results.items():
        rate, cpu_rate, p50, p99 = (median(turns, key) for key in ("per_second", "per_cpu_second", "p50_ms", "p99_ms"))
        lines.append(
            f"{name:28} {rate:8.0f} {cpu_rate:9.0f} {p50:8.2f} {p99:8.2f}   {ratio(results[first], turns):.2f}"
        )
    return "\n".join(lines)
