"""Each trouble of a database says what is wrong and what to do."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from proxy.errors import StoreUnavailable
from proxy.stores.errors import FileUnusable
from proxy.stores.sql import SqlStores
from tests.stores.conftest import OpenStores
from tests.support.databases import PostgresDatabases, SqliteDatabases
from tests.support.disks import mounted_disk
from tests.support.postgres import Postgres

pytestmark = pytest.mark.anyio


def _write_notes(path: Path) -> None:
    path.write_text("no database " * 1000)


def _cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(9000)


def _overwrite(path: Path) -> None:
    """The first page stays; the tables are gone."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"x" * (size - 4096))


def _make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _take_folder_away(path: Path) -> None:
    path.parent.rename(path.parent.with_name("elsewhere"))


def _link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_write_notes, "is not a SQLite database: restore a backup"),
        (_cut, "is damaged: stop the proxy, and restore a backup"),
        (_overwrite, "is damaged: stop the proxy, and restore a backup"),
        (_make_folder, "is a folder, a device or a link to itself: name a file"),
        (_take_folder_away, "has no folder: make the folder"),
        (_link_to_itself, "is a folder, a device or a link to itself: name a file"),
    ],
)
async def test_a_file_that_cannot_be_used(
    tmp_path: Path,
    sqlite_databases: SqliteDatabases,
    open_stores: OpenStores,
    spoil: Callable[[Path], None],
    reason: str,
) -> None:
    path = tmp_path / "data" / "proxy.db"
    path.parent.mkdir()
    shutil.copy(sqlite_databases.migrated().removeprefix("sqlite:///"), path)
    spoil(path)
    stores = open_stores(f"sqlite:///{path}")
    for work in (stores.prepare, stores.migrate):
        with pytest.raises(FileUnusable) as caught:
            await work()
        assert reason in caught.value.message and str(path) not in caught.value.message


async def test_a_name_that_is_too_long(tmp_path: Path, open_stores: OpenStores) -> None:
    with pytest.raises(FileUnusable, match="has too long a name: name another file"):
        await open_stores(f"sqlite:///{tmp_path / ('x' * 300)}").prepare()


@pytest.mark.parametrize(
    "statements",
    [
        ["CREATE TABLE recipes (name TEXT)"],
        ["CREATE TABLE alembic_version (version_num VARCHAR(32))", "INSERT INTO alembic_version VALUES ('ae1027a6')"],
    ],
)
async def test_another_programs_file_stays_as_it_is(
    tmp_path: Path, open_stores: OpenStores, statements: list[str]
) -> None:
    path = tmp_path / "recipes.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        for statement in statements:
            database.execute(statement)
    stores = open_stores(f"sqlite:///{path}")
    for work in (stores.prepare, stores.migrate):
        with pytest.raises(FileUnusable, match="belongs to another program: name another file"):
            await work()
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert [sql for (sql,) in database.execute("SELECT sql FROM sqlite_master")] == statements[:1]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with mounted_disk(tmp_path, mebibytes=16) as folder:
        yield folder


@pytest.mark.tools
@pytest.mark.parametrize("there", [True, False])
async def test_a_disk_that_is_mounted_to_read(
    disk: Path, sqlite_databases: SqliteDatabases, open_stores: OpenStores, there: bool
) -> None:
    if there:
        shutil.copy(sqlite_databases.migrated().removeprefix("sqlite:///"), disk / "proxy.db")
    await anyio.run_process(["mount", "-o", "remount,ro", str(disk)])
    stores = open_stores(f"sqlite:///{disk / 'proxy.db'}")
    for work in (stores.prepare, stores.ping):
        with pytest.raises(FileUnusable, match="is read-only: let the user of this process write to it"):
            await work()


#: How the proxy is set up is no caller's business.
SAID_TO_CALLERS = "The proxy's database does not answer; try again shortly."


async def assert_diagnosed(url: str, open_stores: OpenStores, reason: str) -> None:
    """A server can be mended while the proxy runs, so this is no reason not to start."""
    stores = open_stores(url)
    with pytest.raises(StoreUnavailable, match=reason) as caught:
        await stores.ping()
    assert not isinstance(caught.value, FileUnusable)
    assert caught.value.body()["detail"] == caught.value.body()["message"] == SAID_TO_CALLERS


@pytest.mark.tools
async def test_a_server_that_has_no_such_database(postgres: Postgres, open_stores: OpenStores) -> None:
    await assert_diagnosed(postgres.url("nowhere"), open_stores, "does not exist: create it, or correct its name")


@pytest.mark.tools
async def test_a_server_that_does_not_know_the_user(postgres: Postgres, open_stores: OpenStores) -> None:
    url = make_url(postgres.url("postgres")).set(username="stranger", password="canary")
    shown = url.render_as_string(hide_password=False)
    await assert_diagnosed(shown, open_stores, "refuses the user or the password: correct PROXY_DATABASE_URL")


@pytest.mark.tools
async def test_a_user_without_rights(
    postgres: Postgres, postgres_databases: PostgresDatabases, open_stores: OpenStores
) -> None:
    url = make_url(postgres_databases.migrated())
    assert url.database is not None
    postgres.ask(url.database, "CREATE ROLE reader LOGIN PASSWORD 'reader'")
    try:
        shown = url.set(username="reader", password="reader").render_as_string(hide_password=False)
        await assert_diagnosed(shown, open_stores, "grant the rights on its schema and tables")
    finally:
        postgres.ask(url.database, "DROP ROLE reader")


@pytest.mark.parametrize("table", ["jobs", "quota_usage"])
async def test_a_table_that_is_missing(stores: SqlStores, open_stores: OpenStores, table: str) -> None:
    async with stores.ledger._database.writing() as connection:
        await connection.execute(text(f"ALTER TABLE {table} RENAME TO elsewhere"))
    with pytest.raises(StoreUnavailable, match="lacks a table or a column"):
        await stores.ping()
