"""Hundreds of jobs on a served proxy that is restarted under them; then what of it is left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import yaml

from proxy.auth.sessions import Sessions
from proxy.clock import SystemClock
from proxy.settings import read
from tests.server.commands import PLAINLY, SECRET, Server, serving
from tests.soak.clients import Load
from tests.support.limited import plan
from tests.support.patience import until
from tests.support.servers import free_port
from tests.support.stack import sandbox_environ

#: The store's connections, three files each, and a little more may stay open; anything for each job may not.
MOST_DESCRIPTORS = 48
#: The server, its lifespan, seven that look after something for good (leases, streams, jobs, old rows), and one for the
#: question.
MOST_TASKS = 10
#: Ended jobs and results are kept, within bounds: about so much of each. The rest is the allocator's play.
BYTES_A_JOB, SPARE_BYTES = 24 * 1024, 24 * 1024 * 1024


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
        environ = _environ(folder, sandbox.url)
        token = Sessions(read(environ).sessions.secrets, SystemClock()).mint("acme", "alice", 86_400)[0]
        port, home = free_port(), folder / "proxy"
        home.mkdir()
        first = Load(f"http://127.0.0.1:{port}", token, 1)
        with serving("serve", environ=environ, folder=home, port=port) as server:
            running = asyncio.create_task(first.run(jobs, seconds * 0.5))
            await asyncio.wait({running}, timeout=seconds * 0.25)
            busy = await asyncio.to_thread(weigh, server)
            code = await asyncio.to_thread(server.stop, signal.SIGTERM, 60)
            assert code in (0, -signal.SIGTERM), f"it ended with {code}"
        with serving("serve", environ=environ, folder=home, port=port) as server:
            await running
            before = await _rested(server)
            second = Load(server.url, token, 2)
            await second.run(jobs, seconds * 0.5)
            after = await _rested(server)
            grown, done = after.bytes - before.bytes, second.ended.total()
            assert grown <= done * BYTES_A_JOB + SPARE_BYTES, f"{grown} bytes more after {done} jobs"
            problems = [line for line in server.stderr.splitlines() if '"level":"error"' in line]
            assert not problems, problems[:3]
    ended = first.ended + second.ended
    return (
        f"{ended.total()} jobs ended with their own answer ({dict(ended)}), clients came back "
        f"{first.again + second.again} times; under load {busy}, at rest {before} and {after}"
    )


async def _rested(server: Server) -> Weight:
    """The weight once nothing runs any more."""

    async def rests() -> bool:
        now = await asyncio.to_thread(weigh, server)
        return now.watched == 0 and now.streams == 0 and now.tasks <= MOST_TASKS and now.descriptors <= MOST_DESCRIPTORS

    try:
        # A job that nobody asks for is followed for half a minute; idle connections to fal live shorter.
        await until(rests, "something was left open", 60)
    except AssertionError:
        raise AssertionError(f"something was left open: {weigh(server)}") from None
    return await asyncio.to_thread(weigh, server)


@contextlib.contextmanager
def _sandbox(folder: Path) -> Iterator[Server]:
    home, port = folder / "sandbox", free_port()
    home.mkdir()
    with serving("sandbox", "--port", str(port), environ={}, folder=home, live_at="/_sandbox/jobs", port=port) as one:
        yield one


def _environ(folder: Path, sandbox_url: str) -> dict[str, str]:
    config = folder / "plans.yaml"
    config.write_text(yaml.safe_dump({"plans": {"free": plan()}, "tenants": [{"id": "acme", "plan": "free"}]}))
    return {
        **sandbox_environ(sandbox_url),
        "PROXY_CONFIG": str(config),
        "PROXY_SESSION_SECRETS": SECRET,
        "PROXY_DATABASE_URL": f"sqlite:///{folder / 'proxy.db'}",
        "PROXY_DRAIN_SECONDS": "5",
        "PROXY_LOG_LEVEL": "warning",
    }
