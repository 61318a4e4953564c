"""`/readyz` does what calls do: a database that takes no writes is not ready, and is ready again by itself."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.support.databases import PostgresDatabases
from tests.support.disks import mounted_disk
from tests.support.limited import NEXT, Client, limited_proxy, per, plan
from tests.support.postgres import Postgres
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack
from tests.support.waiting import wait_until

PLANS = {"acme": plan(quotas=[per("tenant", "requests", 1000)])}
Proxy = Callable[..., AbstractContextManager[tuple[Stack, Client]]]


@pytest.fixture
def proxy(sandbox: SandboxControl, tmp_path: Path) -> Proxy:
    @contextlib.contextmanager
    def proxy(database_url: str) -> Iterator[tuple[Stack, Client]]:
        with (
            limited_proxy(sandbox, tmp_path, PLANS, environ={"PROXY_DATABASE_URL": database_url}) as own,
            Client(own, own.token(tenant="acme")) as alice,
        ):
            yield own, alice

    return proxy


def readiness(own: Stack) -> tuple[int, str]:
    """The answer of `/readyz`, not one that is remembered."""
    own.clock.advance(1)
    with own.client("") as operator:
        answer = operator.get("/readyz")
    document = answer.json()
    return answer.status_code, document.get("detail", document.get("status"))


READY = 200, "ready"
FULL = 503, "The proxy's database disk is full: make room on it."
NOT_PRIMARY = 503, "The proxy's database takes no writes: let PROXY_DATABASE_URL lead to the primary server."
NOT_IN_PLACE = 503, "The proxy's database file is no longer in its place."


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted_disk(tmp_path, mebibytes=3) as folder:
        yield folder


@pytest.mark.tools
def test_a_full_disk(proxy: Proxy, small_disk: Path) -> None:
    with proxy(f"sqlite:///{small_disk / 'proxy.db'}") as (own, alice):
        assert alice.submit().status_code == 200 and readiness(own) == READY
        ballast = small_disk / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        assert readiness(own) == FULL
        assert alice.submit().status_code == 503 and readiness(own) == FULL
        ballast.unlink()
        assert readiness(own) == READY and alice.submit().status_code == 200


@pytest.mark.tools
def test_a_postgresql_that_is_read_only(
    proxy: Proxy, postgres_databases: PostgresDatabases, postgres: Postgres
) -> None:
    url = postgres_databases.migrated()
    name = url.rpartition("/")[2]
    with proxy(url) as (own, alice):
        assert alice.submit().status_code == 200 and readiness(own) == READY
        postgres.ask("postgres", f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        # Open connections notice it when they are used again.
        postgres.ask("postgres", f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        # The first check may meet a connection that is being ended.
        wait_until(lambda: readiness(own) == NOT_PRIMARY, "it does not say what is wrong")
        assert alice.submit().status_code == 503
        postgres.ask("postgres", f"ALTER DATABASE {name} RESET default_transaction_read_only")
        assert readiness(own) == READY and alice.submit().status_code == 200
        assert postgres.ask(name, "SELECT count(*) FROM jobs") == "2"


def test_a_check_leaves_nothing_behind(proxy: Proxy, tmp_path: Path) -> None:
    with proxy(f"sqlite:///{tmp_path / 'proxy.db'}") as (own, alice):
        assert alice.submit().status_code == 200
        assert [readiness(own) for _ in range(3)] == [READY] * 3
    with contextlib.closing(sqlite3.connect(tmp_path / "proxy.db")) as database:
        assert database.execute("SELECT kind, endpoint FROM jobs").fetchall() == [("submit", NEXT)]
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def _delete(path: Path) -> None:
    for one in path.parent.glob(f"{path.name}*"):
        one.unlink()


def _replace(path: Path) -> None:
    """As a restore does that does not stop the proxy first."""
    shutil.copy(path, f"{path}.copy")
    os.replace(f"{path}.copy", path)


def _move(path: Path) -> None:
    path.rename(f"{path}.away")


@pytest.mark.parametrize("lose", [_delete, _replace, _move])
def test_a_file_that_is_no_longer_in_its_place(proxy: Proxy, tmp_path: Path, lose: Callable[[Path], None]) -> None:
    path = tmp_path / "data" / "proxy.db"
    path.parent.mkdir()
    with proxy(f"sqlite:///{path}") as (own, alice):
        assert alice.submit().status_code == 200 and readiness(own) == READY
        lose(path)
        assert readiness(own) == NOT_IN_PLACE
        # No connection makes another file there, or takes it for the first one.
        assert path.exists() == (lose is _replace)
        if lose is _move:
            Path(f"{path}.away").rename(path)
            assert readiness(own) == READY and alice.submit().status_code == 200
