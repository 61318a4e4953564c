"""The database as the stores use it."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from typing import TypeVar

from sqlalchemy import Connection, Dialect

from proxy.stores.sql.connection_timeout import ConnectionTimeout
from proxy.stores.sql.engine import LOCK_SECONDS, AnyConnection, connect_ledger, create_engine, sqlite_location
from proxy.stores.sql.sqlite import SqliteEngine, commit
from proxy.stores.sql.translation import Translation
from proxy.stores.sqlite.file import SqliteFile
from proxy.stores.sqlite.location import SqliteLocation
from proxy.stores.transaction import LedgerTransaction
from proxy.telemetry.instruments import Distribution, Distributions
from proxy.telemetry.log_limit import LogLimit

T = TypeVar("T")
#: Transactions at once that are not the ledger's: of the twenty connections to PostgreSQL, and of the five to a SQLite
#: file, where one waits for its turn with its connection open.
MOST_BESIDE, MOST_BESIDE_IN_FILE = 8, 2
#: How long a migration waits for another one of the same SQLite file.
MIGRATION_SECONDS = 600.0


class Database:
    """Transactions, each whole or not at all. Opens nothing until it is used."""

    def __init__(
        self,
        url: str,
        lock_seconds: float = LOCK_SECONDS,
        *,
        is_durable: bool = False,
        seconds: Distributions | None = None,
        log_limit: LogLimit | None = None,
    ) -> None:
        """`is_durable` is whether a SQLite file's commits wait for the disk; PostgreSQL decides that itself.

        `seconds` gets how long each transaction takes. `log_limit` bounds the lines about failures.
        """
        self._url = url
        self._log_limit = log_limit or LogLimit()
        self._read_seconds = seconds.of("database", "read") if seconds else None
        self._write_seconds = seconds.of("database", "write") if seconds else None
        self._lock_seconds = lock_seconds
        self._file: SqliteFile | None = None
        self._location: SqliteLocation | None = None
        if url.startswith("sqlite:"):
            self._location = sqlite_location(url, is_durable=is_durable)
            self._file = SqliteFile(self._location, lock_seconds)
        self.engine = create_engine(url, lock_seconds, self._location)
        self._places = asyncio.Semaphore(MOST_BESIDE_IN_FILE if self._file else MOST_BESIDE)
        # A file is waited for where it is locked.
        self._timeout = (
            None if self._file else ConnectionTimeout(max(lock_seconds, getattr(self.dialect, "wait_seconds", 0)))
        )
        self._ledger = connect_ledger(self.engine, self._timeout) if self._timeout else None

    @property
    def dialect(self) -> Dialect:
        return self.engine.dialect

    def _translate_errors(self, seconds: Distribution | None = None) -> Translation:
        return Translation(self._log_limit, seconds, is_file=self._file is not None)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[AnyConnection]:
        """Lend a connection; a server may be silent, so the wait for it has an end."""
        if self._timeout is None:
            async with self.engine.connect() as connection:
                yield connection
            return
        async with AsyncExitStack() as stack:
            async with self._timeout.bound():
                connection = await stack.enter_async_context(self.engine.connect())
            yield connection
        self._timeout.note_answer()

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AnyConnection]:
        """Open a transaction, which is committed at the end of the block.

        Raises:
            StoreUnavailable: the database did not do it.
        """
        with self._translate_errors(self._write_seconds):
            async with (
                self._file.turn() if self._file else nullcontext(),
                self._connection() as connection,
                connection.begin(),
            ):
                yield connection

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AnyConnection]:
        """Open a consistent reading.

        Raises:
            StoreUnavailable: the database did not answer.
        """
        # Left to itself PostgreSQL would let each statement see another moment.
        level = {"isolation_level": "REPEATABLE READ"} if self.dialect.name == "postgresql" else {}
        with self._translate_errors(self._read_seconds):
            async with self._connection() as plain:
                connection = await plain.execution_options(read_only=True, **level)
                async with connection.begin():
                    yield connection

    @asynccontextmanager
    async def migrating(self) -> AsyncIterator[AnyConnection]:
        """Open a transaction whose statements may take as long as they need: an index of many rows takes minutes.

        Raises:
            StoreUnavailable: the database did not do it.
        """
        # What another process migrates on SQLite keeps the whole file locked.
        lock_seconds = LOCK_SECONDS if self._location is None else MIGRATION_SECONDS
        engine = create_engine(self._url, lock_seconds, self._location, answer_seconds=None)
        try:
            with self._translate_errors():
                async with self._file.turn() if self._file else nullcontext(), engine.begin() as connection:
                    yield connection
        finally:
            await engine.dispose()

    async def run(self, work: Callable[[LedgerTransaction], T]) -> T:
        """Commit `work`, and return what it returns: a transaction that every call waits for.

        Raises:
            OutcomeUnknown: it may have done it.
            StoreUnavailable: the database did not do it.
        """
        if self._file is not None:
            with self._translate_errors(self._write_seconds):
                return await self._file.run(work)
        assert self._ledger is not None
        with self._translate_errors(self._write_seconds):
            return await self._ledger.commit(work)

    async def write(self, work: Callable[[Connection], T], transactions: int = 1) -> T:
        """Commit `work`, and return what it returns: a transaction beside those of the ledger, which holds none up.

        On SQLite a thread runs it from its start to its end. If its statements came from the event loop, one by one,
        the file would stay locked while the loop serves calls between them, and those would wait for the lock. On
        PostgreSQL such transactions leave connections to the ledger, also if a lock of their tables holds them up.

        Args:
            transactions: how many of the ledger's write as much to a SQLite file.

        Raises:
            StoreUnavailable: the database did not do it.
        """
        if self._file is None or not isinstance(self.engine, SqliteEngine):
            async with self._place(), self.writing() as connection:
                return await connection.run_sync(work)
        with self._translate_errors(self._write_seconds):
            async with self._place(), self.engine.connect() as connection:
                # Before its turn: to open a connection, and to give it back, takes as long as a short transaction.
                await connection.open()
                async with self._file.turn(transactions):
                    return await connection.run_sync(commit, work)

    async def change_file(self, work: Callable[[sqlite3.Connection], T], transactions: int) -> T:
        """Do the same on SQLite, which this database must be, without SQLAlchemy.

        Raises:
            StoreUnavailable: the file did not take it.
        """
        assert self._file is not None
        with self._translate_errors(self._write_seconds):
            return await self._file.change(work, transactions)

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        """Lend one of the places of transactions that are not the ledger's; the wait for it has an end."""
        with self._translate_errors():
            async with self._timeout.bound() if self._timeout else asyncio.timeout(self._lock_seconds):
                await self._places.acquire()
        try:
            yield
        finally:
            self._places.release()

    @property
    def calls(self) -> int:
        """How many transactions of the ledger came to their turn at a SQLite file; 0 on PostgreSQL."""
        return self._file.calls if self._file is not None else 0

    async def wait_for_checkpoint(self) -> None:
        """Wait while the log of a SQLite file is written into the file; PostgreSQL paces itself."""
        if self._file is not None:
            await self._file.wait_for_checkpoint()

    async def truncate_log(self) -> None:
        """Empty the log of a SQLite file, which still has what was overwritten; PostgreSQL has none of its own.

        Raises:
            StoreUnavailable: the file takes no writes.
        """
        if self._file is not None:
            with self._translate_errors():
                await self._file.truncate_log()

    async def try_out(self, work: Callable[[LedgerTransaction], object]) -> None:
        """Do `work` and take it back: the database can do it now, and is as it was.

        Raises:
            StoreUnavailable: it cannot.
        """
        with self._translate_errors():
            if self._file is not None:
                await self._file.try_out(work)
                return
            assert self._ledger is not None
            await self._ledger.try_out(work)

    def join(self) -> None:
        """Show other processes on a SQLite file that this one writes calls to it, until `close`.

        Raises:
            StoreUnavailable: the folder of the file takes no writes.
        """
        if self._location is not None:
            with self._translate_errors():
                self._location.processes.join()

    def is_alone(self) -> bool:
        """Return whether no other process lives that has joined; False on PostgreSQL, which does not know that.

        Raises:
            StoreUnavailable: the folder of a SQLite file cannot be read.
        """
        with self._translate_errors():
            return self._location is not None and self._location.processes.is_alone()

    async def close(self) -> None:
        if self._location is not None:
            self._location.processes.leave()
        if self._file is not None:
            await self._file.close()
        if self._ledger is not None:
            await self._ledger.close()
        await self.engine.dispose()
