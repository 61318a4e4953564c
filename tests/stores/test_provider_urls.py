"""Database URLs in the form in which providers hand them out, on a real PostgreSQL."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from proxy.libpq import parse
from tests.server.commands import PROXY, SERVABLE
from tests.support.databases import PostgresDatabases
from tests.support.postgres import Postgres


@pytest.mark.tools
@pytest.mark.parametrize(
    "parameters",
    [
        "sslmode=prefer&channel_binding=prefer",
        "sslmode=disable&application_name=fal-proxy&connect_timeout=5",
        "ssl=disable&options=-c%20statement_timeout%3D5000&keepalives=1",
        "target_session_attrs=read-write&client_encoding=utf8",
    ],
)
def test_a_url_with_libpq_parameters_is_checked_and_migrated(
    postgres_databases: PostgresDatabases, tmp_path: Path, parameters: str
) -> None:
    url = postgres_databases.empty().replace("postgresql://", "postgres://") + f"?{parameters}"
    environ = {**SERVABLE, "PROXY_DATABASE_URL": url}
    for command in ("check-config", "migrate"):
        done = subprocess.run([*PROXY, command], env=environ, cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr


@pytest.mark.tools
def test_the_server_sees_the_application_name_and_the_options(
    postgres_databases: PostgresDatabases, postgres: Postgres, tmp_path: Path
) -> None:
    """The parameters do not only pass: they hold."""
    url = postgres_databases.empty()
    environ = {**SERVABLE, "PROXY_DATABASE_URL": f"{url}?options=-c%20default_transaction_read_only%3Don"}
    done = subprocess.run([*PROXY, "migrate"], env=environ, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert postgres.ask(url.rpartition("/")[2], "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == "0"


def test_unknown_parameters_are_left_out_and_synonyms_are_translated() -> None:
    text = "postgres://user:p%40ss@db.example:6543/app?ssl=require&channel_binding=require&connect_timeout=7&options=-c%20a%3Db"
    url, timeout, is_pooled = parse(text)
    assert (
        url == "postgresql://user:p%40ss@db.example:6543/app?sslmode=require&options=-c+a%3Db"
        and timeout == 7
        and not is_pooled
    )


def test_a_connect_timeout_of_zero_leaves_the_default() -> None:
    assert parse("postgresql://db/app?connect_timeout=0").connect_timeout is None
