"""Where the processor time of a call goes: `python -m tests.bench.flame`. Needs wrk, taskset and Node, and may trace.

py-spy samples the proxy under load, in front of the static upstream: under runs, submits, polls, whole jobs and native
jobs. The shares by package go to build/bench-flame.json, and a flame graph of a run to docs/images/run-flame.svg.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tests.bench.contestants import Contestant, fal_proxy
from tests.bench.flame_graph import Frame, draw
from tests.bench.native_jobs import run_native_jobs
from tests.bench.processes import ROOT, static_fal
from tests.bench.rounds import JOBS, LOAD_CORE, PROXY_CORE, RUN, STATUS, SUBMIT, Workload, submitted_job, turn
from tests.support.servers import free_port

GRAPH = ROOT / "docs" / "images" / "run-flame.svg"
SAMPLES_PER_SECOND = 250
_LINE_NUMBER = re.compile(r":\d+\)$")
_PLACE = re.compile(r"\(proxy/(?P<package>\w+)[/.]")
#: The last of what every stack begins with.
_ROOT = "Runner.run (asyncio/"
EVENT_LOOP = "the event loop and the kernel"


#: Puts the proxy under load for so many seconds; gives the microseconds of its processor time for one call.
Load = Callable[[int], float]


class Stack(NamedTuple):
    """Functions with their files, the outermost first, and how often they were seen."""

    names: list[str]
    samples: int


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.flame", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=int, default=10, help="of samples for each kind of call")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bench-flame.json")
    parser.add_argument("--graph", type=Path, default=GRAPH)
    options = parser.parse_args()
    report: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port = free_port()
        stack.enter_context(static_fal(port, LOAD_CORE, folder / "static-upstream.log"))
        upstream = f"http://127.0.0.1:{port}"
        contestant = stack.enter_context(fal_proxy(upstream, PROXY_CORE, folder))
        for name, load in list_loads(contestant, upstream).items():
            microseconds = round(load(options.seconds), 1)
            stacks = sample(contestant, load, options.seconds, folder / "stacks")
            report[name] = {"microseconds": microseconds, "shares": shares_of(stacks)}
            if name == RUN.name:
                options.graph.write_text(draw(tree_of(stacks)))
    print(json.dumps(report, indent=2))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=2) + "\n")


def list_loads(contestant: Contestant, upstream: str) -> dict[str, Load]:
    """What the proxy is sampled under, by name."""
    job = submitted_job(contestant)
    loads: dict[str, Load] = {
        workload.name: partial(_repeat, contestant, workload, job) for workload in (RUN, SUBMIT, STATUS, JOBS)
    }
    return {**loads, "native job": partial(run_native_jobs, contestant, upstream)}


def _repeat(contestant: Contestant, workload: Workload, job: str, seconds: int) -> float:
    return float(1e6 / turn(contestant, workload, job, seconds)["per_cpu_second"])


def sample(contestant: Contestant, load: Load, seconds: int, output: Path) -> list[Stack]:
    """Sample the proxy while it is under load."""
    command = [
        Path(sys.executable).with_name("py-spy"), "record", "--pid", str(contestant.process.pid), "--format", "raw",
        "--duration", str(seconds), "--rate", str(SAMPLES_PER_SECOND), "--output", output,
    ]  # fmt: skip
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(load, seconds + 2)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        loading.result()
    return list(read_stacks(output.read_text().splitlines()))


def read_stacks(lines: Iterable[str]) -> Iterator[Stack]:
    """Read py-spy's raw form: a line for each stack, the outermost function first, and how often it was seen.

    A thread that waits for work is no stack, and what every stack begins with is left out.
    """
    for line in lines:
        frames, _, samples = line.rpartition(" ")
        names = [_LINE_NUMBER.sub(")", frame) for frame in frames.split(";")]
        if "concurrent/futures/thread.py" not in names[-1]:
            first = max((place for place, name in enumerate(names) if name.startswith(_ROOT)), default=-1) + 1
            yield Stack(names[first:], int(samples))


def shares_of(stacks: Iterable[Stack]) -> dict[str, float]:
    """The share of each package of the proxy, the largest first.

    A sample belongs to the innermost package: what a library does for it is its own.
    """
    found: Counter[str] = Counter()
    for stack in stacks:
        found[_place_of(stack.names)] += stack.samples
    return {place: round(samples / found.total(), 3) for place, samples in found.most_common()}


def tree_of(stacks: Iterable[Stack]) -> Frame:
    root = Frame("a run")
    for stack in stacks:
        root.add(stack.names, stack.samples)
    return root


def _place_of(names: Sequence[str]) -> str:
    places = [match["package"] for name in names if (match := _PLACE.search(name))]
    return f"proxy/{places[-1]}" if places else EVENT_LOOP


if __name__ == "__main__":
    main()
