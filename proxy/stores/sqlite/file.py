"""A SQLite file, and what this process writes to it.

The ledger writes from the event loop. A transaction waits for nothing but the system's cache of the file, as SQLite's
write-ahead log goes to the disk at a checkpoint, and a thread would take several times as long as the transaction.

A thread does what can take long: it waits for the lock of another process, changes many rows, makes checkpoints (which
copy the log into the file), and runs the transaction after a whole checkpoint. That one starts the log over, and SQLite
waits for the disk before it overwrites what a power cut may need. During a checkpoint a reader holds the log, so that
SQLite does not start it over (`log_hold.py`).
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

from proxy.stores.sqlite.connection import LedgerConnection
from proxy.stores.sqlite.location import SqliteLocation
from proxy.stores.sqlite.log_hold import LogHold
from proxy.stores.transaction import LedgerTransaction

#: Transactions between two checkpoints; each writes some pages.
CHECKPOINT_AFTER = 200
#: As how many of them a transaction of many rows counts. One that removes old rows counts less: rarer checkpoints write
#: fewer pages twice and meet fewer calls on a busy disk, and it does no harm if a power cut brings the rows back.
MANY_ROWS, OLD_ROWS = 10, 3
#: Pages of four kilobytes. A log that grows during its checkpoint never starts over. From this length on checkpoints
#: follow each other until one finds that nothing was written meanwhile, but no more than so many.
LONG_LOG, TRIES = 16_000, 8
#: From this length on, writers wait for the few milliseconds that the rest of the checkpoint takes.
LONGEST_LOG = 24_000
#: Bytes that a disk must have room for: more than a call writes to the log.
ROOM = 65_536
T = TypeVar("T")
_log = logging.getLogger(__name__)


class SqliteFile:
    """Runs the transactions of this process on a SQLite file, which it opens when it is first used.

    Only one connection can write at a time. Those of the process take turns here in the order of their arrival, as
    SQLite's own lock goes to whichever looks at the right moment: under load some would look in vain for too long.

    Args:
        lock_seconds: how long a transaction waits for its turn, and for the lock of another process.
    """

    def __init__(self, location: SqliteLocation, lock_seconds: float) -> None:
        self._location = location
        self._lock_seconds = lock_seconds
        self._turn = asyncio.Lock()
        self._written = 0
        #: The ledger's transactions so far.
        self.calls = 0
        self._checkpointing: asyncio.Task[None] | None = None
        #: Whether the next transaction may start the log over, and so wait for the disk.
        self._restarts = False
        self._thread = ThreadPoolExecutor(1, "fal-proxy-sqlite")
        self._checkpointer = ThreadPoolExecutor(1, "fal-proxy-checkpoint")
        self._loop_connection: LedgerConnection | None = None
        self._thread_connection: LedgerConnection | None = None
        self._checkpoints: sqlite3.Connection | None = None
        self._hold = LogHold(location, lock_seconds)

    @asynccontextmanager
    async def turn(self, transactions: int = 1) -> AsyncIterator[None]:
        """Wait for a turn, in which nothing else in this process writes.

        Args:
            transactions: how many transactions write as much as this turn will.

        Raises:
            TimeoutError: the turns before this one take too long.
        """
        await self._take_turn()
        try:
            yield
        finally:
            self._end_turn(transactions)

    async def run(self, work: Callable[[LedgerTransaction], T]) -> T:
        """Commit `work`, and return what it returns.

        Raises:
            sqlite3.Error, TimeoutError: it was not committed.
        """
        # As `turn`, whose context would cost a call more than the rest of this.
        await self._take_turn()
        self.calls += 1
        try:
            if self._location.is_durable or self._restarts:
                # Its commit waits for the disk, so the event loop cannot run it.
                return await self._run_in_thread(work)
            try:
                # Opening the file can wait as well, while another process opens or closes its log.
                self._loop_connection = self._loop_connection or LedgerConnection(self._location.connect(0))
                self._loop_connection.begin()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                    raise
                return await self._run_in_thread(work)
            return self._loop_connection.commit(work)
        finally:
            self._end_turn()

    async def change(self, work: Callable[[sqlite3.Connection], T], transactions: int) -> T:
        """Commit `work` in a thread, and return what it returns: a transaction beside those of the ledger.

        Raises:
            sqlite3.Error, TimeoutError: it was not committed.
        """
        async with self.turn(transactions):
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._change, work)

    async def wait_for_checkpoint(self) -> None:
        """Wait for the end of the checkpoint that is under way, if one is; it takes longer on a busy disk."""
        if self._checkpointing is not None:
            # Not awaited directly: it goes on if this task is cancelled.
            await asyncio.wait({self._checkpointing})

    async def truncate_log(self) -> None:
        """Copy the log into the file and empty it; if a reader needs it, only copy as much as possible."""
        # Before the turn, as the checkpoint of a long log takes one too.
        await self.wait_for_checkpoint()
        async with self.turn():
            self._restarts = True
            await self._in_checkpointer(self._truncate)

    async def try_out(self, work: Callable[[LedgerTransaction], object]) -> None:
        """Do `work` and roll it back, and check that the disk has room, as SQLite writes only at a commit.

        Raises:
            sqlite3.Error, OSError: `work` fails, or the disk is full.
            StoreUnavailable: the file is not in its place any more.
        """
        async with self.turn():
            await asyncio.get_running_loop().run_in_executor(self._thread, self._take_back, work)

    async def close(self) -> None:
        if self._checkpointing is not None:
            await asyncio.wait({self._checkpointing})
        if self._loop_connection is not None:
            self._loop_connection.close()
        # In the thread, so that work whose caller was cancelled ends first.
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close_for_thread)
        await self._in_checkpointer(self._close_checkpointer)
        self._thread.shutdown(wait=False)
        self._checkpointer.shutdown(wait=False)

    async def _take_turn(self) -> None:
        if self._turn.locked():
            async with asyncio.timeout(self._lock_seconds):
                await self._turn.acquire()
        else:
            await self._turn.acquire()

    def _end_turn(self, transactions: int = 1) -> None:
        self._turn.release()
        self._written += transactions
        if self._written >= CHECKPOINT_AFTER:
            self._start_checkpoint()

    async def _run_in_thread(self, work: Callable[[LedgerTransaction], T]) -> T:
        loop = asyncio.get_running_loop()
        done, has_written = await loop.run_in_executor(self._thread, self._commit_in_thread, work)
        if has_written and not self._is_checkpointing:
            self._restarts = False
        return done

    def _commit_in_thread(self, work: Callable[[LedgerTransaction], T]) -> tuple[T, bool]:
        """Commit `work`; return what it returns, and whether it changed a row."""
        connection = self._open_for_thread()
        connection.begin()
        changes = connection.changes
        return connection.commit(work), connection.changes > changes

    def _change(self, work: Callable[[sqlite3.Connection], T]) -> T:
        connection = self._open_for_thread()
        connection.begin()
        return connection.change(work)

    def _take_back(self, work: Callable[[LedgerTransaction], object]) -> None:
        self._location.check()
        connection = self._open_for_thread()
        connection.begin()
        connection.take_back(work)
        self._location.check_room(ROOM)

    @property
    def _is_checkpointing(self) -> bool:
        return self._checkpointing is not None and not self._checkpointing.done()

    def _start_checkpoint(self) -> None:
        if not self._is_checkpointing:
            self._written = 0
            self._checkpointing = asyncio.create_task(self._checkpoint_log())

    async def _checkpoint_log(self) -> None:
        try:
            pages, copied = await self._in_checkpointer(self._checkpoint_held)
            if pages > LONG_LOG and await self._restart_log(pages):
                return
            # Set before the hold is released.
            self._restarts = pages == copied
        except (sqlite3.Error, TimeoutError) as problem:
            # Another checkpoint follows. If the log gets far too long, a writer makes it (see `SqliteLocation`).
            self._restarts = True
            fields = {"problem": type(problem).__name__}
            _log.warning("database log not checkpointed", extra={"log_fields": fields})
        finally:
            await self._in_checkpointer(self._hold.release)

    async def _restart_log(self, pages: int) -> bool:
        """Make checkpoints of a long log until nothing was written meanwhile, and start it over; False if that fails.

        If the log is far too long, writers wait until it has started over.
        """
        is_quiet = False
        for _ in range(TRIES):
            before = pages
            pages, copied = await self._in_checkpointer(self._checkpoint_held)
            is_quiet = before == pages == copied
            if is_quiet or pages > LONGEST_LOG:
                break
        if not is_quiet and pages <= LONGEST_LOG:
            return False
        async with self.turn():
            await self._in_checkpointer(self._checkpoint_wholly)
            # SQLite waits for the disk here, and not in the transaction of a call.
            await asyncio.get_running_loop().run_in_executor(self._thread, self._write_nothing)
        self._restarts = False
        return True

    async def _in_checkpointer(self, work: Callable[[], T]) -> T:
        """Run `work` in the thread that makes checkpoints, and return what it returns."""
        return await asyncio.get_running_loop().run_in_executor(self._checkpointer, work)

    def _checkpoint(self, how: str = "PASSIVE") -> tuple[int, int]:
        """Copy the log into the file; return how many pages the log has, and how many of them were copied."""
        self._checkpoints = self._checkpoints or self._location.connect(self._lock_seconds)
        ((_, pages, copied),) = self._checkpoints.execute(f"PRAGMA wal_checkpoint({how})").fetchall()
        return pages, copied

    def _checkpoint_held(self) -> tuple[int, int]:
        self._hold.take()
        return self._checkpoint()

    def _checkpoint_wholly(self) -> None:
        self._hold.release()
        self._checkpoint()

    def _truncate(self) -> None:
        self._hold.release()
        self._checkpoint("TRUNCATE")

    def _close_checkpointer(self) -> None:
        self._hold.close()
        if self._checkpoints is not None:
            self._checkpoints.close()

    def _write_nothing(self) -> None:
        self._open_for_thread().write_nothing()

    def _open_for_thread(self) -> LedgerConnection:
        if self._thread_connection is None:
            self._thread_connection = LedgerConnection(self._location.connect(self._lock_seconds))
        return self._thread_connection

    def _close_for_thread(self) -> None:
        if self._thread_connection is not None:
            self._thread_connection.close()
