"""The database is locked, or broken, in the middle of traffic: no free pass, and all is well again by itself."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from proxy.stores.batching import LedgerTimeouts
from tests.support.limited import (
    COUNTING,
    NEXT,
    Booked,
    Client,
    account,
    asking,
    assert_refused_with,
    limited_proxy,
    per,
    plan,
    posts,
)
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack
from tests.support.waiting import wait_until

QUEUED = "[[pace hold=IN_QUEUE]] ?"
#: How long fal takes while a test locks the database: long enough for a busy machine.
LOCKING_SECONDS = 3.0
PLANS = {"acme": plan(quotas=[per("tenant", "requests", 100)])}


@pytest.fixture
def own(sandbox: SandboxControl, tmp_path: Path) -> Iterator[Stack]:
    with limited_proxy(sandbox, tmp_path, PLANS, ledger_timeouts=LedgerTimeouts(accept=3.0, settle=1.0)) as stack:
        yield stack


@pytest.fixture
def alice(own: Stack) -> Iterator[Client]:
    with Client(own, own.token(tenant="acme")) as client:
        yield client


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Another connection holds the database exclusively, longer than the proxy waits for it."""
    database = sqlite3.connect(folder / "proxy.db", isolation_level=None, timeout=30)
    database.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        database.execute("ROLLBACK")
        database.close()


def wait_until_visible(caller: Client, job: str, folder: Path) -> None:
    """Wait until a caller sees a job that fal has accepted."""

    def describe() -> str:
        with contextlib.closing(sqlite3.connect(folder / "proxy.db", timeout=30)) as database:
            rows = database.execute("SELECT state, request_id FROM jobs").fetchall()
        return f"the job was lost: {rows}, {sorted(folder.glob('proxy.db-spool/*'))}, {caller.status(job).text}"

    wait_until(lambda: caller.status(job).status_code == 202, describe)


def test_a_locked_database_refuses_calls_and_keeps_nothing_of_them(
    own: Stack, alice: Client, sandbox: SandboxControl, tmp_path: Path
) -> None:
    job = alice.submitted(QUEUED)
    sandbox.forget()
    calls = [
        lambda: alice.run(),
        lambda: alice.submit(),
        lambda: alice.call("POST", f"run/{NEXT}/stream", asking("?")),
        lambda: alice.call("POST", f"run/{NEXT}", asking("?"), **{"idempotency-key": "one"}),
    ]
    with locked(tmp_path):
        # Reads go on, and what is in memory stays known.
        assert alice.status(job).json()["status"] == "IN_QUEUE" and alice.facts()["subject"] == "alice"
        with ThreadPoolExecutor(len(calls)) as pool:
            for answer in [pool.submit(call) for call in calls]:
                assert assert_refused_with(answer.result(), 503, "store_unavailable")["retry_after"] == 1
        assert not posts(sandbox)
        assert httpx.get(f"{own.url}/livez", trust_env=False, verify=False, timeout=60).status_code == 200
    # The refused calls took nothing, and the proxy needs no restart. What is written down after its caller was refused
    # is taken back at once.
    wait_until(lambda: account(tmp_path, "acme", "requests") == Booked(0, 1), "a refused call took some")
    assert alice.slots() == (1, 1)
    answers = [call() for call in calls]
    assert [answer.status_code for answer in answers] == [200] * 4
    for waiting in (job, answers[1].json()["request_id"]):
        sandbox.move_job(waiting, "finish")
        assert alice.status(waiting).is_success
    wait_until(lambda: account(tmp_path, "acme", "requests") == Booked(5, 0), "not all is booked")
    assert alice.slots() == (0, 0)


def test_a_call_whose_booking_meets_a_locked_database_is_booked_later(
    own: Stack, alice: Client, sandbox: SandboxControl, tmp_path: Path
) -> None:
    """The answer is the caller's all the same, and is booked as soon as that can be."""
    with ThreadPoolExecutor(1) as pool:
        known = len(sandbox.jobs())
        running = pool.submit(alice.run, "[[pace hold=IN_PROGRESS]] ?", COUNTING)
        wait_until(lambda: len(sandbox.jobs()) > known, "the call did not reach the sandbox")
        with locked(tmp_path):
            sandbox.move_job(sandbox.jobs()[-1]["id"], "finish")
            assert running.result().status_code == 200
            assert account(tmp_path, "acme", "requests") == Booked(0, 1)
            assert alice.slots() == (0, 0)
    wait_until(lambda: account(tmp_path, "acme", "requests") == Booked(1, 0), "it is not booked")
    assert alice.run().status_code == 200


