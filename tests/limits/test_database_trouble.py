"""The database fails in every way under load: each job that fal accepted is found again, and is booked once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
import yaml

from proxy.limits.quotas import MILLION
from proxy.sandbox.app import create_sandbox
from proxy.sandbox.record import RECORDED_REQUESTS
from proxy.stores.ledger import Account
from tests.limits.callers import ENDPOINT, QUICK, Answered, Caller, http
from tests.limits.mortals import Mortals, mortals
from tests.support.books import read_books
from tests.support.databases import PostgresDatabases
from tests.support.patience import until
from tests.support.postgres import Postgres, running_postgres
from tests.support.redis import Redis
from tests.support.sandbox import SandboxControl
from tests.support.servers import running
from tests.support.stack import SECRET, UNLIMITED, sandbox_environ

pytestmark = [pytest.mark.anyio, pytest.mark.tools, pytest.mark.timeout(300)]
WORKERS = 16
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
class Scene:
    environ: dict[str, str]
    sandbox: SandboxControl
    postgres: Postgres
    mortals: Mortals


@pytest.fixture
def fal() -> Iterator[SandboxControl]:
    with running(create_sandbox(), timeout_keep_alive=300) as url:
        control = SandboxControl(url)
        yield control
        control.close()


@pytest.fixture
def scene(fal: SandboxControl, tmp_path: Path) -> Iterator[Scene]:
    (tmp_path / "plans.yaml").write_text(yaml.safe_dump(PLANS))
    with running_postgres(durable=True) as server, mortals(tmp_path) as found:
        environ = {
            **sandbox_environ(fal.url),
            "PROXY_SESSION_SECRETS": SECRET,
            "PROXY_CONFIG": str(tmp_path / "plans.yaml"),
            "PROXY_DATABASE_URL": PostgresDatabases(server).migrated(),
            "PROXY_LOG_LEVEL": "warning",
        }
        yield Scene(environ, fal, server, found)


@dataclass
class Load:
    """Callers who submit one job after another, each job by a subject of its own."""

    session: aiohttp.ClientSession
    url: str
    ids: dict[str, str | None] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)
    is_over: bool = False

    async def submit_until_over(self, worker: int) -> None:
        number = 0
        while not self.is_over:
            await self._submit(f"{worker}-{number}")
            number += 1

    async def _submit(self, subject: str) -> None:
        answer = await self.repeat(subject)
        self.seen[answer.error_type or "ok"] += 1
        if answer.status == 503:
            # It was refused, and nothing was sent.
            await asyncio.sleep(0.05)
            return
        assert answer.status == 200 or answer.error_type == "upstream_ambiguous", answer
        self.ids[subject] = answer.body.get("request_id")

    async def repeat(self, subject: str) -> Answered:
        """Submit this subject's job, or get the one that it has submitted."""
        caller = Caller(self.session, self.url, "acme", subject)
        return await caller.submit(f"{subject} {QUICK}", **{"idempotency-key": "one"})


@asynccontextmanager
async def loading(scene: Scene, url: str, session: aiohttp.ClientSession) -> AsyncIterator[Load]:
    load = Load(session, url)
    workers = [asyncio.create_task(load.submit_until_over(worker)) for worker in range(WORKERS)]
    try:
        yield load
    finally:
        load.is_over = True
        await asyncio.gather(*workers)


def sent(sandbox: SandboxControl) -> Counter[str]:
    """How often each subject's job was sent to fal."""
    record = sandbox.requests()
    assert len(record) < RECORDED_REQUESTS, "the record has forgotten the first of them"
    return Counter(one["json"]["prompt"].split()[0] for one in record if one["method"] == "POST")


def _ask(postgres: Postgres, url: str, *queries: str) -> None:
    """Do something to the database of a proxy, from another one."""
    name = url.rpartition("/")[2]
    for query in queries:
        postgres.ask("postgres", query.format(name=name, others=f"datname = '{name}' AND pid <> pg_backend_pid()"))


_TERMINATE = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}"


@contextmanager
def restarted(postgres: Postgres, _url: str) -> Iterator[None]:
    with postgres.stopped():
        yield


@contextmanager
def crashed(postgres: Postgres, _url: str) -> Iterator[None]:
    postgres.crash()
    yield
    postgres.start()


@contextmanager
def frozen(postgres: Postgres, _url: str) -> Iterator[None]:
    with postgres.paused():
        yield


@contextmanager
def disconnected(postgres: Postgres, url: str) -> Iterator[None]:
    _ask(postgres, url, _TERMINATE)
    yield
    _ask(postgres, url, _TERMINATE)


@contextmanager
def cancelled(postgres: Postgres, url: str) -> Iterator[None]:
    cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE {others}"
    _ask(postgres, url, *[cancel] * 10)
    yield
    _ask(postgres, url, *[cancel] * 10)


