"""The database as the stores use it, and the border where its errors become ours."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from functools import cache
from typing import Any, TypeVar

from sqlalchemy import Dialect, Table
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.errors import StoreUnavailable
from proxy.stores.errors import DataRefused, OutcomeUnknown, TransactionAborted
from proxy.stores.sql.direct import Executor
from proxy.stores.sql.engine import LOCK_SECONDS, create_engine, sqlite_location
from proxy.stores.sql.file import SqliteFile

T = TypeVar("T")
#: What SQLite raises where the data is at fault, and the classes of PostgreSQL's codes: data exceptions, and violated
#: constraints.
_REFUSALS = (sqlite3.IntegrityError, sqlite3.DataError, OverflowError)
_REFUSAL_STATES = ("22", "23")
#: Deadlocks, and transactions that cannot be put into an order.
_ROLLBACK_STATE = "40"
_log = logging.getLogger(__name__)


class Database:
    """Transactions, each whole or not at all. Opens nothing until it is used."""

    def __init__(self, url: str, lock_seconds: float = LOCK_SECONDS, *, is_durable: bool = False) -> None:
        """`is_durable` is whether a SQLite file's commits wait for the disk; PostgreSQL decides that itself."""
        self._url = url
        self._file: SqliteFile | None = None
        if url.startswith("sqlite:"):
            location = sqlite_location(url, is_durable=is_durable)
            self.engine = create_engine(url, lock_seconds, location)
            self._file = SqliteFile(location, lock_seconds, self.dialect)
        else:
            self.engine = create_engine(url, lock_seconds)

    @property
    def dialect(self) -> Dialect:
        return self.engine.dialect

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """One transaction, committed at the end of the block.

        Raises:
            StoreUnavailable: the database did not do it.
        """
        with _translated():
            async with self._file.turn() if self._file else nullcontext(), self.engine.begin() as connection:
                yield connection

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """One consistent reading.

        Raises:
            StoreUnavailable: the database did not answer.
        """
        # Left to itself PostgreSQL would let each statement see another moment.
        level = {"isolation_level": "REPEATABLE READ"} if self.dialect.name == "postgresql" else {}
        with _translated():
            async with self.engine.connect() as plain:
                connection = await plain.execution_options(read_only=True, **level)
                async with connection.begin():
                    yield connection

    @asynccontextmanager
    async def migrating(self) -> AsyncIterator[AsyncConnection]:
        """One transaction whose statements may take as long as they need: an index of millions of rows takes minutes.

        Raises:
            StoreUnavailable: the database did not do it.
        """
        if self._file is not None:
            async with self.writing() as connection:
                yield connection
            return
        engine = create_engine(self._url, answer_seconds=None)
        try:
            with _translated():
                async with engine.begin() as connection:
                    yield connection
        finally:
            await engine.dispose()

    async def run(self, work: Callable[[Executor], T]) -> T:
        """What `work` returns, once it is committed: a transaction that every call waits for.

        Raises:
            OutcomeUnknown: it may have done it.
            StoreUnavailable: the database did not do it.
        """
        if self._file is not None:
            with _translated():
                return await self._file.run(work)
        is_committing = False
        try:
            async with self.writing() as connection:
                done = await connection.run_sync(work)
                is_committing = True
            return done
        except StoreUnavailable as problem:
            if is_committing and type(problem) is StoreUnavailable:
                raise OutcomeUnknown(problem.message) from None
            raise

    async def tidy_up(self) -> None:
        """Write the log of a SQLite file into the file; PostgreSQL does so itself."""
        if self._file is not None:
            await self._file.tidy_up()

    async def try_out(self, work: Callable[[Executor], object]) -> None:
        """Do `work` and take it back: the database can do it now, and is as it was.

        Raises:
            StoreUnavailable: it cannot.
        """
        with _translated():
            if self._file is not None:
                await self._file.try_out(work)
                return
            async with self.engine.connect() as connection:
                await connection.run_sync(work)
                await connection.rollback()

    async def close(self) -> None:
        if self._file is not None:
            await self._file.close()
        await self.engine.dispose()


@cache
def insert_missing(dialect: str, table: Table) -> Any:
    """The statement that inserts those rows whose key is not there yet, in the order given."""
    return insert_of(dialect, table).on_conflict_do_nothing()


def insert_of(dialect: str, table: Table) -> Any:
    """Give a dialect's own insertion, which can say what happens to a row whose key is there."""
    # Imported here: the dialect that is not used is best not loaded.
    if dialect == "postgresql":
        from sqlalchemy.dialects.postgresql import insert as insert_postgresql

        return insert_postgresql(table)
    from sqlalchemy.dialects.sqlite import insert as insert_sqlite

    return insert_sqlite(table)


class _translated:
    """Turns the driver's trouble into `StoreUnavailable`, without its text: that may quote values."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, (SQLAlchemyError, sqlite3.Error, OSError, TimeoutError, OverflowError)):
            _log.error("the database failed: %s", _cause(error))
            state = _state_of(error)
            if isinstance(getattr(error, "orig", error), _REFUSALS) or state in _REFUSAL_STATES:
                raise DataRefused("The proxy's database does not take that.") from None
            if state == _ROLLBACK_STATE:
                raise TransactionAborted("The proxy's database is busy; try again shortly.") from None
            raise StoreUnavailable("The proxy's database does not answer; try again shortly.") from None


def _state_of(error: BaseException) -> str:
    """The class of PostgreSQL's code for an error; '' if it has none."""
    return (getattr(getattr(error, "orig", error), "sqlstate", None) or "")[:2]


def _cause(error: BaseException) -> str:
    original = getattr(error, "orig", None)
    return f"{type(error).__name__} ({type(original).__name__})" if original is not None else type(error).__name__
