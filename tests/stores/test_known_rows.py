"""A connection to SQLite keeps the rows that it wrote, and finds the same as a read."""

from __future__ import annotations

import contextlib
import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.stores.ledger import Accept, Account, Bucket, Charge, Granted, Job, Operation, Reserve, Settle
from proxy.stores.sqlite.connection import MOST_ROWS, LedgerConnection
from proxy.stores.transaction import Batch, LedgerTransaction, commit_operations
from tests.stores.records import ALICES, REQUESTS, job
from tests.support.databases import SqliteDatabases


class File:
    """A file, a connection to it, and the readings that the connection makes of rows."""

    def __init__(self, path: Path) -> None:
        self._plain = sqlite3.connect(path, isolation_level=None)
        self.ledger = LedgerConnection(self._plain)
        self.readings: list[str] = []
        self._plain.set_trace_callback(self._note)

    def _note(self, statement: str) -> None:
        if "FROM" in statement:
            self.readings.append(statement)

    def commit(self, *operations: Operation) -> list[object]:
        def work(transaction: LedgerTransaction) -> tuple[Batch, list[object]]:
            batch, outcomes = commit_operations(transaction, operations=operations, known=())
            return batch, [*outcomes]

        self.readings.clear()
        self.ledger.begin()
        return self.ledger.commit(work)[1]

    def find(self, job_id: str) -> object:
        self.ledger.begin()
        return next(iter(self.ledger.commit(lambda transaction: transaction.find_jobs([job_id]))), None)

    def account(self, bucket: Bucket) -> Account | None:
        self.ledger.begin()
        return self.ledger.commit(lambda transaction: transaction.find_accounts([bucket])).get(bucket)

    def run(self, statement: str) -> None:
        """Do something past the ledger, with the same connection."""
        self._plain.execute(statement)

    def close(self) -> None:
        self.ledger.close()


@pytest.fixture
def path(sqlite_databases: SqliteDatabases) -> Path:
    return Path(sqlite_databases.migrated().removeprefix("sqlite:///"))


@pytest.fixture
def file(path: Path) -> Iterator[File]:
    with contextlib.closing(File(path)) as file:
        yield file


@pytest.fixture
def other(path: Path) -> Iterator[File]:
    """Another connection, as that of another process."""
    with contextlib.closing(File(path)) as other:
        yield other


def test_a_call_reads_no_row_that_it_wrote(file: File) -> None:
    file.commit(Reserve(job(Charge(REQUESTS, 1, 100))))
    one = job(Charge(REQUESTS, 5, 100))
    for operation in (Reserve(one), Accept(one.id, "fal-1", 5000.0), Settle(one.id, {"requests": 2}, 1010.0)):
        assert file.commit(operation) == [Granted()]
        assert file.readings == []
    assert file.account(REQUESTS) == Account(used=2, reserved=1)


def test_a_row_that_another_connection_changed_is_read(file: File, other: File) -> None:
    one, two = job(Charge(REQUESTS, 5, 10)), job(Charge(REQUESTS, 5, 10))
    file.commit(Reserve(one))
    other.commit(Reserve(two), Settle(one.id, {"requests": 3}, 1010.0))
    assert file.find(one.id) == one._replace(state="settled", used={"requests": 3}, checked_at=1010.0)
    assert file.account(REQUESTS) == Account(used=3, reserved=5)
    other.run("DELETE FROM jobs")
    other.run("DELETE FROM quota_usage")
    assert file.find(one.id) is None and file.find(two.id) is None and file.account(REQUESTS) is None


def test_a_transaction_that_fails_leaves_no_row_known(file: File) -> None:
    one, lost = job(Charge(REQUESTS, 5, 10)), job()
    file.commit(Reserve(one))

    def work(transaction: LedgerTransaction) -> None:
        transaction.update_accounts({REQUESTS: Account(7, 7)})
        transaction.update_jobs([one._replace(state="accepted")])
        transaction.add_jobs([lost])
        raise ValueError("no more")

    file.ledger.begin()
    with pytest.raises(ValueError, match="no more"):
        file.ledger.commit(work)
    assert (file.find(one.id), file.find(lost.id), file.account(REQUESTS)) == (one, None, Account(reserved=5))


