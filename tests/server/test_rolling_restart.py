"""Proxies are restarted one after the other while callers go on: each call gets its own answer, and is made once.

The callers know what a load balancer's callers know: several addresses, of which one may refuse them for a while. They
repeat a call only when it was refused (a connection, or 503 `draining`), or when a connection that they kept was closed
before any answer; anything else that goes wrong fails the test.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
import yaml

from proxy.limits.quotas import MILLION
from proxy.sandbox.app import create_sandbox
from proxy.sandbox.request_log import RECORDED_REQUESTS
from proxy.stores.ledger import Account
from tests.limits.callers import ENDPOINT, Answered, Caller, http
from tests.limits.forked_servers import ForkedServers, fork_servers
from tests.support.audit import AuditReport, read_report
from tests.support.databases import PostgresDatabases, SqliteDatabases
from tests.support.forking import Forker
from tests.support.redis import Redis
from tests.support.sandbox import SandboxControl
from tests.support.secrets import SECRET
from tests.support.servers import running
from tests.support.stack import UNLIMITED, sandbox_environ
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.anyio
PROXIES, RESTARTS, CALLERS = 2, 6, 8
RETRY_SECONDS = 0.05
PLANS = {
    "plans": {
        "wide": {
            "endpoints": [ENDPOINT],
            **UNLIMITED,
            "alerts": [50, 80, 100],
            "quotas": [{"per": "tenant", "unit": "requests", "limit": 100_000, "window": "month"}],
        }
    },
    "tenants": [{"id": "acme", "plan": "wide"}],
}


#: Whether the last request of this caller went over a connection that was used before.
_is_kept = ContextVar("is_kept", default=False)


def trace_reuse() -> aiohttp.TraceConfig:
    """Trace whether a request reuses a connection, in `_is_kept`."""

    async def keep(*_: object) -> None:
        _is_kept.set(True)

    async def create(*_: object) -> None:
        _is_kept.set(False)

    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(keep)
    trace.on_connection_create_start.append(create)
    return trace


@dataclass
class Fleet:
    """The proxies that callers know of; one that is stopping stays known until it is gone."""

    servers: ForkedServers
    environ: dict[str, str]
    session: aiohttp.ClientSession
    living: deque[tuple[str, int]] = field(default_factory=deque)
    is_done: bool = False
    refusals: Counter[str] = field(default_factory=Counter)

    async def grow(self) -> None:
        self.living.append(await self.servers.start(self.environ, self.session))

    async def stop_the_oldest(self) -> None:
        await self.servers.stop(self.living[0][1])
        self.living.popleft()

    async def ask(self, caller: Caller, ask: Callable[[], Awaitable[Answered]]) -> Answered:
        """One call of a caller, at whichever proxy takes it."""
        while True:
            caller.url = random.choice(self.living)[0]
            try:
                answer = await ask()
            except aiohttp.ClientConnectorError:
                self.refusals["connection"] += 1
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                # Closed for its idleness just as the request was sent: browsers send it once more, over a new one.
                assert _is_kept.get(), "a new connection was closed before its answer"
                self.refusals["kept connection"] += 1
            else:
                if answer.status != 503:
                    return answer
                assert answer.error_type == "draining", answer
                self.refusals["draining"] += 1
            await asyncio.sleep(RETRY_SECONDS)


@pytest.fixture
def fal() -> Iterator[SandboxControl]:
    with running(create_sandbox(), timeout_keep_alive=300) as url:
        control = SandboxControl(url)
        yield control
        control.close()


async def test_a_rolling_restart_on_sqlite_loses_no_call(
    fal: SandboxControl,
    sqlite_databases: SqliteDatabases,
    forker: Forker,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    await _restart_and_judge(fal, {"PROXY_DATABASE_URL": sqlite_databases.migrated()}, forker, tmp_path, capsys)


@pytest.mark.tools
async def test_a_rolling_restart_on_postgresql_and_redis_loses_no_call(
    fal: SandboxControl,
    postgres_databases: PostgresDatabases,
    redis: Redis,
    forker: Forker,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stores = {"PROXY_DATABASE_URL": postgres_databases.migrated(), "PROXY_REDIS_URL": redis.url}
    await _restart_and_judge(fal, stores, forker, tmp_path, capsys)


async def _restart_and_judge(
    fal: SandboxControl, stores: dict[str, str], forker: Forker, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "plans.yaml").write_text(yaml.safe_dump(PLANS))
    environ = {
        **sandbox_environ(fal.url),
        **stores,
        "PROXY_SESSION_SECRETS": SECRET,
        "PROXY_CONFIG": str(folder / "plans.yaml"),
        "PROXY_LOG_LEVEL": "warning",
    }
    with fork_servers(forker, folder) as found:
        async with http(trace_configs=[trace_reuse()]) as session:
            fleet = Fleet(found, environ, session)
            for _ in range(PROXIES):
                await fleet.grow()
            callers = [asyncio.create_task(_call_again_and_again(fleet, number)) for number in range(CALLERS)]
            for _ in range(RESTARTS):
                await fleet.stop_the_oldest()
                await fleet.grow()
            fleet.is_done = True
            calls = dict(pair for pairs in await asyncio.gather(*callers) for pair in pairs)
            while fleet.living:
                await fleet.stop_the_oldest()
    _judge(calls, await read_report(environ["PROXY_DATABASE_URL"]), fal)
    # Without refusals the test would not have shown that callers meet the stops.
    assert fleet.refusals["draining"] and fleet.refusals["connection"]
    with capsys.disabled():
        print(f"\n{RESTARTS} restarts under {len(calls)} calls; refused and repeated: {dict(fleet.refusals)}", end=" ")


async def _call_again_and_again(fleet: Fleet, number: int) -> list[tuple[str, str | None]]:
    """Runs and whole jobs in turn, each under a name of its own: what their names are, and fal's ids of the jobs."""
    calls: list[tuple[str, str | None]] = []
    while not fleet.is_done:
        name = f"{number}-{len(calls)}"
        caller = Caller(fleet.session, "", "acme", name)
        prompt = f"{name} [[pace queue_positions=1 run_seconds={random.choice([0.05, 0.3, 0.6])}]]"
        work = _run if len(calls) % 2 else _whole_job
        calls.append((name, await work(fleet, caller, prompt)))
    return calls