@pytest.mark.parametrize("key", [None, "one"], ids=["without a key", "with an Idempotency-Key"])
def test_a_job_that_fal_accepted_while_the_database_was_locked_is_written_later(
    own: Stack, alice: Client, sandbox: SandboxControl, tmp_path: Path, key: str | None
) -> None:
    """A job is visible only when its owner is written down. Then its owner sees it, and a repetition gets it."""

    def submit() -> httpx.Response:
        return alice.call("POST", f"queue/{NEXT}", asking(QUEUED), **({"idempotency-key": key} if key else {}))

    sandbox.fault("delay", delay=LOCKING_SECONDS, on={"operation": "submit"})
    with ThreadPoolExecutor(1) as pool, Client(own, own.token("mallory", tenant="acme")) as mallory:
        submitting = pool.submit(submit)
        wait_until(lambda: posts(sandbox), "the call did not reach the sandbox")
        with locked(tmp_path):
            body = assert_refused_with(submitting.result(), 500, "upstream_ambiguous")
            assert "Idempotency-Key" in body["message"]
            job = sandbox.jobs()[-1]["id"]
            assert [one.status(job).status_code for one in (alice, mallory)] == [404, 404]
        sandbox.clear_faults()
        if key:
            again = submit()
            assert (again.status_code, again.json()["request_id"]) == (200, job)
        wait_until_visible(alice, job, tmp_path)
        assert mallory.status(job).status_code == 404
    assert len(posts(sandbox)) == 1
    assert account(tmp_path, "acme", "requests") == Booked(0, 1) and alice.slots() == (1, 1)
    sandbox.move_job(job, "finish")
    wait_until(lambda: alice.status(job).json()["status"] == "COMPLETED", "the job does not end")
    wait_until(lambda: account(tmp_path, "acme", "requests") == Booked(1, 0), "it is not booked")
    assert alice.slots() == (0, 0)


def test_unlocked_while_the_caller_waits_for_its_id(sandbox: SandboxControl, tmp_path: Path) -> None:
    sandbox.fault("delay", delay=LOCKING_SECONDS, on={"operation": "submit"})
    with (
        limited_proxy(sandbox, tmp_path, PLANS) as own,
        Client(own, own.token(tenant="acme")) as alice,
        ThreadPoolExecutor(1) as pool,
    ):
        submitting = pool.submit(alice.submit, QUEUED)
        wait_until(lambda: posts(sandbox), "the call did not reach the sandbox")
        with locked(tmp_path):
            wait_until(lambda: sandbox.jobs() and posts(sandbox)[-1]["ended"], "fal did not answer")
            wait_until(lambda: deferred_entries(own) == 1, "its id is not waiting to be written", 60)
            assert not submitting.done()
        assert submitting.result().status_code == 200
        assert alice.status(submitting.result().json()["request_id"]).status_code == 202


def test_stopped_while_the_database_is_locked(sandbox: SandboxControl, tmp_path: Path) -> None:
    """The next process reads what this one kept in a file beside the database; only its owner sees the job."""
    sandbox.fault("delay", delay=LOCKING_SECONDS, on={"operation": "submit"})
    spool = tmp_path / "proxy.db-spool"
    with contextlib.ExitStack() as unlocking, ThreadPoolExecutor(1) as pool:
        with limited_proxy(sandbox, tmp_path, PLANS, ledger_timeouts=LedgerTimeouts(accept=3.0)) as own:
            token, mallorys = own.token(tenant="acme"), own.token("mallory", tenant="acme")
            with Client(own, token) as alice:
                submitting = pool.submit(alice.submit, QUEUED)
                wait_until(lambda: posts(sandbox), "the call did not reach the sandbox")
                unlocking.enter_context(locked(tmp_path))
                assert_refused_with(submitting.result(), 500, "upstream_ambiguous")
        (kept,) = spool.glob("*.json")
        assert (spool.stat().st_mode & 0o777, kept.stat().st_mode & 0o777) == (0o700, 0o600)
        job = json.loads(kept.read_bytes())["request_id"]
    assert job == sandbox.jobs()[-1]["id"]
    with (
        limited_proxy(sandbox, tmp_path, PLANS, clock=own.clock) as after,
        Client(after, token) as alice,
        Client(after, mallorys) as mallory,
    ):
        wait_until_visible(alice, job, tmp_path)
        assert mallory.status(job).status_code == 404
        assert account(tmp_path, "acme", "requests") == Booked(0, 1)
        wait_until(lambda: not list(spool.iterdir()), "the file stays")


