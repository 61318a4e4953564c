"""A start without a database: the process lives, says so, refuses calls, and is ready once the database comes."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.auth.sessions import Sessions
from proxy.clock import SystemClock
from proxy.settings import Secret
from tests.server.commands import PLAINLY, PROXY, Server, serving
from tests.server.conftest import Cli
from tests.support.databases import PostgresDatabases, SqliteDatabases
from tests.support.limited import asking
from tests.support.postgres import Postgres, running_postgres
from tests.support.redis import Redis
from tests.support.sandbox import SandboxControl
from tests.support.secrets import SECRET
from tests.support.stack import sandbox_environ
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[Postgres]:
    """A PostgreSQL that a test may stop."""
    with running_postgres() as server:
        yield server


@pytest.fixture
def environ(cli: Cli, sandbox: SandboxControl) -> dict[str, str]:
    return {**cli.environ, **sandbox_environ(sandbox.url)}


def get(server: Server, path: str) -> tuple[int, dict[str, Any]]:
    answer = httpx.get(f"{server.url}{path}", **PLAINLY)
    return answer.status_code, answer.json()


def run(server: Server) -> httpx.Response:
    token, _ = Sessions((Secret(SECRET),), SystemClock()).mint("acme", "alice", 600)
    headers = {"authorization": f"Bearer {token}"}
    return httpx.post(f"{server.url}/fal/run/fal-ai/llava-next", json=asking("?"), headers=headers, **PLAINLY)


def records_of(server: Server, message: str) -> list[dict[str, Any]]:
    """The log's records of an event."""
    lines = [json.loads(line) for line in server.stderr.splitlines() if line.startswith("{")]
    return [line for line in lines if message in line["message"]]


@pytest.mark.tools
@pytest.mark.parametrize("workers", [1, 2])
def test_the_database_comes_later(
    own_postgres: Postgres,
    redis: Redis,
    environ: dict[str, str],
    sandbox: SandboxControl,
    tmp_path: Path,
    workers: int,
) -> None:
    url = PostgresDatabases(own_postgres).migrated()
    environ |= {"PROXY_DATABASE_URL": url, "PROXY_WORKERS": str(workers), "PROXY_REDIS_URL": redis.url}
    own_postgres.stop()
    with serving("serve", environ=environ, folder=tmp_path) as server:
        assert get(server, "/readyz")[0] == 503 and get(server, "/readyz")[1]["error_type"] == "store_unavailable"
        answer = run(server)
        assert (answer.status_code, answer.json()["error_type"]) == (503, "store_unavailable")
        wait_until(lambda: len(records_of(server, "started, but not ready")) == workers, "nothing was said")
        said = records_of(server, "started, but not ready")[0]
        assert (said["level"], said["setting"]) == ("error", "PROXY_DATABASE_URL")
        assert not sandbox.requests()
        own_postgres.start()
        wait_until(lambda: len(records_of(server, "prepared after the start")) == workers, "it did not become ready")
        # An answer is remembered for a second.
        wait_until(lambda: get(server, "/readyz")[0] == 200, "it is not ready")
        assert all(run(server).status_code == 200 for _ in range(2 * workers))
        assert "Traceback" not in server.stderr and url not in server.stderr


@pytest.mark.tools
@pytest.mark.parametrize("migrates", ["off", "on"])
def test_the_database_comes_later_and_is_empty(
    own_postgres: Postgres, environ: dict[str, str], tmp_path: Path, migrates: str
) -> None:
    """A process that serves does not end for it: it is not ready until the schema is there."""
    environ |= {"PROXY_DATABASE_URL": PostgresDatabases(own_postgres).empty(), "PROXY_MIGRATE": migrates}
    own_postgres.stop()
    with serving("serve", environ=environ, folder=tmp_path) as server:
        own_postgres.start()
        if migrates == "off":
            wait_until(lambda: "run: fal-proxy migrate" in get(server, "/readyz")[1]["detail"], "nothing was said")
            assert run(server).json()["error_type"] == "store_unavailable"
            subprocess.run([*PROXY, "migrate"], env=environ, cwd=tmp_path, check=True)
        wait_until(lambda: get(server, "/readyz")[0] == 200, "it did not become ready")
        assert run(server).status_code == 200
        assert len(records_of(server, "database schema upgraded")) == (migrates == "on")


@pytest.mark.tools
def test_the_database_takes_writes_later(
    postgres_databases: PostgresDatabases, postgres: Postgres, environ: dict[str, str], tmp_path: Path
) -> None:
    """Before the plan file is applied there are no tenants: a caller is not refused for that."""
    url = postgres_databases.migrated()
    name = url.rpartition("/")[2]
    environ["PROXY_DATABASE_URL"] = url
    postgres.ask("postgres", f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    with serving("serve", environ=environ, folder=tmp_path) as server:
        assert get(server, "/readyz")[0] == 503
        answer = run(server)
        assert (answer.status_code, answer.json()["error_type"]) == (503, "store_unavailable")
        # This has no effect on open connections.
        postgres.ask("postgres", f"ALTER DATABASE {name} RESET default_transaction_read_only")
        wait_until(lambda: get(server, "/readyz")[0] == 200, "it did not become ready")
        assert run(server).status_code == 200


def test_not_ready_before_the_plan_file_is_applied(
    sqlite_databases: SqliteDatabases, environ: dict[str, str], tmp_path: Path
) -> None:
    """Also if the database takes the writes of calls before that."""
    environ["PROXY_DATABASE_URL"] = url = sqlite_databases.migrated()
    with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as database:
        database.execute("CREATE TRIGGER no BEFORE INSERT ON plans BEGIN SELECT RAISE(ABORT, 'not now'); END")
        with serving("serve", environ=environ, folder=tmp_path) as server:
            for status, document in (get(server, "/readyz"), (run(server).status_code, run(server).json())):
                assert (status, document["error_type"]) == (503, "store_unavailable")
            database.execute("DROP TRIGGER no")
            wait_until(lambda: get(server, "/readyz")[0] == 200, "it did not become ready")
            assert run(server).status_code == 200
