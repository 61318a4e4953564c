"""`serve` on a database whose schema does not fit: it says what to do and ends, or upgrades it if that is set."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from alembic import command
from sqlalchemy import Connection, inspect, text

from proxy.stores.sql import migrate
from proxy.stores.sql.engine import create_engine
from tests.server.commands import PLAINLY, PROXY, Server, serving
from tests.server.conftest import Cli
from tests.support.databases import PostgresDatabases, SqliteDatabases
from tests.support.expansion import EXPANSION, NEXT
from tests.support.sandbox import SandboxControl
from tests.support.servers import free_port
from tests.support.stack import sandbox_environ
from tests.support.waiting import wait_until

pytestmark = pytest.mark.tools
ADVICE = (
    "PROXY_DATABASE_URL: The proxy's database is not at this version; run: fal-proxy migrate, or set PROXY_MIGRATE=on"
)


@pytest.fixture
def environ(cli: Cli, sandbox: SandboxControl) -> dict[str, str]:
    return {**cli.environ, **sandbox_environ(sandbox.url)}


def on(url: str, work: Callable[[Connection], Any]) -> Any:
    async def run() -> Any:
        engine = create_engine(url)
        try:
            async with engine.begin() as connection:
                return await connection.run_sync(work)
        finally:
            await engine.dispose()

    return asyncio.run(run())


def tables(connection: Connection) -> set[str]:
    return set(inspect(connection).get_table_names())


def to_first_version(connection: Connection) -> None:
    command.upgrade(migrate.config_for(connection), "0001")


def to_revision(revision: str, *statements: str) -> Callable[[Connection], None]:
    def work(connection: Connection) -> None:
        for statement in (*statements, f"UPDATE alembic_version SET version_num = '{revision}'"):
            connection.execute(text(statement))

    return work


def is_ready(server: Server) -> bool:
    return httpx.get(f"{server.url}/readyz", **PLAINLY).status_code == 200


def log_lines(server: Server) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.stderr.splitlines() if line.startswith("{")]


def upgrades(server: Server) -> list[dict[str, Any]]:
    return [line for line in log_lines(server) if line["message"] == "database schema upgraded"]


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("state", ["empty", "older"])
def test_serve_says_in_one_line_what_to_do_and_ends(
    postgres_databases: PostgresDatabases, environ: dict[str, str], cli: Cli, state: str, workers: str
) -> None:
    url = postgres_databases.empty()
    if state == "older":
        on(url, to_first_version)
    before = on(url, tables)
    more = {"PROXY_DATABASE_URL": url, "PROXY_WORKERS": workers, "PROXY_REDIS_URL": "redis://127.0.0.1:1"}
    done = cli.commands("serve", environ={**environ, **more}, cwd=cli.folder)
    assert (done.code, done.stdout, done.stderr) == (1, "", f"{ADVICE}\n")
    assert on(url, tables) == before
    subprocess.run([*PROXY, "migrate"], env={**environ, **more}, cwd=cli.folder, check=True)
    with serving("serve", environ={**environ, "PROXY_DATABASE_URL": url}, folder=cli.folder) as server:
        wait_until(lambda: is_ready(server), "it is not ready")


@pytest.mark.parametrize("migrates", ["on", "off"])
def test_serve_does_not_touch_the_database_of_a_newer_release(
    postgres_databases: PostgresDatabases, environ: dict[str, str], cli: Cli, migrates: str
) -> None:
    url = postgres_databases.migrated()
    on(url, to_revision("9999"))
    done = cli.commands(
        "serve", environ={**environ, "PROXY_DATABASE_URL": url, "PROXY_MIGRATE": migrates}, cwd=cli.folder
    )
    (line,) = done.stderr.splitlines()
    assert done.code == 1 and line.startswith("PROXY_DATABASE_URL: ") and "newer version; run that" in line
    assert "PROXY_MIGRATE" not in line


@pytest.mark.parametrize("migrates", ["on", "off"])
def test_a_newer_schema_of_the_release_is_served_as_it_is(
    postgres_databases: PostgresDatabases, environ: dict[str, str], tmp_path: Path, migrates: str
) -> None:
    url = postgres_databases.migrated()
    on(url, to_revision(NEXT, *EXPANSION))
    environ |= {"PROXY_DATABASE_URL": url, "PROXY_MIGRATE": migrates}
    with serving("serve", environ=environ, folder=tmp_path) as server:
        wait_until(lambda: is_ready(server), "it is not ready")
        assert upgrades(server) == []


@pytest.mark.parametrize("state", ["empty", "older"])
def test_ten_replicas_that_start_at_once_migrate_once(
    postgres_databases: PostgresDatabases, environ: dict[str, str], tmp_path: Path, state: str
) -> None:
    url = postgres_databases.empty()
    if state == "older":
        on(url, to_first_version)
    environ |= {"PROXY_DATABASE_URL": url, "PROXY_MIGRATE": "on"}
    with replicas(10, environ, tmp_path) as servers:
        for server in servers:
            server.wait_until_live()
            wait_until(lambda: is_ready(server), "it is not ready")  # noqa: B023
        (upgrade,) = [upgrade for server in servers for upgrade in upgrades(server)]
        assert (upgrade["before"], upgrade["now"]) == ("0001" if state == "older" else "empty", migrate.newest())
        # None of them failed at what another one was doing, and tried again.
        assert [line for server in servers for line in log_lines(server) if line["level"] == "error"] == []
        assert not any("Traceback" in server.stderr for server in servers)


#: Forks a process for each port: together they start within the second that importing the program takes one of them.
_FORKING = """
import os, sys
import alembic.command
from proxy.cli import main

for port in sys.argv[1:]:
    if os.fork() == 0:
        os.environ["PROXY_PORT"] = port
        os.dup2(os.open(f"{port}/server.err", os.O_WRONLY), 2)
        try:
            main(["serve"], prog_name="fal-proxy")
        finally:
            os._exit(1)
os.wait()
"""


@contextlib.contextmanager
def replicas(number: int, environ: dict[str, str], folder: Path) -> Iterator[list[Server]]:
    """So many processes that serve one database, all started at once."""
    ports = [str(free_port()) for _ in range(number)]
    for port in ports:
        (folder / port).mkdir()
        (folder / port / "server.err").touch()
    command = (sys.executable, "-c", _FORKING, *ports)
    variables = {"PATH": os.environ["PATH"], **environ}
    with subprocess.Popen(command, env=variables, cwd=folder, start_new_session=True) as process:
        try:
            yield [Server(process, f"http://127.0.0.1:{port}", folder / port) for port in ports]
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_a_sqlite_file_is_left_alone_if_that_is_set(
    sqlite_databases: SqliteDatabases, environ: dict[str, str], cli: Cli
) -> None:
    environ |= {"PROXY_DATABASE_URL": sqlite_databases.empty()}
    done = cli.commands("serve", environ={**environ, "PROXY_MIGRATE": "off"}, cwd=cli.folder)
    assert (done.code, done.stderr) == (1, f"{ADVICE}\n")
    with serving("serve", environ=environ, folder=cli.folder) as server:
        wait_until(lambda: is_ready(server), "it is not ready")
        assert [upgrade["before"] for upgrade in upgrades(server)] == ["empty"]
