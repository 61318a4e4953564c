"""An Idempotency-Key whose process was killed in the middle of the call, on SQLite and without Redis."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from proxy.auth.sessions import Sessions
from proxy.calls.idempotency import LOOK_SECONDS, PATIENCE_SECONDS, RELEASED_SECONDS
from proxy.clock import SystemClock
from proxy.settings import Secret
from tests.support.clock import MovableClock
from tests.support.forking import Forker
from tests.support.limited import NEXT, asking, assert_refused_with, limited_proxy, meanwhile, plan, posts
from tests.support.sandbox import SandboxControl
from tests.support.scrape import scrape
from tests.support.secrets import SECRET
from tests.support.servers import free_port
from tests.support.stack import sandbox_environ
from tests.support.waiting import wait_until

RUNNING = "[[pace hold=IN_PROGRESS]] ?"
PLANS = {"plenty": plan()}
START_SECONDS = 120.0


@pytest.mark.parametrize("is_noted", [True, False])
def test_after_a_kill_a_repetition_waits_for_seconds_only(
    forker: Forker, sandbox: SandboxControl, tmp_path: Path, is_noted: bool
) -> None:
    """Without Redis, the system knows that the process is gone. What may have reached fal is not sent again."""
    database, token = tmp_path / "proxy.db", _mint("alice")
    _kill_in_a_run(forker, sandbox, tmp_path, database, token)
    if not is_noted:
        # As if it had been killed before it noted the job, and so before it sent anything.
        _ask(database, "DELETE FROM jobs")
    sandbox.forget()
    clock = MovableClock()
    ((taken_at,),) = _ask(database, "SELECT created_at FROM idempotency")
    clock.advance(taken_at + RELEASED_SECONDS + 1 - clock.now())
    own = {"PROXY_DATABASE_URL": f"sqlite:///{database}"}
    with limited_proxy(sandbox, tmp_path, PLANS, environ=own, clock=clock) as after:
        if not is_noted:
            with meanwhile(lambda: _run_once(after.url, token), sandbox) as (again, call):
                sandbox.move_job(call, "finish")
            assert again.result().status_code == 200 and "idempotency-replayed" not in again.result().headers
            return
        before = _count_readings(after.url)
        assert_refused_with(_run_once(after.url, token), 500, "upstream_ambiguous")
        # It looks at the job and at the key each time, and would do so until its patience ends.
        assert _count_readings(after.url) - before < PATIENCE_SECONDS / LOOK_SECONDS
    assert not posts(sandbox)


def _count_readings(url: str) -> float:
    return scrape(url).value("fal_proxy_store_seconds_count", store="database", operation="read")


def _kill_in_a_run(forker: Forker, sandbox: SandboxControl, folder: Path, database: Path, token: str) -> None:
    """Kill a process while fal works on its call."""
    tenants = [{"id": name, "plan": name} for name in PLANS]
    (folder / "before.yaml").write_text(yaml.safe_dump({"plans": PLANS, "tenants": tenants}))
    environ = {
        **sandbox_environ(sandbox.url),
        "PROXY_SESSION_SECRETS": SECRET,
        "PROXY_CONFIG": str(folder / "before.yaml"),
        "PROXY_DATABASE_URL": f"sqlite:///{database}",
        "PROXY_PORT": str(free_port()),
    }
    url, log = f"http://127.0.0.1:{environ['PROXY_PORT']}", folder / "server.log"
    pid = forker.start(["serve"], environ, folder, log, log)
    try:
        wait_until(lambda: _is_ready(url), lambda: log.read_text()[-4000:], START_SECONDS)
        with meanwhile(lambda: _run_once(url, token), sandbox) as (call, _):
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(httpx.TransportError):
                call.result()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _is_ready(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{url}/readyz", trust_env=False, timeout=30).status_code == 200
    return False


def _mint(subject: str) -> str:
    return Sessions((Secret(SECRET),), SystemClock()).mint("plenty", subject, 7200)[0]


def _run_once(url: str, token: str) -> httpx.Response:
    headers = {"authorization": f"Bearer {token}", "idempotency-key": "one"}
    return httpx.post(f"{url}/fal/run/{NEXT}", json=asking(RUNNING), headers=headers, trust_env=False, timeout=120)


def _ask(database: Path, statement: str) -> list[Any]:
    with contextlib.closing(sqlite3.connect(database, isolation_level=None, timeout=30)) as connection:
        return connection.execute(statement).fetchall()
