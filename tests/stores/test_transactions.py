"""The two ways to state the ledger's transactions, SQLite's own SQL and SQLAlchemy's, do and find the same."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pytest
from sqlalchemy import Table, select

from proxy.stores.ledger import Account, Bucket, Charge, Job
from proxy.stores.sql.database import Database
from proxy.stores.sql.schema import jobs, quota_usage
from proxy.stores.sql.transaction import SqlTransaction
from proxy.stores.sqlite.transaction import SqliteTransaction
from proxy.stores.transaction import LedgerTransaction
from tests.stores.records import ALICES, REQUESTS, job
from tests.support.databases import Databases, PostgresDatabases, SqliteDatabases

pytestmark = pytest.mark.anyio
T = TypeVar("T")
#: No value is that of another column, or its column's default.
FULL = Job(
    id="a" * 32,
    kind="submit",
    endpoint="fal-ai/any-llm",
    tenant="globex",
    subject="Zoë ☃ '\"; --",
    submitted_at=1.25,
    expires_at=2.5,
    charges=(
        Charge(Bucket("globex", "", "requests", "day", 86_400), 1, 2),
        Charge(Bucket("globex", "Zoë ☃ '\"; --", "tokens", "month", 7), 3, 2**62),
    ),
    request_id="fal-1",
    state="accepted",
    checked_at=3.75,
    used={"requests": 4, "tokens": 2**53 + 1},
    upstream="spare",
    session="s-1",
    tags=("trial", "team:ünï '\""),
)
#: All that may change in the life of a job.
LATER = FULL._replace(request_id="fal-2", state="settled", checked_at=8.5, expires_at=9.5, used={"usd": 5})


async def rows(database: Database, table: Table) -> list[dict[str, Any]]:
    async with database.reading() as connection:
        found = [dict(row._mapping) for row in await connection.execute(select(table))]
    # Sorted here, as each kind of database sorts texts in its own way.
    return sorted(found, key=lambda row: [row[column.name] for column in table.primary_key])


async def all_rows(database: Database) -> list[list[dict[str, Any]]]:
    return [await rows(database, table) for table in (jobs, quota_usage)]


@pytest.fixture
async def database(database_url: str) -> Any:
    database = Database(database_url)
    yield database
    await database.close()


async def test_each_kind_of_database_has_its_own_transactions(database: Database) -> None:
    kinds = {"sqlite": SqliteTransaction, "postgresql": SqlTransaction}
    assert await database.run(type) is kinds[database.dialect.name]


async def test_every_column_of_a_job_is_written_and_read(database: Database) -> None:
    expected = {
        **{name: getattr(FULL, name) for name in ("id", "kind", "endpoint", "tenant", "subject", "state", "upstream")},
        **{name: getattr(FULL, name) for name in ("request_id", "submitted_at", "checked_at", "expires_at", "used")},
        "session": FULL.session,
        "tags": list(FULL.tags),
        "charges": [["", "requests", "day", 86_400, 1, 2], [FULL.subject, "tokens", "month", 7, 3, 2**62]],
    }
    assert set(expected) == set(jobs.c.keys())
    await database.run(lambda transaction: transaction.add_jobs([FULL]))
    assert await rows(database, jobs) == [expected]
    assert list(await database.run(lambda transaction: transaction.find_jobs([FULL.id]))) == [FULL]
    await database.run(lambda transaction: transaction.update_jobs([LATER]))
    assert list(await database.run(lambda transaction: transaction.find_jobs([FULL.id]))) == [LATER]
    changed = {name: getattr(LATER, name) for name in ("request_id", "state", "checked_at", "expires_at", "used")}
    assert await rows(database, jobs) == [expected | changed]


async def test_every_column_of_an_account_is_written_and_read(database: Database) -> None:
    bucket = Bucket("globex", "Zoë", "usd", "week", 604_800)
    await database.run(lambda transaction: transaction.create_accounts([bucket]))
    assert await rows(database, quota_usage) == [{**bucket._asdict(), "used": 0, "reserved": 0}]
    await database.run(lambda transaction: transaction.update_accounts({bucket: Account(2**62, 3)}))
    assert await rows(database, quota_usage) == [{**bucket._asdict(), "used": 2**62, "reserved": 3}]
    assert await database.run(lambda transaction: transaction.find_accounts([bucket])) == {bucket: Account(2**62, 3)}


def test_the_sql_of_sqlite_names_all_columns(sqlite_databases: SqliteDatabases) -> None:
    """Read off SQLite itself, as it prepares the statements; the tests above see what an insertion leaves out."""
    connection = sqlite3.connect(sqlite_databases.migrated().removeprefix("sqlite:///"), isolation_level=None)
    read: set[tuple[str | None, str | None]] = set()

    def note(action: int, table: str | None, column: str | None, *_: object) -> int:
        if action == sqlite3.SQLITE_READ:
            read.add((table, column))
        return sqlite3.SQLITE_OK

    connection.set_authorizer(note)
    transaction = SqliteTransaction(connection, {}, {})
    transaction.find_jobs(["unknown"])
    transaction.find_accounts([REQUESTS])
    connection.close()
    assert read == {(table.name, column.name) for table in (jobs, quota_usage) for column in table.c}


async def test_missing_rows_are_left_out_and_no_update_creates_them(database: Database) -> None:
    there = job()
    await database.run(lambda transaction: transaction.add_jobs([there]))
    await database.run(lambda transaction: transaction.create_accounts([REQUESTS]))
    before = await all_rows(database)
    found = await database.run(lambda transaction: transaction.find_jobs(["0" * 31, there.id, "f" * 33]))
    assert [one.id for one in found] == [there.id]
    assert await database.run(lambda one: one.find_accounts([ALICES, REQUESTS])) == {REQUESTS: Account()}
    await database.run(lambda transaction: transaction.update_jobs([FULL]))
    await database.run(lambda transaction: transaction.update_accounts({ALICES: Account(1, 1)}))
    assert await all_rows(database) == before


async def test_an_account_that_exists_is_not_created_again(database: Database) -> None:
    await database.run(lambda transaction: transaction.create_accounts([REQUESTS]))
    await database.run(lambda transaction: transaction.update_accounts({REQUESTS: Account(5, 6)}))
    await database.run(lambda transaction: transaction.create_accounts([ALICES, REQUESTS]))
    found = await database.run(lambda transaction: transaction.find_accounts([ALICES, REQUESTS]))
    assert found == {ALICES: Account(0, 0), REQUESTS: Account(5, 6)}


# The same operations through both


class Script:
    """A random transaction after the other, made from a seed: what each does, and what it finds."""

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)
        self._jobs: list[Job] = []
        self._buckets = [
            Bucket("acme", subject, unit, "day", start)
            for subject in ("", "Zoë", "alice", "_")
            for unit in ("requests", "tokens")
            for start in (0, 86_400)
        ]

    def transactions(self, count: int) -> Sequence[Callable[[LedgerTransaction], object]]:
        return [self._dice.choice([self._add, self._change, self._book, self._open])() for _ in range(count)]

    def _add(self) -> Callable[[LedgerTransaction], object]:
        charges = [Charge(bucket, self._dice.randrange(2**62), 2**62) for bucket in self._some_buckets()]
        added = [
            job(*charges, request_id=f"r-{len(self._jobs)}-{number}") for number in range(self._dice.randint(1, 4))
        ]
        self._jobs += added
        return lambda transaction: transaction.add_jobs(added)

    def _change(self) -> Callable[[LedgerTransaction], object]:
        some = sorted(self._dice.sample(self._jobs, min(3, len(self._jobs))), key=lambda one: one.id)
        states = [self._dice.choice(("accepted", "settled", "released")) for _ in some]
        used = {"tokens": self._dice.randrange(2**62)}

        def work(transaction: LedgerTransaction) -> object:
            found = list(transaction.find_jobs([one.id for one in some]))
            changed = [one._replace(state=state, used=used) for one, state in zip(found, states, strict=True)]
            if changed:
                transaction.update_jobs(changed)
            return found

        return work

    def _book(self) -> Callable[[LedgerTransaction], object]:
        some, more = self._some_buckets(), self._dice.randrange(1000)

        def work(transaction: LedgerTransaction) -> object:
            found = dict(transaction.find_accounts(some))
            booked = {bucket: Account(one.used + more, one.reserved + 1) for bucket, one in found.items()}
            if booked:
                transaction.update_accounts(booked)
            return found

        return work

    def _open(self) -> Callable[[LedgerTransaction], object]:
        some = self._some_buckets()
        return lambda transaction: transaction.create_accounts(some)

    def _some_buckets(self) -> list[Bucket]:
        return sorted(self._dice.sample(self._buckets, self._dice.randint(1, 6)))


@pytest.mark.tools
@pytest.mark.parametrize("seed", range(4))
async def test_sqlite_and_postgresql_find_and_leave_the_same_rows(
    sqlite_databases: SqliteDatabases, postgres_databases: PostgresDatabases, seed: int
) -> None:
    kinds: tuple[Databases, ...] = (sqlite_databases, postgres_databases)
    one, other = (Database(kind.migrated()) for kind in kinds)
    for work in Script(seed).transactions(60):
        assert await one.run(work) == await other.run(work)
    left = await all_rows(one)
    assert all(left) and left == await all_rows(other)
    await one.close()
    await other.close()