def test_a_commit_that_fails_leaves_no_row_known(file: File) -> None:
    """As that of a full disk: SQLite writes at the commit only. Here a constraint fails there."""
    one = job(Charge(REQUESTS, 5, 10))
    file.commit(Reserve(one))
    file.run("CREATE TABLE refuse (id REFERENCES tenants(id) DEFERRABLE INITIALLY DEFERRED)")
    file.run("CREATE TRIGGER refuse AFTER UPDATE ON quota_usage BEGIN INSERT INTO refuse VALUES ('none'); END")
    file.run("PRAGMA foreign_keys=ON")
    with pytest.raises(sqlite3.IntegrityError):
        file.commit(Settle(one.id, {"requests": 5}, 1010.0))
    assert (file.find(one.id), file.account(REQUESTS)) == (one, Account(reserved=5))


class Heavy(Job):
    """A job that raises MemoryError when the connection reads it after the commit."""

    @property
    def is_over(self) -> bool:
        raise MemoryError


def test_a_process_that_fails_after_the_commit_reads_again(file: File) -> None:
    one, two = job(Charge(REQUESTS, 5, 10)), job(Charge(REQUESTS, 3, 10))
    file.commit(Reserve(one))
    with pytest.raises(MemoryError):
        file.commit(Settle(one.id, {"requests": 1}, 1010.0), Reserve(Heavy(*two)))
    assert file.account(REQUESTS) == Account(used=1, reserved=3)
    assert file.find(one.id) == one._replace(state="settled", used={"requests": 1}, checked_at=1010.0)


def test_a_row_that_was_not_there_to_be_changed_is_not_known(file: File) -> None:
    missing = job()

    def work(transaction: LedgerTransaction) -> list[object]:
        transaction.update_jobs([missing])
        transaction.update_accounts({REQUESTS: Account(1, 1)})
        return [*transaction.find_jobs([missing.id]), *transaction.find_accounts([REQUESTS])]

    file.ledger.begin()
    assert file.ledger.commit(work) == []
    assert file.find(missing.id) is None and file.account(REQUESTS) is None


def test_a_transaction_that_is_tried_out_leaves_no_row_known(file: File) -> None:
    one = job()
    file.ledger.begin()
    file.ledger.take_back(lambda transaction: transaction.add_jobs([one]))
    assert file.find(one.id) is None


def test_the_rows_that_are_known_have_a_bound(file: File) -> None:
    first = job()
    file.commit(Reserve(first))
    file.commit(*(Reserve(job()) for _ in range(MOST_ROWS - 1)))
    file.commit(Accept(first.id, "fal-1", 5000.0))
    assert file.readings == []
    file.commit(Reserve(job()))
    file.commit(Accept(first.id, "fal-1", 5000.0))
    assert len(file.readings) == 1


def test_jobs_that_are_over_are_not_kept(file: File) -> None:
    lasting = job()
    file.commit(Reserve(lasting))
    for _ in range(3):
        ended = [job() for _ in range(MOST_ROWS // 2)]
        file.commit(*map(Reserve, ended))
        file.commit(*(Settle(one.id, {}, 1010.0) for one in ended))
    file.commit(Accept(lasting.id, "fal-1", 5000.0))
    assert file.readings == []


@pytest.mark.parametrize("seed", range(4))
def test_random_jobs_find_the_same_as_a_read(path: Path, file: File, other: File, seed: int) -> None:
    dice, known = random.Random(seed), [job(Charge(REQUESTS, 3, 40), Charge(ALICES, 5, 60))]
    for number in range(200):
        writer = file if dice.random() < 0.8 else other
        known.append(job(Charge(dice.choice([REQUESTS, ALICES]), dice.randrange(9), 60)))
        some = [dice.choice(known[-5:]).id for _ in range(3)]
        operations = [
            Reserve(known[-1]),
            Accept(some[0], f"fal-{number}", 5000.0),
            Settle(some[1], {"requests": dice.randrange(2), "tokens": 1}, 1010.0),
            Settle(some[2], None, 1010.0),
        ]
        writer.commit(*dice.sample(operations, dice.randint(1, 4)))
        with contextlib.closing(File(path)) as fresh:
            for one in known[-6:]:
                assert writer.find(one.id) == fresh.find(one.id)
            assert [writer.account(bucket) for bucket in (REQUESTS, ALICES)] == [
                fresh.account(bucket) for bucket in (REQUESTS, ALICES)
            ]
