"""What old calls cost: `python -m tests.bench.million`. Needs wrk, taskset and PostgreSQL.

A database with a million jobs and two million rows of usage, of 20,000 users in 90 days: how long each report and each
page of the console takes, and what a submit, a poll and a list of jobs take beside the same on an empty database.
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
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import text

from proxy.stores.sql import SqlStores
from proxy.stores.sql.database import Database
from proxy.stores.sql.schema import USAGE_SUMS
from tests.bench.contestants import Contestant, fal_proxy
from tests.bench.processes import ROOT, machine, static_fal
from tests.bench.rounds import LOAD_CORE, PROXY_CORE, STATUS, SUBMIT, measure
from tests.support.limited import ADMIN_TOKEN
from tests.support.postgres import running_postgres
from tests.support.servers import free_port

DAY, DAYS, USERS = 86_400, 90, 20_000
ENDPOINTS = "CASE WHEN n % 3 = 0 THEN 'fal-ai/llava-next' ELSE 'fal-ai/llavav15-13b' END"
NUMBERS = {
    "sqlite": "WITH RECURSIVE numbers(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n < {last})",
    "postgresql": "WITH numbers AS (SELECT n FROM generate_series(0, {last}) AS n)",
}
KEYS = {"sqlite": "printf('%032x', n)", "postgresql": "lpad(to_hex(n), 32, '0')"}
JOBS = """
INSERT INTO jobs (id, request_id, kind, endpoint, tenant, subject, state, charges, used, submitted_at, checked_at,
  expires_at, session, tags)
{numbers}
SELECT {key}, {key}, 'submit', {endpoints}, 'bench', 'user-' || (n % {users} * 7919 % {users}), 'counted',
  '[["","requests","day",0,1000000,1000000000000]]', '{{"requests":1000000,"tokens":64000000,"usd":600}}',
  {begin} + n * {step}, {begin} + n * {step}, {begin} + n * {step} + 3600, {key}, '["web"]'
FROM numbers
"""
USAGE = """
INSERT INTO usage_days (tenant, subject, day, endpoint, {sums})
{numbers}
SELECT 'bench', 'user-' || (n % {users}), {first} + n / {users} % {days}, CASE WHEN n / {users} < {days}
  THEN 'fal-ai/llava-next' ELSE 'fal-ai/llavav15-13b' END, {ones}
FROM numbers
"""


async def fill(url: str, jobs: int, rows: int) -> None:
    """Write so many old jobs and rows of usage."""
    database, today = Database(url), int(time.time()) // DAY
    dialect = database.dialect.name
    words = {
        "key": KEYS[dialect],
        "endpoints": ENDPOINTS,
        "users": USERS,
        "days": DAYS,
        "first": today - DAYS,
        "begin": (today - DAYS) * DAY,
        "step": DAYS * DAY / jobs,
        "sums": ", ".join(USAGE_SUMS),
        "ones": ", ".join("1" for _ in USAGE_SUMS),
    }
    async with database.migrating() as connection:
        for statement, count in ((JOBS, jobs), (USAGE, rows)):
            numbers = NUMBERS[dialect].format(last=count - 1)
            await connection.execute(text(statement.format(**words, numbers=numbers).replace(":", "\\:")))
    if dialect == "postgresql":
        async with database.migrating() as connection:
            await connection.execute(text("ANALYZE"))
    await database.close()


async def migrate(url: str) -> None:
    stores = SqlStores(url)
    await stores.migrate()
    await stores.close()


def pages(month: str, first: str, last: str, job: str) -> dict[str, list[str]]:
    """Paths by what they need: reports of the admin API, and pages of the console."""
    period = f"from={first}&to={last}"
    groups = ("day", "endpoint", "subject", "day,endpoint", "day,subject", "endpoint,subject", "day,endpoint,subject")
    details = ("hour", "session", "tag")
    return {
        "admin": [
            f"/v1/admin/usage?{period}",
            f"/v1/admin/usage?{period}&group_by=tenant,day",
            *(f"/v1/admin/usage?tenant=bench&{period}&group_by={group}" for group in groups),
            *(f"/v1/admin/usage?tenant=bench&from={last}&to={last}&group_by={group}" for group in details),
            f"/v1/admin/usage?tenant=bench&{period}&group_by=subject&format=csv",
            f"/v1/admin/usage?tenant=bench&subject=user-7&{period}&group_by=day",
            f"/v1/admin/tenants/bench/statements/{month}",
            "/v1/admin/jobs?tenant=bench&limit=100",
            "/v1/admin/jobs?tenant=bench&subject=user-7",
            "/v1/admin/jobs?tenant=bench&endpoint=fal-ai/llava-next",
            "/v1/admin/jobs?tenant=bench&status=over",
            f"/v1/admin/jobs/{job}",
            "/v1/admin/upstreams",
            "/v1/admin/alerts",
            "/v1/admin/audit",
            "/v1/admin/tenants/bench",
        ],
        "console": [
            "/console",
            "/console/tenants",
            "/console/tenants/bench",
            "/console/jobs?tenant=bench",
            "/console/jobs?tenant=bench&status=open",
            f"/console/jobs/{job}",
            "/console/upstreams",
            "/console/alerts",
            "/console/audit",
        ],
    }


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
    url = contestant.url.removesuffix("/api/fal/proxy")
    now = time.time() - 3 * DAY
    month, last = time.strftime("%Y-%m", time.gmtime(now)), time.strftime("%Y-%m-%d", time.gmtime(now))
    first = time.strftime("%Y-%m-%d", time.gmtime(now - 80 * DAY))
    taken = {}
    with operator(url) as clients:
        job = f"{7:032x}"
        for kind, paths in pages(month, first, last, job).items():
            for path in paths:
                each = []
                for _ in range(times):
                    began = time.perf_counter()
                    answer = clients[kind].get(path)
                    each.append((time.perf_counter() - began) * 1000)
                    if answer.status_code != 200:
                        raise RuntimeError(f"{path}: {answer.status_code} {answer.text[:300]}")
                taken[path] = round(statistics.median(each), 1)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.million", description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--rows", type=int, default=2_000_000, help="of usage")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", default=["postgresql", "sqlite"], choices=["sqlite", "postgresql"])
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bench-million.json")
    options = parser.parse_args()
    report: dict[str, Any] = {"machine": machine(), "jobs": options.jobs, "rows": options.rows}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port = free_port()
        stack.enter_context(static_fal(port, LOAD_CORE, folder / "static-upstream.log"))
        postgres = stack.enter_context(running_postgres(durable=True))
        for kind in options.kinds:
            contestants = []
            for name in ("empty", "full"):
                file = f"sqlite:///{folder / f'{name}.db'}"
                database = file if kind == "sqlite" else postgres.url(postgres.create_database())
                asyncio.run(migrate(database))
                if name == "full":
                    asyncio.run(fill(database, options.jobs, options.rows))
                environ = {"PROXY_DATABASE_URL": database, "PROXY_ADMIN_TOKEN": ADMIN_TOKEN}
                contestants.append(
                    stack.enter_context(
                        fal_proxy(f"http://127.0.0.1:{port}", PROXY_CORE, folder, name=f"{kind} {name}", stores=environ)
                    )
                )
            taken = time_pages(contestants[1], options.rounds)
            for path, milliseconds in sorted(taken.items(), key=lambda one: -one[1]):
                print(f"{milliseconds:8.1f} ms  {path}")
            results = measure(contestants, options.rounds, options.seconds, (SUBMIT, STATUS))
            report[kind] = {"pages": taken, "results": results}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