async def _is_over(fleet: Fleet, caller: Caller, job: str) -> bool:
    answer = await fleet.ask(caller, lambda: caller.status(job))
    assert answer.status == (200 if answer.body["status"] == "COMPLETED" else 202), answer
    return answer.status == 200


async def _run(fleet: Fleet, caller: Caller, prompt: str) -> None:
    _is_own(caller, await fleet.ask(caller, lambda: caller.run(prompt)))


async def _whole_job(fleet: Fleet, caller: Caller, prompt: str) -> str:
    submitted = await fleet.ask(caller, lambda: caller.submit(prompt))
    assert submitted.status == 200, submitted
    job: str = submitted.body["request_id"]
    await wait_until_async(lambda: _is_over(fleet, caller, job), "the job does not end")
    _is_own(caller, await fleet.ask(caller, lambda: caller.result(job)))
    return job


def _is_own(caller: Caller, answer: Answered) -> None:
    assert answer.status == 200 and f"You asked: {caller.subject} " in answer.body["output"] + " ", (caller, answer)


def _judge(calls: dict[str, str | None], report: AuditReport, fal: SandboxControl) -> None:
    record = fal.requests()
    assert len(record) < RECORDED_REQUESTS, "the record has forgotten the first of them"
    at_fal = Counter(one["json"]["prompt"].split()[0] for one in record if one["method"] == "POST")
    assert at_fal == dict.fromkeys(calls, 1), "fal was asked for something twice, or for something else"
    report.check()
    assert {entry.subject: entry.request_id for entry in report.entries} == calls
    assert len(report.entries) == len(calls) and report.by_state() == {"settled": len(calls)}
    assert report.total("requests") == Account(used=len(calls) * MILLION, reserved=0)
