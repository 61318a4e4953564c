"""Commits the ledger's transactions to PostgreSQL, most of them in one round trip.

It knows the rows that this process wrote, and works a transaction out from those without a lock: a call's second
transaction touches what its first one wrote. What is written says what was known, and changes nothing if a row is
another by now, as other processes write too. Then the transaction is worked out again, from rows that are read and
locked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, TypeVar

import asyncpg  # type: ignore[import-untyped]
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.util.concurrency import await_

from proxy.stores.errors import DriverFailed, TransactionAborted
from proxy.stores.job_rows import remember_rows
from proxy.stores.sql.postgres import PostgresDialect
from proxy.stores.sql.transaction import LocksNeeded, Rows, RowsChanged, SqlTransaction
from proxy.stores.transaction import LedgerTransaction

#: Known rows; with more of them, all are forgotten. A job takes about one and a half kilobytes.
MOST_ROWS = 4_000
#: So many transactions after one that met a change lock their rows from the start: the other process goes on too.
LOCKED_AFTER_CHANGE = 20
_FAILURES = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)
T = TypeVar("T")


class LedgerCommitter:
    """Works in the greenlet of a SQLAlchemy connection, over which nothing else has begun."""

    def __init__(self, dialect: Any) -> None:
        self._dialect: PostgresDialect = dialect
        self._known = Rows()
        self._to_lock = 0

    def is_fresh(self, connection: AsyncConnection) -> bool:
        """Return whether a connection answered just now, and need not be asked before it is used."""
        plain = connection.sync_connection
        driver: Any = plain and plain.connection.driver_connection
        return driver is not None and self._dialect.is_fresh(driver)

    def commit(self, connection: Connection, work: Callable[[LedgerTransaction], T]) -> T:
        """Do `work` in a transaction, and commit it. It may be done twice.

        Raises:
            DriverFailed: PostgreSQL did not commit it, or may have done so.
        """
        driver: Any = connection.connection.driver_connection
        try:
            done = self._commit(driver, work)
        except BaseException as error:
            raise self._clean_up(connection, error) from None
        driver.answered_at = time.monotonic()
        return done

    def try_out(self, connection: Connection, work: Callable[[LedgerTransaction], object]) -> None:
        """Do `work` in a transaction, and take it back.

        Raises:
            DriverFailed: PostgreSQL cannot do it now.
        """
        driver: Any = connection.connection.driver_connection
        try:
            _begin(driver, work)
            await_(driver.execute("ROLLBACK"))
        except BaseException as error:
            raise self._clean_up(connection, error) from None

    def _commit(self, driver: Any, work: Callable[[LedgerTransaction], T]) -> T:
        # Outside a transaction that has begun, a pooler may send each message of a statement to another server.
        if self._to_lock or self._dialect.is_pooled:
            self._to_lock = max(0, self._to_lock - 1)
            return self._commit_locked(driver, work)
        try:
            transaction = SqlTransaction(driver, self._known)
            done = work(transaction)
            _finish(transaction.write)
        except LocksNeeded:
            return self._commit_locked(driver, work)
        except RowsChanged:
            self._known, self._to_lock = Rows(), LOCKED_AFTER_CHANGE
            return self._commit_locked(driver, work)
        self._remember(transaction.written)
        return done

    def _commit_locked(self, driver: Any, work: Callable[[LedgerTransaction], T]) -> T:
        done, written = _begin(driver, work)
        _finish(lambda: await_(driver.execute("COMMIT")))
        self._remember(written)
        return done

    def _remember(self, written: Rows) -> None:
        known = self._known
        if len(known.jobs) + len(known.accounts) > MOST_ROWS:
            known = self._known = Rows()
        remember_rows(known.jobs, known.accounts, written)

    def _clean_up(self, connection: Connection, error: BaseException) -> BaseException:
        """Leave the connection without a transaction, or closed; give the error that callers get."""
        cause = getattr(error, "orig", error)
        driver: Any = connection.connection.driver_connection
        self._dialect.note_error(cause, connection.connection.dbapi_connection)
        try:
            if isinstance(cause, asyncpg.PostgresError) or not isinstance(cause, (*_FAILURES, asyncio.CancelledError)):
                if driver.is_in_transaction():
                    await_(driver.execute("ROLLBACK"))
            else:
                connection.invalidate()
        except _FAILURES:
            connection.invalidate()
        return DriverFailed(error) if isinstance(error, _FAILURES) else error


def _begin(driver: Any, work: Callable[[LedgerTransaction], T]) -> tuple[T, Rows]:
    """Do `work` in a transaction that locks its rows, all but its commit."""
    await_(driver.execute("BEGIN"))
    transaction = SqlTransaction(driver)
    done = work(transaction)
    try:
        transaction.write()
    except RowsChanged:
        raise TransactionAborted("The proxy's database is busy; try again shortly.") from None
    return done, transaction.written


def _finish(commit: Callable[[], object]) -> None:
    """Do what commits a transaction. Only if the server itself says so, it is certain that it did not."""
    try:
        commit()
    except _FAILURES as error:
        is_certain = isinstance(error, asyncpg.PostgresError) and error.severity_en == "ERROR"
        raise DriverFailed(error, is_in_doubt=not is_certain) from None
