"""Two versions of the program side by side on one database: this one, and one with a migration more."""

from __future__ import annotations

import shutil
import signal
import subprocess
from functools import partial
from pathlib import Path

import httpx
import pytest

import proxy
from proxy.auth.sessions import Sessions
from proxy.clock import SystemClock
from proxy.settings import Secret
from proxy.stores.sql import migrate
from tests.server.commands import PLAINLY, PROXY, Server, serving
from tests.server.conftest import Cli
from tests.support.databases import PostgresDatabases
from tests.support.expansion import EXPANSION, NEXT
from tests.support.limited import asking
from tests.support.postgres import Postgres
from tests.support.redis import Redis
from tests.support.sandbox import SandboxControl
from tests.support.secrets import SECRET
from tests.support.stack import sandbox_environ
from tests.support.waiting import wait_until

pytestmark = pytest.mark.tools

MIGRATION = f'''
from alembic import op

revision, down_revision = "{NEXT}", "{migrate.newest()}"


def upgrade():
    for statement in {EXPANSION!r}:
        op.execute(statement)
'''


@pytest.fixture
def newer(tmp_path: Path) -> Path:
    """A folder to run the newer version in: its package is found there first."""
    folder = tmp_path / "newer"
    package = folder / "proxy"
    shutil.copytree(Path(proxy.__file__).parent, package, ignore=shutil.ignore_patterns("node_modules", "__pycache__"))
    (package / "stores" / "sql" / "migrations" / "versions" / f"{NEXT}_notes.py").write_text(MIGRATION)
    return folder


def run_migrate(environ: dict[str, str], folder: Path) -> str:
    done = subprocess.run([*PROXY, "migrate"], env=environ, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


class Alice:
    """A caller of several servers."""

    def __init__(self) -> None:
        token, _ = Sessions((Secret(SECRET),), SystemClock()).mint("acme", "alice", 600)
        self._headers = {"authorization": f"Bearer {token}"}

    def submit(self, server: Server, **headers: str) -> str:
        url = f"{server.url}/fal/queue/fal-ai/llava-next"
        answer = httpx.post(url, json=asking("?"), headers={**self._headers, **headers}, **PLAINLY)
        assert answer.status_code == 200, answer.text
        id_: str = answer.json()["request_id"]
        return id_

    def has_result(self, server: Server, job: str) -> bool:
        url = f"{server.url}/v1/jobs/{job}/result"
        return httpx.get(url, headers=self._headers, **PLAINLY).status_code == 200

    def jobs(self, server: Server) -> set[str]:
        answer = httpx.get(f"{server.url}/v1/jobs", headers=self._headers, **PLAINLY)
        return {job["id"] for job in answer.json()["jobs"]}


def is_ready(server: Server) -> bool:
    return httpx.get(f"{server.url}/readyz", **PLAINLY).status_code == 200


def test_a_rolling_upgrade_and_the_way_back(
    cli: Cli,
    newer: Path,
    sandbox: SandboxControl,
    redis: Redis,
    postgres: Postgres,
    postgres_databases: PostgresDatabases,
) -> None:
    url, alice = postgres_databases.migrated(), Alice()
    environ = {**cli.environ, **sandbox_environ(sandbox.url), "PROXY_DATABASE_URL": url, "PROXY_REDIS_URL": redis.url}
    with serving("serve", environ=environ, folder=cli.folder) as old:
        first = alice.submit(old, **{"idempotency-key": "first"})
        assert run_migrate(environ, newer) == NEXT
        with serving("serve", environ=environ, folder=newer) as new:
            wait_until(lambda: is_ready(old) and is_ready(new), "they are not ready side by side")
            # Each knows what the other did.
            assert alice.submit(new, **{"idempotency-key": "first"}) == first
            jobs = {first, *(alice.submit(server) for server in (old, new, old, new))}
            for server in (old, new):
                assert alice.jobs(server) == jobs
                for job in jobs:
                    wait_until(partial(alice.has_result, server, job), "there is no result")
            assert new.stop(signal.SIGTERM) in (0, -signal.SIGTERM)
        assert is_ready(old) and alice.submit(old)
        assert old.stop(signal.SIGTERM) in (0, -signal.SIGTERM)
    # The way back needs no downgrade: what a deployment of the older version runs changes nothing.
    assert run_migrate(environ, cli.folder) == NEXT
    with serving("serve", environ=environ, folder=cli.folder) as old:
        assert is_ready(old) and alice.submit(old, **{"idempotency-key": "first"}) == first
        assert "another revision of this release" in old.stderr
    settled = "SELECT count(*) FROM jobs WHERE state IN ('settled', 'counted') AND priority = 0"
    assert int(postgres.ask(url.rpartition("/")[2], settled)) >= len(jobs)
