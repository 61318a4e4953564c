"""A SQLite file and those of this process who write to it.

The ledger writes from the event loop itself: nothing is waited for there but the system's cache of the file, as the log
that SQLite writes ahead goes to the disk when it is tidied up, and handing a transaction to a thread and back takes
several times as long as the transaction. What can take long is left to a thread: to wait for the lock that another
process has, and to tidy up the log.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

from sqlalchemy import Dialect

from proxy.stores.sql.direct import Direct, Executor, Prepared
from proxy.stores.sql.engine import SqliteLocation

#: Transactions after which the log is tidied up beside the writing; each writes some pages.
TIDY_AFTER = 200
#: Pages of four kilobytes. A log that grows while it is tidied up never starts over; from this length on it is held for
#: the few milliseconds that the rest takes.
LONGEST_LOG = 8_000
#: What a call writes to the log, and more: the bytes that a disk must have room for.
ROOM = 65_536
T = TypeVar("T")
_log = logging.getLogger(__name__)


class SqliteFile:
    """Opens nothing until it is used.

    Only one connection can write. Those of a process take turns here in the order of their arrival: the file's own
    lock goes to the process that looks at the right moment, and under load some would look in vain for too long.
    """

    def __init__(self, location: SqliteLocation, lock_seconds: float, dialect: Dialect) -> None:
        self._location = location
        self._lock_seconds = lock_seconds
        self._prepared = Prepared(dialect)
        self._turn = asyncio.Lock()
        self._written = 0
        self._tidying: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "fal-proxy-sqlite")
        self._here: sqlite3.Connection | None = None
        self._there: sqlite3.Connection | None = None

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """The time in which nothing else in this process writes.

        Raises:
            TimeoutError: the others do not come to an end.
        """
        if self._turn.locked():
            async with asyncio.timeout(self._lock_seconds):
                await self._turn.acquire()
        else:
            await self._turn.acquire()
        try:
            yield
        finally:
            self._turn.release()
            self._written += 1
            if self._written >= TIDY_AFTER:
                self._start_tidying()

    async def run(self, work: Callable[[Executor], T]) -> T:
        """What `work` returns, once it is committed.

        Raises:
            sqlite3.Error, TimeoutError: it is not.
        """
        async with self.turn():
            if self._location.is_durable:
                # Its commit waits for the disk, which the event loop must not.
                return await asyncio.get_running_loop().run_in_executor(self._thread, self._patiently, work)
            try:
                # Opening it waits too, while another process opens or closes the file's log.
                self._here = self._here or self._location.connect(0)
                self._here.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                    raise
                return await asyncio.get_running_loop().run_in_executor(self._thread, self._patiently, work)
            return self._commit(self._here, work)

    async def tidy_up(self) -> None:
        """Tidy up the log now: a transaction that wrote much to it leaves nothing that others wait for."""
        # Not awaited itself: it goes on if this is cancelled.
        await asyncio.wait({self._start_tidying()})

    async def try_out(self, work: Callable[[Executor], object]) -> None:
        """Do `work` and take it back, and look whether the disk has room: SQLite writes at a commit only.

        Raises:
            sqlite3.Error, OSError: it cannot be done.
            StoreUnavailable: the file is no longer where it was.
        """
        async with self.turn():
            await asyncio.get_running_loop().run_in_executor(self._thread, self._take_back, work)

    async def close(self) -> None:
        if self._tidying is not None:
            await asyncio.wait({self._tidying})
        if self._here is not None:
            self._here.close()
        if self._there is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._there.close)
        self._thread.shutdown(wait=False)

    def _commit(self, connection: sqlite3.Connection, work: Callable[[Executor], T]) -> T:
        try:
            done = work(Direct(connection, self._prepared))
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        return done

    def _patiently(self, work: Callable[[Executor], T]) -> T:
        connection = self._of_the_thread()
        connection.execute("BEGIN IMMEDIATE")
        return self._commit(connection, work)

    def _take_back(self, work: Callable[[Executor], object]) -> None:
        self._location.check()
        connection = self._of_the_thread()
        connection.execute("BEGIN IMMEDIATE")
        try:
            work(Direct(connection, self._prepared))
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        self._location.check_room(ROOM)

    def _start_tidying(self) -> asyncio.Task[None]:
        if self._tidying is None or self._tidying.done():
            self._written = 0
            self._tidying = asyncio.create_task(self._tidy())
        return self._tidying

    async def _tidy(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            if await loop.run_in_executor(self._thread, self._checkpoint) > LONGEST_LOG:
                async with self.turn():
                    await loop.run_in_executor(self._thread, self._checkpoint)
        except (sqlite3.Error, TimeoutError) as problem:
            # It is tried again, and a writer that makes the log far too long does it itself (see `SqliteLocation`).
            _log.warning("the database's log could not be tidied up: %s", type(problem).__name__)

    def _checkpoint(self) -> int:
        """Bring what the log says into the file, and tell how many pages the log has."""
        ((_, pages, _),) = self._of_the_thread().execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        return int(pages)

    def _of_the_thread(self) -> sqlite3.Connection:
        if self._there is None:
            self._there = self._location.connect(self._lock_seconds)
        return self._there
