"""Which processes write calls to a SQLite file: the system knows when one is gone, however it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.errors import StoreUnavailable
from proxy.stores.sql import SqlStores
from proxy.stores.sqlite.processes import LivingProcesses
from tests.stores.conftest import OpenStores
from tests.stores.records import CLAIM
from tests.support.databases import SqliteDatabases

pytestmark = pytest.mark.anyio
#: Joins, says so, and lives until it is killed.
_LIVES = """
import sys, time
from proxy.stores.sqlite.processes import LivingProcesses
one = LivingProcesses(sys.argv[1])
one.join()
print("joined", flush=True)
time.sleep(1000)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "proxy.db"


@contextlib.contextmanager
def another_process(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """One that has joined."""
    with subprocess.Popen([sys.executable, "-c", _LIVES, str(path)], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"joined\n"
            yield process
        finally:
            process.kill()


def joined(path: Path) -> LivingProcesses:
    processes = LivingProcesses(str(path))
    processes.join()
    return processes


def files(path: Path) -> int:
    return len(os.listdir(f"{path}-processes"))


async def test_one_that_was_killed_is_gone_at_once_and_leaves_nothing(path: Path) -> None:
    mine = joined(path)
    with another_process(path) as process:
        assert not mine.is_alone()
        # One that is only frozen still lives.
        process.send_signal(signal.SIGSTOP)
        assert not mine.is_alone() and files(path) == 2
        process.kill()
        process.wait()
        assert mine.is_alone() and files(path) == 1
    mine.leave()
    assert files(path) == 0


async def test_two_parts_of_one_process_know_of_each_other(path: Path) -> None:
    one, other = joined(path), joined(path)
    assert not one.is_alone() and not other.is_alone()
    one.leave()
    assert other.is_alone()
    other.leave()


async def test_one_that_has_not_joined_or_has_left_knows_nothing(path: Path) -> None:
    mine = LivingProcesses(str(path))
    assert not mine.is_alone()
    mine.join()
    mine.join()
    assert mine.is_alone() and files(path) == 1
    mine.leave()
    assert not mine.is_alone()


async def test_a_link_leads_to_the_same_processes(path: Path) -> None:
    one, other = joined(path), joined(_link_to(path))
    assert not one.is_alone()
    other.leave()
    assert one.is_alone()
    one.leave()


def _link_to(path: Path) -> Path:
    path.touch()
    link = path.with_name("link.db")
    link.symlink_to(path)
    return link


async def test_a_database_that_takes_keys_joins(sqlite_databases: SqliteDatabases, open_stores: OpenStores) -> None:
    url = sqlite_databases.migrated()
    stores = open_stores(url)
    assert not await stores.idempotency.is_alone()
    await stores.idempotency.claim(CLAIM, 0.0)
    assert await stores.idempotency.is_alone()
    other = SqlStores(url)
    await other.idempotency.claim(CLAIM, 0.0)
    assert not await stores.idempotency.is_alone()
    await other.close()
    assert await stores.idempotency.is_alone()


async def test_a_folder_that_takes_no_file_refuses_the_call(
    sqlite_databases: SqliteDatabases, open_stores: OpenStores
) -> None:
    """Without its lock other processes would take this one for dead."""
    url = sqlite_databases.migrated()
    _put_a_file_in_the_place_of_the_folder(url)
    stores = open_stores(url)
    with pytest.raises(StoreUnavailable):
        await stores.idempotency.claim(CLAIM, 0.0)
    assert await stores.idempotency.find(CLAIM) is None


def _put_a_file_in_the_place_of_the_folder(url: str) -> None:
    Path(f"{url.removeprefix('sqlite:///')}-processes").touch()


@pytest.mark.tools
async def test_postgresql_does_not_know(postgres_stores: SqlStores) -> None:
    await postgres_stores.idempotency.claim(CLAIM, 0.0)
    assert not await postgres_stores.idempotency.is_alone()


@pytest.fixture
async def postgres_stores(postgres_databases: SqliteDatabases, open_stores: OpenStores) -> SqlStores:
    return open_stores(postgres_databases.migrated())
