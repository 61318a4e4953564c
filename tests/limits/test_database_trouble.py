"""The database fails while a call is at fal: its answer is given, its job is found again, and it is booked once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
import yaml

from proxy.calls.idempotency import ABANDONED_SECONDS
from proxy.limits.quotas import MILLION
from proxy.stores.ledger import Account
from tests.limits.callers import ENDPOINT, QUICK, Answered, Caller, http
from tests.limits.forked_servers import ForkedServers, fork_servers
from tests.limits.store_load import sent
from tests.limits.troubles import without_a_table
from tests.support.audit import read_report
from tests.support.databases import PostgresDatabases
from tests.support.forking import Forker
from tests.support.postgres import Postgres, running_postgres
from tests.support.redis import Redis
from tests.support.sandbox import SandboxControl
from tests.support.secrets import SECRET
from tests.support.stack import UNLIMITED, sandbox_environ
from tests.support.waiting import wait_until_async

pytestmark = [pytest.mark.anyio, pytest.mark.tools]
HELD = "[[pace hold=IN_PROGRESS]]"
PLANS = {
    "plans": {
        "wide": {
            "endpoints": [ENDPOINT],
            **UNLIMITED,
            "quotas": [{"per": "tenant", "unit": "requests", "limit": 100_000, "window": "month"}],
        }
    },
    "tenants": [{"id": "acme", "plan": "wide"}],
}


@dataclass
class Deployment:
    environ: dict[str, str]
    sandbox: SandboxControl
    postgres: Postgres
    servers: ForkedServers


@pytest.fixture
def deployment(forker: Forker, fal: SandboxControl, tmp_path: Path) -> Iterator[Deployment]:
    (tmp_path / "plans.yaml").write_text(yaml.safe_dump(PLANS))
    with running_postgres(durable=True) as server, fork_servers(forker, tmp_path) as found:
        environ = {
            **sandbox_environ(fal.url),
            "PROXY_SESSION_SECRETS": SECRET,
            "PROXY_CONFIG": str(tmp_path / "plans.yaml"),
            "PROXY_DATABASE_URL": PostgresDatabases(server).migrated(),
            "PROXY_LOG_LEVEL": "warning",
        }
        yield Deployment(environ, fal, server, found)


async def repeat(session: aiohttp.ClientSession, url: str) -> Answered:
    """Submit alice's job, or get the one that she has submitted."""
    return await Caller(session, url, "acme", "alice").submit(f"alice {QUICK}", **{"idempotency-key": "one"})


async def _is_settled(deployment: Deployment) -> bool:
    return not any(entry.is_open for entry in (await read_report(deployment.environ["PROXY_DATABASE_URL"])).entries)


async def test_answers_are_given_while_the_database_is_frozen(deployment: Deployment, tmp_path: Path) -> None:
    """A server that stops in the meantime cuts the calls that still wait; the next server books what they used."""
    deployment.environ |= {"PROXY_STATE_DIR": str(tmp_path), "PROXY_DRAIN_SECONDS": "2"}
    async with http() as session:
        url, pid = await deployment.servers.start(deployment.environ, session)
        callers = [Caller(session, url, "acme", f"runner-{number}") for number in range(5)]
        keys = [{}, {}, {}, {"idempotency-key": "one"}, {"idempotency-key": "two"}]
        runs = [
            asyncio.create_task(caller.run(f"{caller.subject} {HELD}", **key))
            for caller, key in zip(callers, keys, strict=True)
        ]
        await wait_until_async(lambda: _are_at_fal(deployment.sandbox, 5), "the calls did not reach the sandbox")
        with deployment.postgres.paused():
            for job in deployment.sandbox.jobs():
                deployment.sandbox.move_job(job["id"], "finish")
            await wait_until_async(lambda: _are_answered(deployment.sandbox, 5), "fal did not answer")
            await deployment.servers.stop(pid)
            answers = await asyncio.gather(*runs)
            assert [answer.status for answer in answers] == [200] * 5, answers
        await deployment.servers.start(deployment.environ, session)
        await wait_until_async(lambda: _is_settled(deployment), "the runs are not booked")
    report = await read_report(deployment.environ["PROXY_DATABASE_URL"])
    report.check()
    assert report.total("requests") == Account(used=5 * MILLION, reserved=0)
    # Booked by what fal took, not by what was reserved.
    assert all(entry.used["compute_seconds"] < 60 * MILLION for entry in report.entries)


async def _are_at_fal(sandbox: SandboxControl, calls: int) -> bool:
    return len(await asyncio.to_thread(sandbox.jobs)) == calls


async def _are_answered(sandbox: SandboxControl, calls: int) -> bool:
    return sum(bool(one["answered"]) for one in await asyncio.to_thread(sandbox.requests)) >= calls