@contextmanager
def read_only(postgres: Postgres, url: str) -> Iterator[None]:
    _ask(postgres, url, 'ALTER DATABASE "{name}" SET default_transaction_read_only = on', _TERMINATE)
    yield
    _ask(postgres, url, 'ALTER DATABASE "{name}" RESET default_transaction_read_only')


@contextmanager
def closed(postgres: Postgres, url: str) -> Iterator[None]:
    _ask(postgres, url, 'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false', _TERMINATE)
    yield
    _ask(postgres, url, 'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')


@contextmanager
def without_a_table(postgres: Postgres, url: str) -> Iterator[None]:
    database = url.rpartition("/")[2]
    postgres.ask(database, "ALTER TABLE quota_usage RENAME TO elsewhere")
    yield
    postgres.ask(database, "ALTER TABLE elsewhere RENAME TO quota_usage")


@contextmanager
def locked(postgres: Postgres, url: str) -> Iterator[None]:
    """Another client holds a lock on the jobs."""
    with ThreadPoolExecutor(1) as pool:
        holding = pool.submit(
            postgres.ask, url.rpartition("/")[2], "BEGIN; LOCK TABLE jobs IN EXCLUSIVE MODE; SELECT pg_sleep(3)"
        )
        yield
        holding.result()


Trouble = Callable[[Postgres, str], AbstractContextManager[None]]
TROUBLES: list[tuple[Trouble, int]] = [
    (restarted, 5),
    *((kind, 2) for kind in (crashed, frozen, disconnected, cancelled, read_only, closed, without_a_table, locked)),
]


@pytest.mark.parametrize("trouble, times", TROUBLES, ids=[kind.__name__ for kind, _ in TROUBLES])
async def test_no_job_is_lost(scene: Scene, trouble: Trouble, times: int, capsys: pytest.CaptureFixture[str]) -> None:
    # Most calls are between their reservation and fal's answer when the trouble begins.
    scene.sandbox.fault("delay", delay=0.2, on={"operation": "submit"})
    database = scene.environ["PROXY_DATABASE_URL"]
    async with http() as session:
        url, _ = await scene.mortals.born(scene.environ, session)
        async with loading(scene, url, session) as load:
            for _ in range(times):
                accepted = len(load.ids)
                await until(lambda n=accepted: _has_more(load, n), "no job is accepted any more")  # type: ignore[misc]
                with trouble(scene.postgres, database):
                    await asyncio.sleep(0.5)
        subjects = sent(scene.sandbox)
        ids = {}
        for subject in subjects:
            # Who has not been given the id gets it now.
            ids[subject] = (await load.repeat(subject)).body["request_id"]
            assert load.ids.get(subject) in (ids[subject], None)
            assert (await Caller(session, url, "acme", subject).finished(ids[subject])).status == 200
        await until(lambda: _is_settled(scene), "something is still reserved")
        assert await Caller(session, url, "acme", "last").in_flight() == 0
    assert set(ids.values()) == {job["id"] for job in scene.sandbox.jobs()}
    assert sent(scene.sandbox) == subjects and set(subjects.values()) == {1}, "a repetition was another call"
    books = await read_books(database)
    books.check()
    assert {entry.subject: entry.request_id for entry in books.entries if entry.request_id} == ids
    assert books.total("requests") == Account(used=len(ids) * MILLION, reserved=0)
    with capsys.disabled():
        print(f"\n{times} times {trouble.__name__}: {len(ids)} jobs at fal, answers {dict(load.seen)}", end=" ")


async def _has_more(load: Load, than: int) -> bool:
    return len(load.ids) > than + 20


async def _is_settled(scene: Scene) -> bool:
    return not any(entry.is_open for entry in (await read_books(scene.environ["PROXY_DATABASE_URL"])).entries)


