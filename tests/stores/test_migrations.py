"""Migrations lead every kind of database to the tables that are described."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TypeVar

import anyio
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, MetaData, event, inspect, text
from sqlalchemy.schema import SchemaItem

from proxy.clock import to_iso
from proxy.errors import StoreUnavailable
from proxy.stores.ledger import Charge, Granted, Reserve, Settle
from proxy.stores.sql import SqlStores, migrate, schema
from proxy.stores.sql.engine import create_engine
from proxy.stores.sql.postgres import PostgresDialect
from tests.stores.conftest import OpenStores
from tests.stores.records import ACME, CLAIM, PLANS, REQUESTS, UPLOAD, job
from tests.support.audit_log import AUTHOR
from tests.support.databases import Databases
from tests.support.expansion import EXPANSION, NEXT, PREVIOUS

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


async def test_migrations_make_the_described_tables(databases: Databases, open_stores: OpenStores) -> None:
    url = databases.empty()
    await open_stores(url).migrate()
    differences, tables, revision = await _with(url, _looked_at)
    assert differences == []
    assert tables == {*schema.metadata.tables, "alembic_version"}
    assert revision == migrate.newest()


def _looked_at(connection: Connection) -> tuple[list[object], set[str], str | None]:
    def is_of_dialect(thing: SchemaItem, *_: object) -> bool:
        return str(thing.info.get("dialect", connection.dialect.name)) == connection.dialect.name

    opts = {"compare_type": True, "compare_server_default": True, "include_object": is_of_dialect}
    context = MigrationContext.configure(connection, opts=opts)
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


async def test_jobs_that_were_counted_before_are_in_the_sums(databases: Databases, open_stores: OpenStores) -> None:
    url = databases.empty()
    await _with(url, lambda one: command.upgrade(migrate.config_for(one), "0020"))
    some = [job(tags=("web", "team:1")[: number % 3], submitted_at=3600.0 * number) for number in range(9)]
    older = open_stores(url)
    await older.ledger.commit([Reserve(one) for one in some])
    await older.ledger.commit([Settle(one.id, {"requests": 1, "tokens": 1_500_001}, 5000.0) for one in some])
    assert await older.usage_rollup.count(7) == 7
    stores = open_stores(url)
    await stores.migrate()

    async def calls_by(group: str) -> dict[str, int]:
        found = await stores.ledger.usage_of_jobs("acme", None, 0.0, 86_400.0, frozenset({group}))
        assert all(row.used == {"requests": row.calls, "tokens": 1_500_001 * row.calls} for row in found)
        return {getattr(row, group): row.calls for row in found}

    before = await calls_by("hour"), await calls_by("tag")
    assert before == ({to_iso(one.submitted_at): 1 for one in some}, {"": 3, "team:1": 3, "web": 6})
    assert await stores.usage_rollup.count(7) == 2
    assert (await calls_by("hour"), await calls_by("tag")) == before


async def test_migrating_twice_changes_nothing(stores: SqlStores) -> None:
    await stores.directory.apply(PLANS, [ACME], by=AUTHOR)
    assert await stores.migrate() == migrate.newest()
    assert (await stores.directory.load()).tenants == [ACME]


async def test_replicas_may_migrate_at_once(databases: Databases, open_stores: OpenStores) -> None:
    """One does it, and the others wait for it: a second one would fail at the first table."""
    for _ in range(3):
        url = databases.empty()
        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(open_stores(url).migrate)
        await open_stores(url).ping()


@pytest.mark.tools
async def test_a_migration_takes_as_long_as_it_needs(postgres_databases: Databases, open_stores: OpenStores) -> None:
    stores, timeouts = open_stores(postgres_databases.empty()), list[float | None]()

    def note(_dialect: object, _record: object, _arguments: object, options: dict[str, float | None]) -> None:
        timeouts.append(options["command_timeout"])

    event.listen(PostgresDialect, "do_connect", note)
    try:
        await stores.migrate()
        await stores.ping()
    finally:
        event.remove(PostgresDialect, "do_connect", note)
    assert timeouts == [None, 10]


# Other revisions of the same release


async def _set_revision(url: str, revision: str, *statements: str) -> None:
    def work(connection: Connection) -> None:
        for statement in (*statements, f"UPDATE alembic_version SET version_num = '{revision}'"):
            connection.execute(text(statement))

    await _with(url, work)


@pytest.mark.parametrize("revision", [NEXT, PREVIOUS])
async def test_a_schema_with_all_that_is_needed_is_used(
    database_url: str, open_stores: OpenStores, revision: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It may have more: then a newer version of the release made it. Or it is older, and what was added is not used."""
    await _set_revision(database_url, revision, *(EXPANSION if revision == NEXT else ()))
    stores, wanted = open_stores(database_url), job(Charge(REQUESTS, 1, 10))
    await stores.ping()
    await stores.ping()
    assert caplog.text.count("another revision of this release") == 1
    assert await stores.ledger.commit([Reserve(wanted)]) == [Granted()]
    assert await stores.ledger.get(wanted.id) == wanted
    await stores.uploads.add(UPLOAD)
    assert await stores.idempotency.claim(CLAIM, 0) is None
    await stores.directory.apply(PLANS, [ACME], by=AUTHOR)
    assert (await stores.directory.load()).tenants == [ACME]