@pytest.mark.parametrize("ends", ["stop", "kill"])
async def test_a_job_whose_id_could_not_be_written_is_found_by_the_next_server(
    deployment: Deployment, tmp_path: Path, ends: str
) -> None:
    deployment.environ |= {"PROXY_STATE_DIR": str(tmp_path), "PROXY_DRAIN_SECONDS": "4"}
    # Long enough for the database to stop on a busy machine.
    deployment.sandbox.fault("delay", delay=4.0, on={"operation": "submit"})
    async with http() as session:
        url, pid = await deployment.servers.start(deployment.environ, session)
        submitting = asyncio.create_task(repeat(session, url))
        await wait_until_async(lambda: _has_arrived(deployment.sandbox), "the call did not reach the sandbox")
        with deployment.postgres.stopped():
            await wait_until_async(lambda: _is_spooled(tmp_path), "its id is not kept")
            if ends == "stop":
                await deployment.servers.stop(pid)
                assert (await submitting).error_type == "upstream_ambiguous"
            else:
                await deployment.servers.kill(pid)
                with pytest.raises(aiohttp.ClientError):
                    await submitting
        deployment.sandbox.clear_faults()
        url, _ = await deployment.servers.start(deployment.environ, session)
        (job,) = deployment.sandbox.jobs()
        began = asyncio.get_running_loop().time()
        answer = await repeat(session, url)
        assert answer.body["request_id"] == job["id"]
        assert asyncio.get_running_loop().time() - began < ABANDONED_SECONDS, "it waits for the call that is gone"
        assert (await Caller(session, url, "acme", "alice").finished(job["id"])).status == 200
        assert (await Caller(session, url, "acme", "mallory").status(job["id"])).status == 404
        await wait_until_async(lambda: _is_settled(deployment), "it is not booked")
    report = await read_report(deployment.environ["PROXY_DATABASE_URL"])
    assert report.total("requests") == Account(used=MILLION, reserved=0)
    assert not await _is_spooled(tmp_path)


@pytest.mark.parametrize("is_alive", [False, True], ids=["killed", "at work"])
async def test_a_repetition_waits_for_a_call_only_while_it_is_made(
    deployment: Deployment, redis: Redis, is_alive: bool
) -> None:
    """If the process dies before fal answers, the outcome is never known, and a repetition gets that answer soon."""
    deployment.environ["PROXY_REDIS_URL"] = redis.url
    deployment.sandbox.fault("delay", delay=20.0, on={"operation": "submit"}, times=1)
    async with http() as session:
        url, pid = await deployment.servers.start(deployment.environ, session)
        submitting = asyncio.create_task(repeat(session, url))
        await wait_until_async(lambda: _has_arrived(deployment.sandbox), "the call did not reach the sandbox")
        other, _ = await deployment.servers.start(deployment.environ, session)
        if is_alive:
            again = await repeat(session, other)
            assert again.body["request_id"] == (await submitting).body["request_id"]
        else:
            await deployment.servers.kill(pid)
            with pytest.raises(aiohttp.ClientError):
                await submitting
            began = asyncio.get_running_loop().time()
            for _ in range(2):
                assert (await repeat(session, other)).error_type == "upstream_ambiguous"
            assert asyncio.get_running_loop().time() - began < 40
    assert sent(deployment.sandbox) == {"alice": 1}


@contextmanager
def trigger(postgres: Postgres, url: str, when: str) -> Iterator[None]:
    """The database refuses to do something, as one that is in trouble does."""
    database = url.rpartition("/")[2]
    body = "BEGIN RAISE EXCEPTION 'not now'; END"
    postgres.ask(database, f"CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$")
    postgres.ask(database, f"CREATE TRIGGER refuse BEFORE {when} FOR EACH ROW EXECUTE FUNCTION refuse()")
    try:
        yield
    finally:
        postgres.ask(database, "DROP FUNCTION refuse CASCADE")


async def test_a_key_that_could_not_be_freed_is_free_at_other_servers_when_the_database_is_back(
    deployment: Deployment,
) -> None:
    database = deployment.environ["PROXY_DATABASE_URL"]
    async with http() as session:
        (url, _), (other, _) = [await deployment.servers.start(deployment.environ, session) for _ in range(2)]
        with (
            trigger(deployment.postgres, database, "DELETE ON idempotency"),
            without_a_table(deployment.postgres, database),
        ):
            assert (await repeat(session, url)).error_type == "store_unavailable"
        began = asyncio.get_running_loop().time()
        assert (await repeat(session, other)).status == 200
        assert asyncio.get_running_loop().time() - began < ABANDONED_SECONDS, "it waits for the call that is gone"
    assert sent(deployment.sandbox) == {"alice": 1}


async def test_an_answer_that_could_not_be_kept_is_kept_when_the_database_is_back(deployment: Deployment) -> None:
    async with http() as session:
        (url, _), (other, _) = [await deployment.servers.start(deployment.environ, session) for _ in range(2)]
        alice, again = Caller(session, url, "acme", "alice"), Caller(session, other, "acme", "alice")
        with trigger(deployment.postgres, deployment.environ["PROXY_DATABASE_URL"], "UPDATE ON idempotency"):
            first = await alice.run(f"alice {QUICK}", **{"idempotency-key": "one"})
            assert first.status == 200
        repeated = await again.run(f"alice {QUICK}", **{"idempotency-key": "one"})
        assert (repeated.status, repeated.body) == (200, first.body)
        assert repeated.headers["idempotency-replayed"] == "true"
    assert sent(deployment.sandbox) == {"alice": 1}


async def _has_arrived(sandbox: SandboxControl) -> bool:
    return any(one["method"] == "POST" for one in await asyncio.to_thread(sandbox.requests))


async def _is_spooled(folder: Path) -> bool:
    return any(await asyncio.to_thread(lambda: list((folder / "spool").glob("*.json"))))
