"""The cost of removing old jobs for other calls: `python -m tests.bench.retention`. Needs PostgreSQL.

A served proxy in front of the static upstream takes submits at a steady rate, each with its result: once with nothing
to remove, and once while it removes hundreds of thousands of old jobs. The two take turns, as the machine is not always
equally fast. The report has how long submits took, how long `/livez` took (it asks no store, so it shows how long the
event loop was held), how many jobs were removed, and the ratio of the 99th percentiles of submits in each round. The
proxy has a core to itself; the load, the upstream and PostgreSQL share another one. With `--most-seconds 30` a round
ends before all old jobs are gone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from sqlalchemy import text

from proxy.auth.sessions import Sessions
from proxy.clock import SystemClock
from proxy.settings import Secret
from proxy.stores.sql import SqlStores
from proxy.stores.sql.database import Database
from tests.bench.processes import ROOT, machine, pinned
from tests.bench.rounds import LOAD_CORE, PROXY_CORE
from tests.server.commands import SERVABLE, serving
from tests.soak.short_retention import PROGRAM
from tests.support.limited import NEXT, asking, per, plan
from tests.support.postgres import running_postgres
from tests.support.secrets import SECRET
from tests.support.servers import free_port
from tests.support.waiting import wait_until_async

#: How long jobs stay: the load's own are younger, and runs begin within seconds. Nothing is older than `NEVER`.
RETENTION_SECONDS, NEVER = 240, 10**9
REMOVED = 'fal_proxy_retention_removed_total{kind="jobs"'
#: Old jobs are spread over a month and many users.
JOBS = """
INSERT INTO jobs
  (id, request_id, kind, endpoint, tenant, subject, state, charges, used, submitted_at, checked_at, expires_at)
{numbers}
SELECT {key}, {random}, 'submit', 'fal-ai/llava-next', 'acme', 'user-' || (n % 5000 * 7919 % 5000), '{state}',
  '[["","requests","day",0,1000000,1000000000000],["alice","tokens","month",0,64000000,1000000000000]]',
  '{{"requests":1000000,"tokens":64000000}}', {now} - 8000000 + n * 8, {now} - 7999990 + n * 8, {now} - 7990000
