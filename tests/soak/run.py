"""Hundreds of jobs on a served proxy that is restarted under them; then what of it is left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import yaml
from sqlalchemy import func, select

from proxy.auth.sessions import Sessions
from proxy.clock import SystemClock
from proxy.settings import Secret
from proxy.stores.sql import schema
from proxy.stores.sql.database import Database
from tests.server.commands import PLAINLY, Server, serving
from tests.soak.clients import Load
from tests.soak.short_retention import PROGRAM
from tests.support.limited import plan
from tests.support.secrets import SECRET
from tests.support.servers import free_port
from tests.support.stack import sandbox_environ
from tests.support.waiting import DEFAULT_SECONDS, wait_until_async

#: The store's connections, three files each, and a little more may stay open; anything for each job may not.
MOST_DESCRIPTORS = 48
#: Ended jobs and results are kept, within bounds: about so much of each. The rest is a margin for the allocator.
BYTES_A_JOB, SPARE_BYTES = 24 * 1024, 24 * 1024 * 1024
#: How long rows stay after their end: for as long as a client may need for its job, but less in a short soak.
LEAST_RETENTION_SECONDS, MOST_RETENTION_SECONDS = 60.0, 120.0
#: What the file has in use once all jobs are removed: the tables themselves, and sums. The rest is free for new rows.
MOST_BYTES_IN_USE = 512 * 1024
#: What a submit leaves in the database, a row each.
TABLES = (schema.jobs, schema.idempotency)
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Weight:
    """What a process holds."""

    descriptors: int
    bytes: int
    tasks: int
    watched: int
    streams: int


def weigh(server: Server) -> Weight:
    process = Path(f"/proc/{server.process.pid}")
    rss = next(line for line in (process / "status").read_text().splitlines() if line.startswith("VmRSS"))
    lines = httpx.get(f"{server.url}/metrics", **PLAINLY).raise_for_status().text.splitlines()
    gauges = {name: int(float(value)) for name, _, value in (line.partition(" ") for line in lines if line[0] != "#")
              if name in ("fal_proxy_tasks", "fal_proxy_watched_jobs", "fal_proxy_open_streams")}  # fmt: skip
    return Weight(
        len(os.listdir(process / "fd")),
        int(rss.split()[1]) * 1024,
        gauges["fal_proxy_tasks"],
        gauges["fal_proxy_watched_jobs"],
        gauges["fal_proxy_open_streams"],
    )


async def soak(folder: Path, seconds: float, jobs: int) -> str:
    """Load, a restart under load, load, rest, load, rest; what was seen, in a sentence.

    Raises:
        AssertionError: a job was lost, or something accumulated.
    """
    with _sandbox(folder) as sandbox:
        retention = max(LEAST_RETENTION_SECONDS, min(MOST_RETENTION_SECONDS, seconds / 4))
        environ = _environ(folder, sandbox.url, retention)
        token = Sessions((Secret(SECRET),), SystemClock()).mint("acme", "alice", 86_400)[0]
        port, home = free_port(), folder / "proxy"
        home.mkdir()
        first = Load(f"http://127.0.0.1:{port}", token, 1)
        with serving(environ=environ, folder=home, port=port, program=PROGRAM) as server:
            fresh = await asyncio.to_thread(weigh, server)
            running = asyncio.create_task(first.run(jobs, seconds * 0.5))
            await asyncio.wait({running}, timeout=seconds * 0.25)
            busy = await asyncio.to_thread(weigh, server)
            code = await asyncio.to_thread(server.stop, signal.SIGTERM)
            assert code in (0, -signal.SIGTERM), f"it ended with {code}"
        with serving(environ=environ, folder=home, port=port, program=PROGRAM) as server:
            await running
            bytes_before, _ = _database_bytes(folder)
            before = await _wait_for_rest(server, fresh.tasks)
            second = Load(server.url, token, 2)
            await second.run(jobs, seconds * 0.5)
            bytes_after, _ = _database_bytes(folder)
            after = await _wait_for_rest(server, fresh.tasks)
            grown, done = after.bytes - before.bytes, second.ended.total()
            assert grown <= done * BYTES_A_JOB + SPARE_BYTES, f"{grown} bytes more after {done} jobs"
            ended = first.ended + second.ended
            await _is_removed(server, folder, token, ended.total(), retention)
            _, in_use = _database_bytes(folder)
            assert in_use <= MOST_BYTES_IN_USE, f"{in_use} bytes of the database are in use"
            problems = [line for line in server.stderr.splitlines() if '"level":"error"' in line]
            assert not problems, problems[:3]
    return (
        f"{ended.total()} jobs ended with their own answer ({dict(ended)}), clients came back "
        f"{first.again + second.again} times; under load {busy}, at rest {before} and {after}; "
        f"the database had {bytes_before} and {bytes_after} bytes after the loads, {in_use} in use when all was removed"
    )


async def _wait_for_rest(server: Server, tasks: int) -> Weight:
    """The weight once nothing runs any more but the tasks that a process has from its start."""

    async def rests() -> bool:
        now = await asyncio.to_thread(weigh, server)
        return now.watched == 0 and now.streams == 0 and now.tasks <= tasks and now.descriptors <= MOST_DESCRIPTORS

    try:
        # A job without readers is followed for half a minute; idle connections to fal close sooner.
        await wait_until_async(rests, "something was left open")
    except AssertionError:
        raise AssertionError(f"something was left open: {weigh(server)}") from None
    return await asyncio.to_thread(weigh, server)


def _database_bytes(folder: Path) -> tuple[int, int]:
    """The size of the file, with what its log has still to bring, and how much of it is in use."""
    with contextlib.closing(sqlite3.connect(folder / "proxy.db")) as connection:
        names = ("page_count", "freelist_count", "page_size")
        pages, free, size = (int(connection.execute(f"PRAGMA {name}").fetchone()[0]) for name in names)
    return pages * size, (pages - free) * size


async def _is_removed(server: Server, folder: Path, token: str, jobs: int, retention: float) -> None:
    """Wait until all jobs have been removed, and find them all in what was used."""
    database = Database(f"sqlite:///{folder / 'proxy.db'}")

    async def are_gone() -> bool:
        async with database.reading() as connection:
            counts = [await connection.scalars(select(func.count()).select_from(table)) for table in TABLES]
        return not any(count.one() for count in counts)

    try:
        await wait_until_async(are_gone, "rows past their time are still there", retention + DEFAULT_SECONDS)
    finally:
        await database.close()
    async with httpx.AsyncClient(**PLAINLY) as client:
        answer = await client.get(f"{server.url}/v1/usage", headers={"authorization": f"Bearer {token}"})
    calls = answer.raise_for_status().json()["total"]["calls"]
    assert calls == jobs, f"{calls} calls of {jobs} jobs"


@contextlib.contextmanager
def _sandbox(folder: Path) -> Iterator[Server]:
    home, port = folder / "sandbox", free_port()
    home.mkdir()
    with serving("sandbox", "--port", str(port), environ={}, folder=home, live_at="/_sandbox/jobs", port=port) as one:
        yield one


def _environ(folder: Path, sandbox_url: str, retention: float) -> dict[str, str]:
    config = folder / "plans.yaml"
    config.write_text(yaml.safe_dump({"plans": {"free": plan()}, "tenants": [{"id": "acme", "plan": "free"}]}))
    return {
        **sandbox_environ(sandbox_url),
        "PROXY_CONFIG": str(config),
        "PROXY_SESSION_SECRETS": SECRET,
        "PROXY_DATABASE_URL": f"sqlite:///{folder / 'proxy.db'}",
        # Enough for every submit that is on its way, on a busy machine too.
        "PROXY_DRAIN_SECONDS": "60",
        "PROXY_LOG_LEVEL": "warning",
        "SOAK_RETENTION_SECONDS": str(retention),
        "PYTHONPATH": str(ROOT),
    }