def deferred_entries(stack: Stack) -> float:
    """How many ledger entries wait for the database."""
    text = httpx.get(f"{stack.url}/metrics", trust_env=False, verify=False, timeout=60).text
    (line,) = (line for line in text.splitlines() if line.startswith("fal_proxy_ledger_deferred "))
    return float(line.split()[1])


def test_calls_are_refused_while_tables_are_missing_and_served_again_after(
    sandbox: SandboxControl, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    with limited_proxy(sandbox, folder, PLANS) as own, Client(own, own.token(tenant="acme")) as alice:
        assert alice.run().status_code == 200
        ready = f"{own.url}/readyz"
        # As by a restore that goes on under a running proxy.
        with contextlib.closing(sqlite3.connect(folder / "proxy.db")) as database:
            for table in ("jobs", "quota_usage"):
                database.execute(f"ALTER TABLE {table} RENAME TO {table}_elsewhere")
            database.commit()
        sandbox.forget()
        wanted = {"endpoint": NEXT, "input": asking("?")}
        estimated = alice.http.post("/v1/estimate", json=wanted)
        for answer in (alice.run(), alice.submit(), alice.http.get("/v1/usage"), estimated):
            assert_refused_with(answer, 503, "store_unavailable")
        assert not posts(sandbox)
        with contextlib.closing(sqlite3.connect(folder / "proxy.db")) as database:
            for table in ("jobs", "quota_usage"):
                database.execute(f"ALTER TABLE {table}_elsewhere RENAME TO {table}")
            database.commit()
        assert (
            alice.run().status_code == 200
            and httpx.get(ready, trust_env=False, verify=False, timeout=60).status_code == 200
        )
        wait_until(lambda: account(folder, "acme", "requests") == Booked(2, 0), "not all is booked")


def test_an_idempotency_key_that_could_not_be_freed_is_free_for_the_next_try(
    own: Stack, alice: Client, sandbox: SandboxControl, tmp_path: Path
) -> None:
    """What makes a call fail keeps its Idempotency-Key in the database: the next try is not to wait for the first."""

    def run() -> httpx.Response:
        return alice.call("POST", f"run/{NEXT}", asking("?"), **{"idempotency-key": "one"})

    with contextlib.closing(sqlite3.connect(tmp_path / "proxy.db", timeout=30)) as database:
        database.execute("ALTER TABLE quota_usage RENAME TO elsewhere")
        database.execute("CREATE TRIGGER keep BEFORE DELETE ON idempotency BEGIN SELECT RAISE(ABORT, 'kept'); END")
        assert_refused_with(run(), 503, "store_unavailable")
        assert database.execute("SELECT count(*) FROM idempotency").fetchone() == (1,)
        database.execute("ALTER TABLE elsewhere RENAME TO quota_usage")
        database.execute("DROP TRIGGER keep")
    assert run().status_code == 200
    assert len(posts(sandbox)) == 1
    wait_until(lambda: account(tmp_path, "acme", "requests") == Booked(1, 0), "it is not booked")


def test_revocations_that_cannot_be_read(own: Stack, alice: Client, sandbox: SandboxControl, tmp_path: Path) -> None:
    """A proxy whose plans and revocations are more than a few seconds old refuses every call."""
    with contextlib.closing(sqlite3.connect(tmp_path / "proxy.db", timeout=30)) as database:
        database.execute("ALTER TABLE directory_version RENAME TO elsewhere")
        own.clock.advance(5)
        assert_refused_with(alice.run(), 503, "store_unavailable")
        database.execute("ALTER TABLE elsewhere RENAME TO directory_version")
    assert alice.run().status_code == 200
    assert len(posts(sandbox)) == 1