FROM numbers
"""
WORDS = {
    "sqlite": {
        "numbers": "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {jobs})",
        "key": "printf('%032x', n)",
        "random": "lower(hex(randomblob(16)))",
    },
    "postgresql": {
        "numbers": "WITH numbers AS (SELECT n FROM generate_series(1, {jobs}) AS n)",
        "key": "lpad(to_hex(n), 32, '0')",
        "random": "gen_random_uuid()::text",
    },
}


async def fill(url: str, jobs: int, state: str = "settled") -> None:
    stores = SqlStores(url)
    await stores.migrate()
    await stores.close()
    database = Database(url)
    words = WORDS[database.dialect.name]
    numbers = words["numbers"].format(jobs=jobs)
    statement = JOBS.format(**{**words, "numbers": numbers, "state": state}, now=time.time())
    async with database.migrating() as connection:
        await connection.execute(text(statement.replace(":", "\\:").replace("\\:\\:", "::")))
    await database.close()


async def time_calls(call: Callable[[], Awaitable[float]], rate: float, over: asyncio.Event) -> list[float]:
    """Milliseconds of calls, each with the moment of its answer, that begin at a steady rate."""
    loop, taken, running = asyncio.get_running_loop(), list[float](), set[asyncio.Task[None]]()

    async def one() -> None:
        began = loop.time()
        taken.append((await call() - began) * 1000)

    due = loop.time()
    while not over.is_set():
        task = asyncio.create_task(one())
        running.add(task)
        task.add_done_callback(running.discard)
        due += 1 / rate
        await asyncio.sleep(max(0.0, due - loop.time()))
    await asyncio.gather(*running)
    return taken


def percentiles(taken: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(taken, n=1000)
    cut = {name: round(cuts[place], 2) for name, place in (("p50", 499), ("p99", 989), ("p99.9", 998))}
    return {**cut, "max": round(max(taken), 1)}


async def measure(server: str, options: argparse.Namespace, old_jobs: int) -> dict[str, Any]:
    """Put load on a server, for as long as is asked and until the old jobs are gone, but not for too long."""
    token, _ = Sessions((Secret(SECRET),), SystemClock()).mint("acme", "alice", 7200)
    headers = {"authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(server, headers=headers) as client:

        async def submit() -> float:
            async with client.post(f"/fal/queue/{NEXT}", json=asking("?"), raise_for_status=True) as answer:
                job = (await answer.json())["request_id"]
            answered = asyncio.get_running_loop().time()
            # So that it is settled: jobs that are not over would be asked about, more and more of them.
            async with client.get(f"/fal/queue/{NEXT}/requests/{job}", raise_for_status=True) as answer:
                await answer.read()
            return answered

        async def live() -> float:
            async with client.get("/livez") as answer:
                await answer.read()
            return asyncio.get_running_loop().time()

        async def removed() -> float:
            async with client.get("/metrics") as answer:
                lines = (await answer.text()).splitlines()
            return sum(float(line.split()[1]) for line in lines if line.startswith(REMOVED))

        async def removes() -> bool:
            return not old_jobs or await removed() > 0

        await wait_until_async(removes, "it does not begin to remove")
        over, began = asyncio.Event(), time.monotonic()
        loads = [
            asyncio.create_task(time_calls(submit, options.rate, over)),
            asyncio.create_task(time_calls(live, 100, over)),
        ]
        while (taken := time.monotonic() - began) < options.most_seconds:
            if taken > options.seconds and await removed() >= old_jobs:
                break
            await asyncio.sleep(1)
        over.set()
        submits, lives = await asyncio.gather(*loads)
        gone = await removed()
    return {
        "submits": len(submits),
        "submit_ms": percentiles(submits),
        "livez_ms": percentiles(lives),
        "seconds": round(taken, 1),
        "jobs_removed": gone,
    }


@contextlib.contextmanager
def upstream() -> Iterator[str]:
    port = free_port()
    with subprocess.Popen([sys.executable, "-m", "tests.bench.static_upstream", str(port)], cwd=ROOT) as process:
        try:
            time.sleep(1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def one_round(folder: Path, fal: str, url: str, options: argparse.Namespace, *, removes: bool) -> dict[str, Any]:
    config = folder / "plans.yaml"
    quotas = [per("tenant", "requests", 10**6), per("subject", "tokens", 10**9, "month")]
    plans = {"plans": {"free": plan(quotas=quotas)}, "tenants": [{"id": "acme", "plan": "free"}]}
    config.write_text(yaml.safe_dump(plans))
    asyncio.run(fill(url, options.jobs, options.state))
    environ = {
        **SERVABLE,
        **{f"FAL_{name}_URL": fal for name in ("RUN", "QUEUE", "REST", "CDN")},
        "PROXY_DATABASE_URL": url,
        "PROXY_CONFIG": str(config),
        "PROXY_LOG_LEVEL": "warning",
        "SOAK_RETENTION_SECONDS": str(RETENTION_SECONDS if removes else NEVER),
        "PYTHONPATH": str(ROOT),
    }
    with contextlib.ExitStack() as stack:
        with pinned(PROXY_CORE):
            server = stack.enter_context(serving(environ=environ, folder=folder, program=PROGRAM))
        with pinned(LOAD_CORE):
            return asyncio.run(measure(server.url, options, options.jobs if removes else 0))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.retention", description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=300_000, help="old ones")
    parser.add_argument(
        "--state",
        choices=["counted", "settled"],
        default="counted",
        help="of old jobs: whether their usage is in the sums, or yet to be counted as after an upgrade",
    )
    parser.add_argument("--rate", type=float, default=50, help="submits a second")
    parser.add_argument("--seconds", type=float, default=30, help="of each round, at least")
    parser.add_argument("--most-seconds", type=float, default=1800, help="of each round, at most")
    parser.add_argument("--rounds", type=int, default=3, help="of each kind, with and without old jobs to remove")
    parser.add_argument("--kinds", nargs="+", default=["sqlite", "postgresql"], choices=["sqlite", "postgresql"])
    options = parser.parse_args()
    report: dict[str, object] = {"machine": machine()}
    with contextlib.ExitStack() as stack:
        with pinned(LOAD_CORE):
            fal, postgres = stack.enter_context(upstream()), stack.enter_context(running_postgres(durable=True))
        for kind in options.kinds:
            ratios = list[float]()
            for number in range(options.rounds):
                p99 = list[float]()
                for removes in (False, True):
                    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                    file = f"sqlite:///{folder / 'proxy.db'}"
                    url = file if kind == "sqlite" else postgres.url(postgres.create_database())
                    name = f"{kind}, round {number + 1}, {'removing' if removes else 'nothing to remove'}"
                    report[name] = found = one_round(folder, fal, url, options, removes=removes)
                    p99.append(found["submit_ms"]["p99"])
                    print(name, found, flush=True)
                ratios.append(round(p99[1] / p99[0], 2))
            report[f"{kind}, ratios of p99"] = ratios
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
