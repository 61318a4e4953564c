"""Processes and a Redis that die with calls in flight: which slots are freed, and which stay taken."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
import yaml

from proxy.limits.dead_holders import HOLDER_SECONDS
from proxy.limits.lease_keeper import BEAT_SECONDS
from proxy.sandbox.app import create_sandbox
from tests.limits.callers import ENDPOINT, Caller, http
from tests.limits.forked_servers import ForkedServers, fork_servers
from tests.support.databases import SqliteDatabases
from tests.support.forking import Forker
from tests.support.redis import Redis
from tests.support.secrets import SECRET
from tests.support.servers import running
from tests.support.stack import UNLIMITED, sandbox_environ
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.anyio
QUEUED, RUNNING = "[[pace hold=IN_QUEUE]] ?", "[[pace hold=IN_PROGRESS]] ?"
MOST = 3
#: A margin for a busy machine.
BUSY_SECONDS = 30
PLANS = {
    "plans": {"narrow": {"endpoints": [ENDPOINT], **UNLIMITED, "concurrency": {"subject": MOST, "tenant": None}}},
    "tenants": [{"id": "acme", "plan": "narrow"}],
}


@dataclass
class Deployment:
    servers: ForkedServers
    environ: dict[str, str]
    http: aiohttp.ClientSession

    async def start(self) -> tuple[Caller, int]:
        """The same user at a new process, and the process."""
        url, pid = await self.servers.start(self.environ, self.http)
        return Caller(self.http, url, "acme", "alice"), pid


@pytest.fixture
def environ(sqlite_databases: SqliteDatabases, tmp_path: Path) -> Iterator[dict[str, str]]:
    (tmp_path / "plans.yaml").write_text(yaml.safe_dump(PLANS))
    with running(create_sandbox()) as url:
        yield {
            **sandbox_environ(url),
            "PROXY_SESSION_SECRETS": SECRET,
            "PROXY_CONFIG": str(tmp_path / "plans.yaml"),
            "PROXY_DATABASE_URL": sqlite_databases.migrated(),
            "PROXY_LOG_LEVEL": "warning",
        }


@pytest.fixture
async def deployment(forker: Forker, environ: dict[str, str], tmp_path: Path) -> AsyncIterator[Deployment]:
    with fork_servers(forker, tmp_path) as found:
        async with http() as session:
            yield Deployment(found, environ, session)


async def in_flight(caller: Caller) -> int:
    """How many slots of its own the user sees taken."""
    facts = await caller._ask("GET", "/v1/session")
    used: int = facts.body["in_flight"]["subject"]["used"]
    return used


@asynccontextmanager
async def all_slots_taken(caller: Caller) -> AsyncIterator[str]:
    """A queued job, whose id is given, a run and a stream; the last two end with their process."""
    job = await caller.submit(QUEUED)
    calls = [asyncio.create_task(work(RUNNING)) for work in (caller.run, caller.stream)]

    async def are_taken() -> bool:
        return await in_flight(caller) == MOST

    await wait_until_async(are_taken, "the calls did not begin")
    assert (await caller.run("?")).error_type == "too_many_jobs"
    yield job.body["request_id"]
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)


async def check_slots_of(job: str, caller: Caller) -> None:
    """Only the job is in flight, and its end frees the last lease."""
    assert (await caller.run("?")).status == 200
    assert (await caller.cancel(job)).status == 202
    await caller.finished(job)
    assert await in_flight(caller) == 0


async def test_a_process_that_starts_again_has_the_leases_of_its_jobs_alone(deployment: Deployment) -> None:
    caller, pid = await deployment.start()
    async with all_slots_taken(caller) as job:
        await deployment.servers.kill(pid)
    caller, _ = await deployment.start()
    assert await in_flight(caller) == 1
    await check_slots_of(job, caller)


@pytest.mark.tools
@pytest.mark.parametrize("is_restarted", [False, True])
async def test_fifteen_seconds_after_a_process_died_its_leases_are_free(
    is_restarted: bool, deployment: Deployment, redis: Redis
) -> None:
    """Another process frees them, or the one that is started in its place."""
    deployment.environ["PROXY_REDIS_URL"] = redis.url
    caller, pid = await deployment.start()
    other, _ = (caller, pid) if is_restarted else await deployment.start()
    async with all_slots_taken(caller) as job:
        assert await in_flight(other) == MOST
        await deployment.servers.kill(pid)
        died_at = time.monotonic()
    if is_restarted:
        other, _ = await deployment.start()
    # Until a dead process is noticed its slots stay taken. On a slow machine it may be noticed before this check.
    assert await in_flight(other) == MOST or time.monotonic() - died_at > HOLDER_SECONDS - BEAT_SECONDS

    async def are_free() -> bool:
        return await in_flight(other) == 1

    await wait_until_async(are_free, "the slots did not come back")
    assert time.monotonic() - died_at < 15 + BUSY_SECONDS
    await check_slots_of(job, other)


@pytest.mark.tools
async def test_a_process_that_was_frozen_has_the_leases_of_its_calls_again(
    deployment: Deployment, redis: Redis
) -> None:
    deployment.environ["PROXY_REDIS_URL"] = redis.url
    caller, pid = await deployment.start()
    other, _ = await deployment.start()
    async with all_slots_taken(caller) as job:
        with deployment.servers.paused(pid):

            async def are_free() -> bool:
                return await in_flight(other) == 1

            await wait_until_async(are_free, "the slots of a process that does not answer stayed taken")
            assert (await other.run("?")).status == 200

        async def are_taken() -> bool:
            return await in_flight(other) == MOST

        await wait_until_async(are_taken, "the calls that went on did not get their slots again")
        assert (await other.run("?")).error_type == "too_many_jobs"
    # Their callers hung up: the process that makes them returns the slots.
    await wait_until_async(are_free, "the slots were not returned")
    await check_slots_of(job, other)


@pytest.mark.tools
async def test_a_redis_that_lost_its_data_grants_no_lease_beyond_the_limit(
    deployment: Deployment, redis: Redis
) -> None:
    deployment.environ["PROXY_REDIS_URL"] = redis.url
    caller, _ = await deployment.start()
    other, _ = await deployment.start()
    async with all_slots_taken(caller) as job:
        for number in range(4):
            if number % 2:
                redis.forget()
            else:
                with redis.stopped():
                    assert (await other.run("?")).error_type == "store_unavailable"
            for one in (other, caller):
                refusals = await asyncio.gather(*(one.run("?") for _ in range(5)), one.submit(QUEUED))
                assert {answer.error_type for answer in refusals} == {"too_many_jobs"}
            assert await in_flight(caller) == MOST

    async def are_free() -> bool:
        return await in_flight(other) == 1

    await wait_until_async(are_free, "a run and a stream that their caller left kept their slots")
    await check_slots_of(job, other)
