"""What wears a proxy down: `python -m tests.bench.endurance`. Needs wrk, taskset and Node.

An upstream that takes its time, with many calls in flight; a minute of half load, during which a health check every few
milliseconds shows when the event loop stalls; and many event streams whose clients hang up. Everything else is as in
`python -m tests.bench`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx

from tests.bench.contestants import Contestant, fal_proxy, official
from tests.bench.processes import ROOT, cpu_seconds, machine, pinned, static_fal, versions
from tests.bench.rounds import CONNECTIONS, LOAD_CORE, PROXY_CORE, RUN, loaded
from tests.bench.streams import hang_ups
from tests.support.servers import free_port

SLOW_MS = 100
SLOW_CONNECTIONS = 600
CHECK_SECONDS = 0.005
STALL_MS = 20.0


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.endurance", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=3, help="of turns in front of the slow upstream")
    parser.add_argument("--seconds", type=int, default=5, help="of such a turn")
    parser.add_argument("--stall-seconds", type=int, default=60, help="of half load")
    parser.add_argument("--hang-ups", type=int, default=50_000, help="streams that are opened and left")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bench-endurance.json")
    options = parser.parse_args()
    report: dict[str, Any] = {"machine": machine(), "versions": versions("fal-proxy", "uvloop")}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        quick, slow = (_upstream(stack, folder, delay_ms) for delay_ms in (0, SLOW_MS))
        report["slow_upstream"] = _before_a_slow_upstream(slow, folder, options.rounds, options.seconds)
        with fal_proxy(quick, PROXY_CORE, folder) as contestant:
            report["stalls"] = _count_stalls(contestant, options.stall_seconds)
        with fal_proxy(quick, PROXY_CORE, folder, name="streams") as fresh:
            report["hang_ups"] = hang_ups(fresh, options.hang_ups)
    print(json.dumps(report, indent=2))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=2) + "\n")


def _upstream(stack: contextlib.ExitStack, folder: Path, delay_ms: int) -> str:
    port = free_port()
    stack.enter_context(static_fal(port, LOAD_CORE, folder / f"upstream-{delay_ms}.log", delay_ms=delay_ms))
    return f"http://127.0.0.1:{port}"


def _before_a_slow_upstream(upstream: str, folder: Path, rounds: int, seconds: int) -> dict[str, Any]:
    """Microseconds of processor time that each run takes, with hundreds of them in flight."""
    found: dict[str, list[float]] = {}
    (folder / "slow").mkdir()
    with (
        fal_proxy(upstream, PROXY_CORE, folder / "slow") as ours,
        official("hono", upstream, PROXY_CORE, folder) as hono,
    ):
        for _ in range(rounds):
            for contestant in (ours, hono):
                before = cpu_seconds(contestant.process)
                options = {"job": "", "token": contestant.token, "connections": SLOW_CONNECTIONS}
                calls = loaded(contestant.url, RUN, seconds=seconds, **options)["requests"]
                spent = cpu_seconds(contestant.process) - before
                found.setdefault(contestant.name, []).append(round(spent / calls * 1e6, 1))
    return {"milliseconds": SLOW_MS, "connections": SLOW_CONNECTIONS, "microseconds_a_run": found}


def _count_stalls(contestant: Contestant, seconds: int) -> dict[str, Any]:
    """How many health checks of a time of half load took longer than a stall."""
    full = loaded(contestant.url, RUN, job="", token=contestant.token, seconds=3)["per_second"]
    delay_ms = CONNECTIONS / (full / 2) * 1000
    # Beside the load: the proxy has its core to itself.
    with pinned(LOAD_CORE):
        took = asyncio.run(_check_beside(contestant, seconds, delay_ms))
    return {
        "seconds": seconds,
        "checks": len(took),
        "over_20_ms": sum(one > STALL_MS for one in took),
        "longest_ms": round(max(took), 1),
    }


async def _check_beside(contestant: Contestant, seconds: int, delay_ms: float) -> list[float]:
    """Milliseconds of each health check while the proxy has work."""
    options = {"job": "", "token": contestant.token, "seconds": seconds, "delay_ms": delay_ms}
    load = asyncio.create_task(asyncio.to_thread(loaded, contestant.url, RUN, **options))
    took = []
    async with httpx.AsyncClient(trust_env=False) as client:
        # Its first request loads modules for 50 ms, and its collections of garbage take up to 20.
        (await client.get(urljoin(contestant.url, "/livez"))).raise_for_status()
        gc.disable()
        while not load.done():
            asked_at = time.perf_counter()
            (await client.get(urljoin(contestant.url, "/livez"))).raise_for_status()
            took.append((time.perf_counter() - asked_at) * 1000)
            await asyncio.sleep(CHECK_SECONDS)
        gc.enable()
    await load
    return took


if __name__ == "__main__":
    main()
