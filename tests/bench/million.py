"""The cost of old calls: `python -m tests.bench.million`. Needs wrk, taskset and PostgreSQL.

A database with a million jobs and two million rows of usage, of 20,000 users in 90 days: how long each report and each
page of the console takes, and what a submit and a poll take beside the same on an empty database. Exits with 1 if a
page takes longer than 300 ms, or calls are more than 10 % slower.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import httpx

from proxy.stores.sql import SqlStores
from tests.bench.contestants import Contestant, fal_proxy
from tests.bench.old_calls import DAY, JOB, OldCalls, fill_postgresql, fill_sqlite, job_id, user
from tests.bench.processes import ROOT, machine, static_fal
from tests.bench.rounds import LOAD_CORE, PROXY_CORE, STATUS, SUBMIT, Results, measure, ratio
from tests.support.limited import ADMIN_TOKEN
from tests.support.postgres import Postgres, running_postgres
from tests.support.servers import free_port

#: What a page may take, and how much slower calls may be than on an empty database.
PAGE_MILLISECONDS, LEAST_SHARE = 300, 0.9


async def migrate(url: str) -> None:
    stores = SqlStores(url)
    await stores.migrate()
    await stores.close()


def pages() -> dict[str, list[str]]:
    """Paths by what they need, reports of the admin API and pages of the console, with names for days and for a job."""
    usage, groups = "/v1/admin/usage?tenant=bench", ("day", "endpoint", "subject")
    several = [",".join(some) for size in (1, 2, 3) for some in combinations(groups, size)]
    return {
        "admin": [
            "/v1/admin/usage?{80 days}",
            "/v1/admin/usage?{80 days}&group_by=tenant,day,endpoint",
            *(f"{usage}&{{80 days}}&group_by={group}" for group in several),
            *(
                f"{usage}&{{31 days}}&group_by={group}"
                for group in ("hour", "hour,endpoint", "tag", "tag,day,endpoint")
            ),
            *(f"{usage}&{{4 days}}&group_by={group}" for group in ("session", "hour,tag", "hour,session,subject,tag")),
            f"{usage}&{{80 days}}&group_by=subject&format=csv",
            f"{usage}&subject={user(7)}&{{80 days}}&group_by=day",
            f"{usage}&subject={user(7)}&{{31 days}}&group_by=session,tag",
            "/v1/admin/tenants/bench/statements/{month}",
            "/v1/admin/jobs?tenant=bench&limit=100",
            f"/v1/admin/jobs?tenant=bench&subject={user(7)}",
            "/v1/admin/jobs?tenant=bench&endpoint=fal-ai/llava-next",
            # Of it there are none: all jobs are looked at.
            "/v1/admin/jobs?tenant=bench&endpoint=fal-ai/llava-llama3-8b-v11",
            "/v1/admin/jobs?tenant=bench&status=over",
            "/v1/admin/jobs/{job}",
            "/v1/admin/upstreams",
            "/v1/admin/alerts",
            "/v1/admin/audit",
            "/v1/admin/tenants/bench",
        ],
        "console": [
            "/console",
            "/console/tenants",
            "/console/tenants/bench",
            "/console/tenants/bench/subjects",
            f"/console/tenants/bench/subject?name={user(7)}",
            "/console/tenants/bench/statement?month={month}",
            "/console/tenants/bench/grants",
            "/console/tenants/bench/overrides",
            "/console/usage",
            "/console/usage?tenant=bench&group_by=subject",
            "/console/usage?tenant=bench&group_by=tag",
            "/console/jobs?tenant=bench",
            "/console/jobs?tenant=bench&status=open",
            "/console/jobs/{job}",
            "/console/upstreams",
            "/console/alerts",
            "/console/audit",
            "/console/tokens",
            "/console/configuration",
        ],
    }


def name_values() -> dict[str, str]:
    """What the names in `pages` stand for."""
    last = time.time() - 3 * DAY
    days = {f"{number} days": number for number in (4, 31, 80)}
    periods = {
        name: f"from={_write_day(last - (number - 1) * DAY)}&to={_write_day(last)}" for name, number in days.items()
    }
    return {**periods, "month": _write_day(last)[:7], "job": job_id(JOB)}


def _write_day(moment: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(moment))


@contextlib.contextmanager
def operator(url: str) -> Iterator[Mapping[str, httpx.Client]]:
    """Clients of the admin API and of the console."""
    headers = {"authorization": f"Bearer {ADMIN_TOKEN}"}
    with (
        httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as admin,
        httpx.Client(base_url=url, timeout=60, trust_env=False, follow_redirects=True) as console,
    ):
        found = re.search(r'name="csrf" value="([^"]+)"', console.get("/console/sign-in").text)
        assert found is not None
        form = {"csrf": found[1], "token": ADMIN_TOKEN, "next": ""}
        console.post("/console/sign-in", data=form, headers={"origin": url}).raise_for_status()
        yield {"admin": admin, "console": console}


def time_pages(contestant: Contestant, times: int) -> dict[str, float]:
    """Milliseconds of each page: the median of some times."""
    values, taken = name_values(), dict[str, float]()
    with operator(contestant.url.removesuffix("/api/fal/proxy")) as clients:
        for kind, paths in pages().items():
            for name in paths:
                path, each = name.format(**values), list[float]()
                for _ in range(times):
                    began = time.perf_counter()
                    answer = clients[kind].get(path)
                    each.append((time.perf_counter() - began) * 1000)
                    if answer.status_code != 200:
                        raise RuntimeError(f"{path}: {answer.status_code} {answer.text[:300]}")
                taken[name] = round(statistics.median(each), 1)
    return taken


def prepare(kind: str, name: str, folder: Path, postgres: Postgres, calls: OldCalls | None) -> str:
    """Make a database, empty or with old calls; its URL."""
    file = folder / f"{name}.db"
    url = f"sqlite:///{file}" if kind == "sqlite" else postgres.url(postgres.create_database())
    asyncio.run(migrate(url))
    if calls is not None:
        began = time.perf_counter()
        fill_sqlite(str(file), calls) if kind == "sqlite" else asyncio.run(fill_postgresql(url, calls))
        print(f"{kind}: filled in {time.perf_counter() - began:.0f} s", flush=True)
    return url


def find_excesses(kind: str, taken: Mapping[str, float], results: Results) -> list[str]:
    """What takes longer than it may: pages, and calls beside the same on the empty database."""
    found = [f"{kind}: {path}: {took} ms" for path, took in taken.items() if took > PAGE_MILLISECONDS]
    for workload, turns in results.items():
        empty, full = turns.values()
        if (share := ratio(full, empty, "per_second")) < LEAST_SHARE:
            found.append(f"{kind}: {workload}: {share:.2f} of the rate on an empty database")
    return found


def compare(kind: str, folder: Path, postgres: Postgres, upstream: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one kind of database."""
    calls = {"empty": None, "full": OldCalls(options.jobs, options.rows)}
    with contextlib.ExitStack() as stack:
        contestants = []
        for name, some in calls.items():
            environ = {
                "PROXY_DATABASE_URL": prepare(kind, name, folder, postgres, some),
                "PROXY_ADMIN_TOKEN": ADMIN_TOKEN,
            }
            proxy = fal_proxy(upstream, PROXY_CORE, folder, name=f"{kind} {name}", stores=environ)
            contestants.append(stack.enter_context(proxy))
        taken = time_pages(contestants[1], options.rounds)
        for path, milliseconds in sorted(taken.items(), key=lambda one: -one[1]):
            print(f"{milliseconds:8.1f} ms  {path}", flush=True)
        results = measure(contestants, options.rounds, options.seconds, (SUBMIT, STATUS)) if options.seconds else {}
    return {"pages": taken, "results": results, "excesses": find_excesses(kind, taken, results)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.million", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--rows", type=int, default=2_000_000, help="of usage")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3, help="of each round of calls; 0 for pages alone")
    parser.add_argument("--kinds", nargs="+", default=["postgresql", "sqlite"], choices=["sqlite", "postgresql"])
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bench-million.json")
    options = parser.parse_args()
    report: dict[str, Any] = {"machine": machine(), "jobs": options.jobs, "rows": options.rows, "databases": {}}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port = free_port()
        stack.enter_context(static_fal(port, LOAD_CORE, folder / "static-upstream.log"))
        postgres = stack.enter_context(running_postgres(durable=True))
        for kind in options.kinds:
            report["databases"][kind] = compare(kind, folder, postgres, f"http://127.0.0.1:{port}", options)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written to {options.output}")
    if excesses := [line for kind in options.kinds for line in report["databases"][kind]["excesses"]]:
        raise SystemExit("\n".join(["too slow:", *excesses]))


if __name__ == "__main__":
    main()
