"""The database is locked, or broken, in the middle of traffic: no free pass, and all is well again by itself."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.support.limited import (
    COUNTING,
    NEXT,
    Booked,
    Person,
    account,
    asking,
    eventually,
    limited_proxy,
    per,
    plan,
    posts,
    refusal,
)
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack

pytestmark = pytest.mark.slow

QUEUED = "[[pace hold=IN_QUEUE]] ?"
PLANS = {"acme": plan(quotas=[per("tenant", "requests", 100)])}


@pytest.fixture
def own(sandbox: SandboxControl, tmp_path: Path) -> Iterator[Stack]:
    with limited_proxy(sandbox, tmp_path, PLANS) as stack:
        yield stack


@pytest.fixture
def alice(own: Stack) -> Iterator[Person]:
    with Person(own, own.token(tenant="acme")) as person:
        yield person


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Somebody else holds the database for themselves, longer than the proxy waits for it."""
    database = sqlite3.connect(folder / "proxy.db", isolation_level=None, timeout=30)
    database.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        database.execute("ROLLBACK")
        database.close()


def test_a_database_that_is_locked(own: Stack, alice: Person, sandbox: SandboxControl, tmp_path: Path) -> None:
    job = alice.submitted(QUEUED)
    sandbox.forget()
    calls = [
        lambda: alice.run(),
        lambda: alice.submit(),
        lambda: alice.call("POST", f"run/{NEXT}/stream", asking("?")),
        lambda: alice.call("POST", f"run/{NEXT}", asking("?"), **{"idempotency-key": "one"}),
    ]
    with locked(tmp_path):
        # What reads goes on, and what is known stays known.
        assert alice.status(job).json()["status"] == "IN_QUEUE" and alice.facts()["subject"] == "alice"
        with ThreadPoolExecutor(len(calls)) as pool:
            for answer in [pool.submit(call) for call in calls]:
                assert refusal(answer.result(), 503, "store_unavailable")["retry_after"] == 1
        assert not posts(sandbox)
        assert httpx.get(f"{own.url}/livez", trust_env=False).status_code == 200
    # Nothing was taken by what was refused, and nothing has to be started anew.
    assert alice.slots() == (1, 1) and account(tmp_path, "acme", "requests") == Booked(0, 1)
    answers = [call() for call in calls]
    assert [answer.status_code for answer in answers] == [200] * 4
    for waiting in (job, answers[1].json()["request_id"]):
        sandbox.move_job(waiting, "finish")
        assert alice.status(waiting).is_success
    eventually(lambda: account(tmp_path, "acme", "requests") == Booked(5, 0), "not all is booked")
    assert alice.slots() == (0, 0)


def test_locked_between_a_reservation_and_its_booking(
    own: Stack, alice: Person, sandbox: SandboxControl, tmp_path: Path
) -> None:
    """The answer is the caller's all the same; what it cost stays reserved, and is never given away."""
    with ThreadPoolExecutor(1) as pool:
        known = len(sandbox.jobs())
        running = pool.submit(alice.run, "[[pace hold=IN_PROGRESS]] ?", COUNTING)
        eventually(lambda: len(sandbox.jobs()) > known, "the call did not reach the sandbox")
        with locked(tmp_path):
            sandbox.move_job(sandbox.jobs()[-1]["id"], "finish")
            assert running.result().status_code == 200
    assert account(tmp_path, "acme", "requests") == Booked(0, 1)
    assert alice.slots() == (0, 0) and alice.run().status_code == 200


def test_locked_when_fal_has_accepted(own: Stack, alice: Person, sandbox: SandboxControl, tmp_path: Path) -> None:
    """It cannot be noted whose the job is: nobody may see it, and no client may send it again."""
    sandbox.fault("delay", delay=0.5, on={"operation": "submit"})
    with ThreadPoolExecutor(1) as pool:
        submitting = pool.submit(alice.submit, QUEUED)
        eventually(lambda: posts(sandbox), "the call did not reach the sandbox")
        with locked(tmp_path):
            refusal(submitting.result(), 500, "upstream_ambiguous")
    sandbox.clear_faults()
    assert len(posts(sandbox)) == 1
    assert account(tmp_path, "acme", "requests") == Booked(0, 1)
    assert alice.run().status_code == 200


def test_a_database_whose_tables_are_gone_and_come_back(sandbox: SandboxControl, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    with limited_proxy(sandbox, folder, PLANS) as own, Person(own, own.token(tenant="acme")) as alice:
        assert alice.run().status_code == 200
        ready = f"{own.url}/readyz"
        # As by a restore that goes on under a running proxy.
        with contextlib.closing(sqlite3.connect(folder / "proxy.db")) as database:
            for table in ("jobs", "quota_usage"):
                database.execute(f"ALTER TABLE {table} RENAME TO {table}_elsewhere")
            database.commit()
        sandbox.forget()
        for answer in (alice.run(), alice.submit(), alice.http.get("/v1/usage")):
            refusal(answer, 503, "store_unavailable")
        assert not posts(sandbox)
        with contextlib.closing(sqlite3.connect(folder / "proxy.db")) as database:
            for table in ("jobs", "quota_usage"):
                database.execute(f"ALTER TABLE {table}_elsewhere RENAME TO {table}")
            database.commit()
        assert alice.run().status_code == 200 and httpx.get(ready, trust_env=False).status_code == 200
        assert account(folder, "acme", "requests") == Booked(2, 0)


def test_revocations_that_cannot_be_read(own: Stack, alice: Person, sandbox: SandboxControl, tmp_path: Path) -> None:
    """Plans and revocations are at most a few seconds old, or nobody gets in."""
    with contextlib.closing(sqlite3.connect(tmp_path / "proxy.db", timeout=30)) as database:
        database.execute("ALTER TABLE directory_version RENAME TO elsewhere")
        own.clock.advance(5)
        refusal(alice.run(), 503, "store_unavailable")
        database.execute("ALTER TABLE elsewhere RENAME TO directory_version")
    assert alice.run().status_code == 200
    assert len(posts(sandbox)) == 1