async def test_a_newer_schema_of_the_release_is_left_as_it_is(database_url: str, open_stores: OpenStores) -> None:
    await _set_revision(database_url, NEXT, *EXPANSION)
    stores = open_stores(database_url)
    await stores.prepare()
    assert await stores.migrate() == NEXT
    assert (await _with(database_url, _looked_at))[2] == NEXT


@pytest.mark.parametrize(
    ("revision", "statements"),
    [
        ("0101", EXPANSION),
        (NEXT, ("ALTER TABLE uploads DROP COLUMN in_parts",)),
        (NEXT, ("DROP TABLE upload_parts",)),
        (NEXT, ("DROP TABLE tenant_keys", "CREATE TABLE tenant_keys (id INTEGER PRIMARY KEY)")),
        (NEXT, ("DROP TABLE plans", "CREATE TABLE plans (name TEXT PRIMARY KEY, document JSON, more TEXT NOT NULL)")),
    ],
    ids=["release", "column", "table", "columns", "more"],
)
async def test_a_schema_that_does_not_fit_is_refused(
    database_url: str, open_stores: OpenStores, revision: str, statements: tuple[str, ...]
) -> None:
    await _set_revision(database_url, revision, *statements)
    stores = open_stores(database_url)
    with pytest.raises(StoreUnavailable, match="fal-proxy migrate"):
        await stores.ping()
    with pytest.raises(StoreUnavailable, match="belongs to a newer version; run that version"):
        await stores.migrate()


async def test_an_older_schema_without_what_is_needed_is_refused(databases: Databases, open_stores: OpenStores) -> None:
    url = databases.empty()
    await _with(url, _at_first_version)
    with pytest.raises(StoreUnavailable, match="fal-proxy migrate"):
        await open_stores(url).ping()


async def test_an_unknown_older_revision_is_refused(database_url: str, open_stores: OpenStores) -> None:
    await _set_revision(database_url, "0000")
    with pytest.raises(StoreUnavailable, match="fal-proxy migrate"):
        await open_stores(database_url).ping()


@pytest.mark.slow
async def test_a_migration_within_a_release_only_adds(sqlite_databases: Databases) -> None:
    """So that the version before it runs on."""
    url, before = sqlite_databases.empty(), MetaData()
    for older, newer in pairwise(["", *sorted(migrate.known_revisions())]):
        await _with(url, lambda connection, to=newer: command.upgrade(migrate.config_for(connection), to))
        if migrate.release_of(older) == migrate.release_of(newer):
            assert await _with(url, lambda connection, needed=before: migrate.has_all(connection, needed)), newer
        before = MetaData()
        await _with(url, before.reflect)
    assert len(before.tables) > 5


async def test_an_empty_database_is_not_of_this_version(databases: Databases, open_stores: OpenStores) -> None:
    stores = open_stores(databases.empty())
    with pytest.raises(StoreUnavailable, match="not at this version; run: fal-proxy migrate"):
        await stores.ping()
    await stores.migrate()
    await stores.ping()


@pytest.mark.tools
async def test_a_server_migrates_nothing_by_itself(postgres_databases: Databases, open_stores: OpenStores) -> None:
    """Replicas of the earlier version may still run on it, so the operator decides when to migrate."""
    stores = open_stores(postgres_databases.empty())
    with pytest.raises(StoreUnavailable, match="fal-proxy migrate"):
        await stores.prepare()


async def test_a_database_of_a_newer_version_is_left_alone(stores: SqlStores, database_url: str) -> None:
    await _with(database_url, lambda one: one.execute(text("UPDATE alembic_version SET version_num = '9999'")) and None)
    with pytest.raises(StoreUnavailable, match="fal-proxy migrate"):
        await stores.ping()
    with pytest.raises(StoreUnavailable, match="belongs to a newer version"):
        await stores.migrate()


async def _with(url: str, work: Callable[[Connection], T]) -> T:
    engine = create_engine(url)
    try:
        async with engine.begin() as connection:
            return await connection.run_sync(work)
    finally:
        await engine.dispose()
