"""What one process of the proxy takes before the first call: time until it is ready, and memory."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bench.contestants import Contestant, fal_proxy
from tests.bench.processes import resident_bytes
from tests.bench.rounds import PROXY_CORE, SUBMIT, submitted_job, turn

MIB = 1024 * 1024


def footprint(upstream: str, folder: Path, starts: int) -> dict[str, Any]:
    """Seconds from the command to a ready proxy, and its memory: idle, and after some seconds of submits."""
    seconds, idle, used = [], [], 0
    for contestant in _start_each(upstream, folder, starts):
        seconds.append(round(contestant.ready_seconds, 3))
        idle.append(resident_bytes(contestant.process))
        if len(seconds) == starts:
            turn(contestant, SUBMIT, submitted_job(contestant), 3)
            used = resident_bytes(contestant.process)
    return {
        "start_seconds": statistics.median(seconds),
        "start_seconds_each": seconds,
        "idle_mib": round(statistics.median(idle) / MIB, 1),
        "after_load_mib": round(used / MIB, 1),
    }


def _start_each(upstream: str, folder: Path, starts: int) -> Iterator[Contestant]:
    for number in range(starts):
        with fal_proxy(upstream, PROXY_CORE, folder, name=f"start {number}") as contestant:
            yield contestant
