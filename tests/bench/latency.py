"""The latency that a proxy at about half load adds to a call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.bench.contestants import Contestant
from tests.bench.rounds import CONNECTIONS, Results, Workload, loaded, median, submitted_job

#: Where the static upstream serves what the proxies are asked for.
DIRECT = {"https://queue.fal.run": "/queue", "https://fal.run": "/run"}


def added(
    contestants: Sequence[Contestant], workload: Workload, results: Results, upstream: str, seconds: int
) -> dict[str, Any]:
    """Contestant -> milliseconds that it adds at half of the rate it reached, at the median and for the slowest 1 %.

    The same connections, with the same pauses, ask the upstream itself: what remains is the proxy's.
    """
    host = next(host for host in DIRECT if workload.target.startswith(f"{host}/"))
    found = {}
    for contestant in contestants:
        job = submitted_job(contestant)
        rate = median(results[workload.name][contestant.name], "per_second") / 2
        options = {"job": job, "token": contestant.token, "seconds": seconds, "delay_ms": CONNECTIONS / rate * 1000}
        direct = loaded(
            upstream + DIRECT[host] + workload.target.removeprefix(host).format(id=job), workload, **options
        )
        through = loaded(contestant.url, workload, **options)
        found[contestant.name] = {
            "per_second": through["per_second"],
            "p50_ms": round(through["p50_ms"] - direct["p50_ms"], 2),
            "p99_ms": round(through["p99_ms"] - direct["p99_ms"], 2),
            "through": through,
            "direct": direct,
        }
    return found
