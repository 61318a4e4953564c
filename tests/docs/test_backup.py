"""docs/backup.md: backups of a serving proxy, made and restored by the commands of the page."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.clock import MovableClock
from tests.support.databases import PostgresDatabases
from tests.support.limited import NEXT, asking
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack, proxy_in_front_of

pytestmark = pytest.mark.tools

PAGE = (Path(__file__).parents[2] / "docs" / "backup.md").read_text()
SCRIPTS = dict(re.findall(r'^```sh title="([^"]+)"\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL))


def run(title: str, folder: Path, **environ: str) -> str:
    """The output of a script of the page."""
    command = ["bash", "-euo", "pipefail", "-c", SCRIPTS[title]]
    variables = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **environ}
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def submit(client: httpx.Client, prompt: str = "What is it?") -> str:
    answer = client.post("/v1/jobs", json={"endpoint": NEXT, "input": asking(prompt)})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


@contextlib.contextmanager
def writing(stack: Stack) -> Iterator[None]:
    """Jobs that are submitted without a pause until the block ends; one is in before it begins."""
    is_over, has_begun = threading.Event(), threading.Event()

    def submit_on() -> None:
        with stack.client(stack.token("bob")) as bob:
            while not is_over.is_set():
                submit(bob)
                has_begun.set()

    thread = threading.Thread(target=submit_on)
    thread.start()
    assert has_begun.wait(30)
    try:
        yield
    finally:
        is_over.set()
        thread.join(30)


class Left:
    """The state of the database before the backup."""

    def __init__(self, stack: Stack) -> None:
        self.key = stack.tenant_key()
        self.session, self.revoked = stack.token(), stack.token("mallory")
        with stack.client(self.session) as alice:
            self.done, self.held = submit(alice), submit(alice, "[[pace hold=IN_PROGRESS]] What is it?")
            self.result = result_of(alice, self.done)
        with stack.client(self.revoked) as mallory:
            assert mallory.delete("/v1/session").status_code < 300
        self.usage = usage(stack, self.key, "alice")

    def check(self, stack: Stack) -> None:
        """A proxy on the restored database still has all of it."""
        with stack.client(self.session) as alice:
            assert result_of(alice, self.done) == self.result
            assert alice.get(f"/v1/jobs/{self.held}").json()["status"] == "IN_PROGRESS"
            assert {job["id"] for job in alice.get("/v1/jobs").json()["jobs"]} == {self.done, self.held}
        with stack.client(stack.token("bob")) as bob:
            assert bob.get(f"/v1/jobs/{self.done}").status_code == 404
        with stack.client(self.revoked) as mallory:
            refused = mallory.get("/v1/session")
        assert (refused.status_code, refused.json()["error_type"]) == (401, "session_revoked")
        assert usage(stack, self.key, "alice") == self.usage
        with stack.client(self.session) as alice:
            submit(alice)


def result_of(client: httpx.Client, job: str) -> Any:
    with client.stream("GET", f"/v1/jobs/{job}/events") as events:
        assert "event: result" in events.read().decode()
    return client.get(f"/v1/jobs/{job}/result").raise_for_status().json()


def usage(stack: Stack, key: str, subject: str) -> Any:
    with stack.client(key) as backend:
        rows = backend.get("/v1/usage", params={"group_by": "subject"}).raise_for_status().json()["usage"]
    return [row for row in rows if row["subject"] == subject]


@pytest.mark.parametrize("way", ["back up SQLite", "back up SQLite with sqlite3"])
def test_the_commands_back_up_and_restore_sqlite(way: str, shared_sandbox: SandboxControl, tmp_path: Path) -> None:
    environ, clock = {"PROXY_DATABASE_URL": f"sqlite:///{tmp_path / 'fal-proxy.db'}"}, MovableClock()
    with proxy_in_front_of(shared_sandbox, tmp_path, environ=environ, clock=clock) as stack:
        left = Left(stack)
        with writing(stack):
            said = run(way, tmp_path, **environ)
        assert said == ("ok\n" if "integrity_check" in SCRIPTS[way] else "backup.db\n")
        with stack.client(left.session) as alice:
            later = submit(alice)
    run("restore SQLite", tmp_path)
    with proxy_in_front_of(shared_sandbox, tmp_path, environ=environ, clock=clock) as stack:
        with stack.client(left.session) as alice:
            assert alice.get(f"/v1/jobs/{later}").status_code == 404
        left.check(stack)


def test_the_commands_back_up_and_restore_postgresql(
    shared_sandbox: SandboxControl, postgres_databases: PostgresDatabases, tmp_path: Path
) -> None:
    old, new, clock = postgres_databases.migrated(), postgres_databases.empty(), MovableClock()
    with proxy_in_front_of(shared_sandbox, tmp_path, environ={"PROXY_DATABASE_URL": old}, clock=clock) as stack:
        left = Left(stack)
        with writing(stack):
            run("back up PostgreSQL", tmp_path, PROXY_DATABASE_URL=old)
    run("restore PostgreSQL", tmp_path, NEW_DATABASE_URL=new)
    with proxy_in_front_of(shared_sandbox, tmp_path, environ={"PROXY_DATABASE_URL": new}, clock=clock) as stack:
        left.check(stack)