async def test_answers_are_given_while_the_database_is_frozen(scene: Scene, tmp_path: Path) -> None:
    """Also by a server that is told to stop, and cuts what still waits: what they used is booked by the next one."""
    scene.environ |= {"PROXY_STATE_DIR": str(tmp_path), "PROXY_DRAIN_SECONDS": "2"}
    async with http() as session:
        url, pid = await scene.mortals.born(scene.environ, session)
        callers = [Caller(session, url, "acme", f"runner-{number}") for number in range(5)]
        keys = [{}, {}, {}, {"idempotency-key": "one"}, {"idempotency-key": "two"}]
        runs = [
            asyncio.create_task(caller.run(f"{caller.subject} {HELD}", **key))
            for caller, key in zip(callers, keys, strict=True)
        ]
        await until(lambda: _are_at_fal(scene.sandbox, 5), "the calls did not reach the sandbox")
        with scene.postgres.paused():
            for job in scene.sandbox.jobs():
                scene.sandbox.move_job(job["id"], "finish")
            await until(lambda: _are_answered(scene.sandbox, 5), "fal did not answer")
            await scene.mortals.stop(pid)
            answers = await asyncio.gather(*runs)
            assert [answer.status for answer in answers] == [200] * 5, answers
        await scene.mortals.born(scene.environ, session)
        await until(lambda: _is_settled(scene), "the runs are not booked")
    books = await read_books(scene.environ["PROXY_DATABASE_URL"])
    books.check()
    assert books.total("requests") == Account(used=5 * MILLION, reserved=0)
    # By what fal took, and not as reserved.
    assert all(entry.used["compute_seconds"] < 60 * MILLION for entry in books.entries)


async def _are_at_fal(sandbox: SandboxControl, calls: int) -> bool:
    return len(await asyncio.to_thread(sandbox.jobs)) == calls


async def _are_answered(sandbox: SandboxControl, calls: int) -> bool:
    return sum(bool(one["answered"]) for one in await asyncio.to_thread(sandbox.requests)) >= calls


@pytest.mark.parametrize("ends", ["stop", "kill"])
async def test_a_job_whose_id_could_not_be_written_is_found_by_the_next_server(
    scene: Scene, tmp_path: Path, ends: str
) -> None:
    scene.environ |= {"PROXY_STATE_DIR": str(tmp_path), "PROXY_DRAIN_SECONDS": "4"}
    # Long enough for the database to stop on a busy machine.
    scene.sandbox.fault("delay", delay=4.0, on={"operation": "submit"})
    async with http() as session:
        url, pid = await scene.mortals.born(scene.environ, session)
        submitting = asyncio.create_task(Load(session, url).repeat("alice"))
        await until(lambda: _has_arrived(scene.sandbox), "the call did not reach the sandbox")
        with scene.postgres.stopped():
            await until(lambda: _is_spooled(tmp_path), "its id is not kept")
            if ends == "stop":
                await scene.mortals.stop(pid)
                assert (await submitting).error_type == "upstream_ambiguous"
            else:
                await scene.mortals.kill(pid)
                with pytest.raises(aiohttp.ClientError):
                    await submitting
        scene.sandbox.clear_faults()
        url, _ = await scene.mortals.born(scene.environ, session)
        (job,) = scene.sandbox.jobs()
        began = asyncio.get_running_loop().time()
        answer = await Load(session, url).repeat("alice")
        assert answer.body["request_id"] == job["id"]
        assert asyncio.get_running_loop().time() - began < 10
        assert (await Caller(session, url, "acme", "alice").finished(job["id"])).status == 200
        assert (await Caller(session, url, "acme", "mallory").status(job["id"])).status == 404
        await until(lambda: _is_settled(scene), "it is not booked")
    books = await read_books(scene.environ["PROXY_DATABASE_URL"])
    assert books.total("requests") == Account(used=MILLION, reserved=0)
    assert not await _is_spooled(tmp_path)


@pytest.mark.parametrize("is_alive", [False, True], ids=["killed", "at work"])
async def test_a_repetition_waits_for_a_call_only_while_it_is_made(scene: Scene, redis: Redis, is_alive: bool) -> None:
    """Of a call whose process died before fal answered nothing will be known, and that is said soon."""
    scene.environ["PROXY_REDIS_URL"] = redis.url
    scene.sandbox.fault("delay", delay=20.0, on={"operation": "submit"}, times=1)
    async with http() as session:
        url, pid = await scene.mortals.born(scene.environ, session)
        submitting = asyncio.create_task(Load(session, url).repeat("alice"))
        await until(lambda: _has_arrived(scene.sandbox), "the call did not reach the sandbox")
        other, _ = await scene.mortals.born(scene.environ, session)
        if is_alive:
            again = await Load(session, other).repeat("alice")
            assert again.body["request_id"] == (await submitting).body["request_id"]
        else:
            await scene.mortals.kill(pid)
            with pytest.raises(aiohttp.ClientError):
                await submitting
            began = asyncio.get_running_loop().time()
            for _ in range(2):
                assert (await Load(session, other).repeat("alice")).error_type == "upstream_ambiguous"
            assert asyncio.get_running_loop().time() - began < 40
    assert sent(scene.sandbox) == {"alice": 1}


async def _has_arrived(sandbox: SandboxControl) -> bool:
    return any(one["method"] == "POST" for one in await asyncio.to_thread(sandbox.requests))


async def _is_spooled(folder: Path) -> bool:
    return any(await asyncio.to_thread(lambda: list((folder / "spool").glob("*.json"))))
