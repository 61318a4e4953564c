"""Migrations lead every kind of database to the tables that are described."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import anyio
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, inspect, text

from proxy.errors import StoreUnavailable
from proxy.stores.sql import SqlStores, migrate, schema
from proxy.stores.sql.engine import create_engine
from tests.stores.conftest import OpenStores
from tests.stores.records import ACME, PLANS, UPLOAD
from tests.support.databases import Databases

T = TypeVar("T")
OLD_UPLOAD = (
    "id",
    "tenant",
    "subject",
    "content_type",
    "file_url",
    "upstream_url",
    "max_bytes",
    "plan",
    "expires_at",
)
pytestmark = pytest.mark.anyio


async def test_they_lead_to_the_described_tables(databases: Databases, open_stores: OpenStores) -> None:
    url = databases.empty()
    await open_stores(url).migrate()
    differences, tables, revision = await _with(url, _looked_at)
    assert differences == []
    assert tables == {*schema.metadata.tables, "alembic_version"}
    assert revision == migrate.newest()


def _looked_at(connection: Connection) -> tuple[list[object], set[str], str | None]:
    context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
    tables = set(inspect(connection).get_table_names())
    return compare_metadata(context, schema.metadata), tables, context.get_current_revision()


async def test_uploads_of_the_version_before_go_on(databases: Databases, open_stores: OpenStores) -> None:
    url, old = databases.empty(), {name: getattr(UPLOAD, name) for name in OLD_UPLOAD}
    await _with(url, _at_first_version)
    await _with(url, lambda one: one.execute(schema.uploads.insert().values(old)) and None)
    stores = open_stores(url)
    await stores.migrate()
    assert await stores.uploads.get(UPLOAD.id) == UPLOAD


def _at_first_version(connection: Connection) -> None:
    command.upgrade(migrate.config_for(connection), "0001")


async def test_migrating_twice_changes_nothing(stores: SqlStores) -> None:
    await stores.directory.apply(PLANS, [ACME])
    assert await stores.migrate() == migrate.newest()
    assert (await stores.directory.load()).tenants == [ACME]


async def test_replicas_may_migrate_at_once(databases: Databases, open_stores: OpenStores) -> None:
    for _ in range(5):
        url = databases.empty()
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(open_stores(url).migrate)
        await open_stores(url).ping()


async def test_an_empty_database_is_not_of_this_version(databases: Databases, open_stores: OpenStores) -> None:
    stores = open_stores(databases.empty())
    with pytest.raises(StoreUnavailable, match="not at this version; run: fal-proxy migrate"):
        await stores.ping()
    await stores.migrate()
    await stores.ping()


@pytest.mark.tools
async def test_a_server_migrates_nothing_by_itself(postgres_databases: Databases, open_stores: OpenStores) -> None:
    """Replicas of the version before may still run on it: that is for whoever deploys to say."""
    stores = open_stores(postgres_databases.empty())
    with pytest.raises(StoreUnavailable, match="fal-proxy migrate"):
        await stores.prepare()


async def test_a_database_of_a_newer_version_is_left_alone(stores: SqlStores, database_url: str) -> None:
    await _with(database_url, lambda one: one.execute(text("UPDATE alembic_version SET version_num = '9999'")) and None)
    with pytest.raises(StoreUnavailable, match="fal-proxy migrate"):
        await stores.ping()
    with pytest.raises(StoreUnavailable, match="made by a newer version"):
        await stores.migrate()


async def _with(url: str, work: Callable[[Connection], T]) -> T:
    engine = create_engine(url)
    try:
        async with engine.begin() as connection:
            return await connection.run_sync(work)
    finally:
        await engine.dispose()
