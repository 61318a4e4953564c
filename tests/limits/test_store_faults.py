"""Stores fail in every way under load: no call is lost, made twice or given away, and `/readyz` names the store.

Two proxies share a PostgreSQL and a Redis; one has a SQLite file. Callers submit, run, stream, poll, cancel and repeat
with their Idempotency-Key, before, during and after the fault, each step at the next proxy.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import aiohttp
import pytest
import yaml

from tests.limits import troubles
from tests.limits.callers import ENDPOINT, http
from tests.limits.forked_servers import ForkedServers, fork_servers
from tests.limits.store_load import LONGEST_ANSWER_SECONDS, LONGEST_REFUSAL_SECONDS, check_at_rest, loading
from tests.support.audit import Auditor
from tests.support.databases import PostgresDatabases, SqliteDatabases
from tests.support.disks import mounted_disk
from tests.support.forking import Forker
from tests.support.postgres import Postgres, running_postgres
from tests.support.redis import running_redis
from tests.support.sandbox import SandboxControl
from tests.support.secrets import SECRET
from tests.support.stack import UNLIMITED, sandbox_environ
from tests.support.waiting import wait_until_async

pytestmark = [pytest.mark.anyio, pytest.mark.tools]
DATABASE, COUNTERS = "database", "counters"
#: `/readyz` waits two seconds for a silent store; the rest is a margin for a busy machine.
LONGEST_CHECK_SECONDS = 2 + 30
#: How long a fault lasts at least; one that is to be noticed lasts until it is.
SILENCE_SECONDS, ABSENCE_SECONDS = 3.5, 1.5
#: How long callers go on before the first fault and after each.
CALM_SECONDS = 0.8
PLANS = {
    "plans": {
        "wide": {
            "endpoints": [ENDPOINT],
            **UNLIMITED,
            "rate_limits": {"ip": None, "session": None, "subject": "1000/minute", "tenant": "100000/minute"},
            "alerts": [50, 80, 100],
            "quotas": [{"per": "tenant", "unit": "requests", "limit": 100_000, "window": "month"}],
        }
    },
    "tenants": [{"id": "acme", "plan": "wide"}],
}


class Probe(NamedTuple):
    """One answer of `/readyz`."""

    at: float
    seconds: float
    status: int
    stores: tuple[str, ...]
    error_type: str
    message: str

    @property
    def late(self) -> set[str]:
        """The stores that did not answer in the time of a check."""
        return {store for store in self.stores if f"{store} did not answer within" in self.message}


@dataclass
class Scene:
    """Some proxies that are watched by their orchestrator."""

    environ: dict[str, str]
    sandbox: SandboxControl
    servers: ForkedServers
    probes: dict[str, list[Probe]] = field(default_factory=dict)

    @asynccontextmanager
    async def serving(self, proxies: int) -> AsyncIterator[aiohttp.ClientSession]:
        async with http() as session, AsyncExitStack() as stack:
            for url, _ in await asyncio.gather(*(self.servers.start(self.environ, session) for _ in range(proxies))):
                self.probes[url] = []
                probing = asyncio.create_task(self._probe(session, url))
                stack.callback(probing.cancel)
            yield session

    async def _probe(self, session: aiohttp.ClientSession, url: str) -> None:
        while True:
            began = time.monotonic()
            async with session.get(f"{url}/readyz") as response:
                body = await response.json()
            seconds, stores = time.monotonic() - began, tuple(body.get("stores", ()))
            error_type, message = body.get("error_type", ""), body.get("message", "")
            self.probes[url].append(Probe(began, seconds, response.status, stores, error_type, message))
            await asyncio.sleep(0.1)

    async def are_ready(self) -> bool:
        return all(probes and probes[-1].status == 200 for probes in self.probes.values())

    async def have_noticed(self, store: str, since: float) -> bool:
        """Whether each proxy has named the store."""
        return all(
            any(store in probe.stores for probe in probes if probe.at >= since) for probes in self.probes.values()
        )

    def check_probes(self, store: str) -> None:
        """Require that no proxy called another store broken: on a busy machine it may be late."""
        for probes in self.probes.values():
            broken = [probe for probe in probes if probe.stores and not set(probe.stores) - probe.late <= {store}]
            assert not broken
            odd = [probe for probe in probes if (probe.status == 503) != bool(probe.stores)]
            assert not odd
            assert max(probe.seconds for probe in probes) < LONGEST_CHECK_SECONDS


@pytest.fixture
def scene(forker: Forker, fal: SandboxControl, tmp_path: Path) -> Iterator[Scene]:
    (tmp_path / "plans.yaml").write_text(yaml.safe_dump(PLANS))
    environ = {
        **sandbox_environ(fal.url),
        "PROXY_SESSION_SECRETS": SECRET,
        "PROXY_CONFIG": str(tmp_path / "plans.yaml"),
        "PROXY_LOG_LEVEL": "warning",
    }
    with fork_servers(forker, tmp_path) as found:
        yield Scene(environ, fal, found)


@pytest.fixture(scope="module")
def failing_postgres() -> Iterator[Postgres]:
    """A server that tests may break, each in its turn; what it has committed is on its disk."""
    with running_postgres(durable=True) as server:
        yield server


@pytest.fixture(scope="module")
def failing_databases(failing_postgres: Postgres) -> PostgresDatabases:
    return PostgresDatabases(failing_postgres)


async def withstand(
    scene: Scene,
    proxies: int,
    store: str,
    trouble: partial[AbstractContextManager[None]],
    *,
    seconds: float = ABSENCE_SECONDS,
    times: int = 1,
    must_show: bool = True,
) -> str:
    """Let a store fail under load, check everything when it is back, and return a summary in words."""
    # Most submits are between their reservation and fal's answer when the trouble begins.
    scene.sandbox.fault("delay", delay=0.2, on={"operation": "submit"})
    async with scene.serving(proxies) as session:
        async with loading(session, list(scene.probes)) as load:
            await asyncio.sleep(CALM_SECONDS)
            for _ in range(times):
                await wait_until_async(scene.are_ready, "a proxy is not ready")
                began = time.monotonic()
                with trouble():
                    await asyncio.sleep(seconds)
                    if must_show:
                        await wait_until_async(partial(scene.have_noticed, store, began), "a proxy stays ready")
                await asyncio.sleep(CALM_SECONDS)
        await wait_until_async(scene.are_ready, "a proxy did not become ready again")
        auditor = Auditor(scene.environ["PROXY_DATABASE_URL"])
        try:
            report = await check_at_rest(load, scene.sandbox, auditor.read)
        finally:
            await auditor.close()
        scene.check_probes(store)
    assert load.slowest_refusal < LONGEST_REFUSAL_SECONDS and load.slowest_answer < LONGEST_ANSWER_SECONDS
    slowest = f"the slowest answer {load.slowest_answer:.1f} s, refusal {load.slowest_refusal:.1f} s"
    return f"{dict(load.seen)}, {slowest}, {dict(report.by_state())}"


@pytest.mark.parametrize(
    "trouble, options",
    [
        (troubles.restarted, {"times": 2}),
        (troubles.crashed, {"times": 2}),
        (troubles.frozen, {"seconds": SILENCE_SECONDS}),
        (troubles.read_only, {}),
        (troubles.closed, {}),
        (troubles.without_a_table, {"must_show": False}),
        (troubles.locked, {"seconds": SILENCE_SECONDS}),
        (troubles.disconnected, {"seconds": 0.3, "times": 2, "must_show": False}),
        (troubles.cancelled, {"seconds": 0.3, "times": 2, "must_show": False}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_calls_withstand_faults_of_postgresql(
    scene: Scene,
    failing_postgres: Postgres,
    failing_databases: PostgresDatabases,
    trouble: troubles.PostgresTrouble,
    options: dict[str, float],
    capsys: pytest.CaptureFixture[str],
) -> None:
    url = scene.environ["PROXY_DATABASE_URL"] = failing_databases.migrated()
    with running_redis() as redis:
        scene.environ["PROXY_REDIS_URL"] = redis.url
        report = await withstand(scene, 2, DATABASE, partial(trouble, failing_postgres, url), **options)
    with capsys.disabled():
        print(f"\nPostgreSQL {trouble.__name__}: {report}", end=" ")


@pytest.mark.parametrize(
    "trouble, options",
    [
        (troubles.redis_restarted, {}),
        (troubles.redis_frozen, {"seconds": SILENCE_SECONDS}),
        (troubles.redis_read_only, {}),
        (troubles.redis_out_of_memory, {"seconds": 3}),
        (troubles.redis_flushed, {"seconds": 0.3, "times": 2, "must_show": False}),
        (troubles.redis_disconnected, {"seconds": 0.3, "times": 2, "must_show": False}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_calls_withstand_faults_of_redis(
    scene: Scene,
    failing_databases: PostgresDatabases,
    trouble: troubles.RedisTrouble,
    options: dict[str, float],
    capsys: pytest.CaptureFixture[str],
) -> None:
    scene.environ["PROXY_DATABASE_URL"] = failing_databases.migrated()
    with running_redis() as redis:
        scene.environ["PROXY_REDIS_URL"] = redis.url
        report = await withstand(scene, 2, COUNTERS, partial(trouble, redis), **options)
    with capsys.disabled():
        print(f"\n{trouble.__name__}: {report}", end=" ")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted_disk(tmp_path, mebibytes=32) as folder:
        yield folder


@pytest.mark.parametrize(
    "trouble, options",
    [(troubles.file_locked, {"seconds": SILENCE_SECONDS}), (troubles.disk_full, {})],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_calls_withstand_faults_of_sqlite(
    scene: Scene,
    small_disk: Path,
    trouble: troubles.FileTrouble,
    options: dict[str, float],
    capsys: pytest.CaptureFixture[str],
) -> None:
    url = scene.environ["PROXY_DATABASE_URL"] = SqliteDatabases(small_disk).migrated()
    report = await withstand(scene, 1, DATABASE, partial(trouble, Path(url.removeprefix("sqlite:///"))), **options)
    with capsys.disabled():
        print(f"\nSQLite {trouble.__name__}: {report}", end=" ")
