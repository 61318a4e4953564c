"""A SQLite file and those of this process who write to it.

The ledger writes from the event loop itself: nothing is waited for there but the system's cache of the file, as the log
that SQLite writes ahead goes to the disk when it is tidied up, and handing a transaction to a thread and back takes
several times as long as the transaction. What can take long is left to a thread: to wait for the lock that another
process has, to change many rows, to tidy up the log, and the transaction after that. It begins the log from the start
again, and SQLite waits for the disk before it overwrites what may still be needed after a power cut. While the log is
tidied up, a reader holds it, so that it cannot begin again meanwhile.
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

#: Transactions after which the log is tidied up beside the writing; each writes some pages.
TIDY_AFTER = 200
#: As many of them write what a transaction of many rows writes. One that removes old rows counts less: the fewer
#: pages the log brings into the file twice and the rarer calls meet a busy disk, the better, and nothing is lost if a
#: power cut brings the rows back.
MANY_ROWS, OLD_ROWS = 10, 3
#: Pages of four kilobytes. A log that grows while it is tidied up never starts over: from the first length on it is
#: tidied up again and again, until nothing was written meanwhile, but not more often than this.
LONG_LOG, TRIES = 16_000, 8
#: From this length on the log is held for the few milliseconds that the rest takes.
LONGEST_LOG = 24_000
#: What a call writes to the log, and more: the bytes that a disk must have room for.
ROOM = 65_536
T = TypeVar("T")
_log = logging.getLogger(__name__)


class SqliteFile:
    """Opens nothing until it is used.

    Only one connection can write. Those of a process take turns here in the order of their arrival: the file's own
    lock goes to the process that looks at the right moment, and under load some would look in vain for too long.
    """

    def __init__(self, location: SqliteLocation, lock_seconds: float) -> None:
        self._location = location
        self._lock_seconds = lock_seconds
        self._turn = asyncio.Lock()
        self._written = 0
        #: The ledger's transactions so far.
        self.calls = 0
        self._tidying: asyncio.Task[None] | None = None
        #: Whether the next transaction may find that the log begins again.
        self._begins_again = False
        self._thread = ThreadPoolExecutor(1, "fal-proxy-sqlite")
        self._checkpointer = ThreadPoolExecutor(1, "fal-proxy-checkpoint")
        self._here: LedgerConnection | None = None
        self._there: LedgerConnection | None = None
        self._checkpoints: sqlite3.Connection | None = None
        self._hold = LogHold(location, lock_seconds)

    @asynccontextmanager
    async def turn(self, transactions: int = 1) -> AsyncIterator[None]:
        """Wait for a turn, in which nothing else in this process writes.

        Args:
            transactions: how many of them write as much as is about to be written.

        Raises:
            TimeoutError: the others do not come to an end.
        """
        await self._take_turn()
        try:
            yield
        finally:
            self._end_turn(transactions)

    async def run(self, work: Callable[[LedgerTransaction], T]) -> T:
        """Commit `work`, and return what it returns.

        Raises:
            sqlite3.Error, TimeoutError: it is not.
        """
        # As `turn` does, which costs every call more than the rest of this.
        await self._take_turn()
        self.calls += 1
        try:
            if self._location.is_durable or self._begins_again:
                # Its commit waits for the disk, which the event loop must not.
                return await self._run_patiently(work)
            try:
                # Opening it waits too, while another process opens or closes the file's log.
                self._here = self._here or LedgerConnection(self._location.connect(0))
                self._here.begin()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                    raise
                return await self._run_patiently(work)
            return self._here.commit(work)
        finally:
            self._end_turn()

    async def change(self, work: Callable[[sqlite3.Connection], T], transactions: int) -> T:
        """Commit `work` in a thread, and return what it returns: a transaction beside those of the ledger.

        Raises:
            sqlite3.Error, TimeoutError: it is not.
        """
        async with self.turn(transactions):
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._change, work)

    async def wait_until_tidy(self) -> None:
        """Wait while the log is tidied up, if it is now: it takes as long as the disk is busy."""
        if self._tidying is not None:
            # Not awaited itself: it goes on if this is cancelled.
            await asyncio.wait({self._tidying})

    async def truncate_log(self) -> None:
        """Bring the whole log into the file and empty it, unless a reader needs it: then as much as can be."""
        # Before its turn: what tidies up a long log takes one too.
        await self.wait_until_tidy()
        async with self.turn():
            self._begins_again = True
            await self._beside(self._truncate)

    async def try_out(self, work: Callable[[LedgerTransaction], object]) -> None:
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
        # After the work of one who was cancelled meanwhile.
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close_there)
        await self._beside(self._close_beside)
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
        if self._written >= TIDY_AFTER:
            self._start_tidying()

    async def _run_patiently(self, work: Callable[[LedgerTransaction], T]) -> T:
        loop = asyncio.get_running_loop()
        done, has_written = await loop.run_in_executor(self._thread, self._patiently, work)
        if has_written and not self._is_tidying:
            self._begins_again = False
        return done

    def _patiently(self, work: Callable[[LedgerTransaction], T]) -> tuple[T, bool]:
        """What `work` returns, and whether it has changed a row."""
        connection = self._of_the_thread()
        connection.begin()
        changes = connection.changes
        return connection.commit(work), connection.changes > changes

    def _change(self, work: Callable[[sqlite3.Connection], T]) -> T:
        connection = self._of_the_thread()
        connection.begin()
        return connection.change(work)

    def _take_back(self, work: Callable[[LedgerTransaction], object]) -> None:
        self._location.check()
        connection = self._of_the_thread()
        connection.begin()
        connection.take_back(work)
        self._location.check_room(ROOM)

    @property
    def _is_tidying(self) -> bool:
        return self._tidying is not None and not self._tidying.done()

    def _start_tidying(self) -> None:
        if not self._is_tidying:
            self._written = 0
            self._tidying = asyncio.create_task(self._tidy())

    async def _tidy(self) -> None:
        try:
            pages, tidied = await self._beside(self._checkpoint_held)
            if pages > LONG_LOG and await self._begin_log_again(pages):
                return
            # Before it is released.
            self._begins_again = pages == tidied
        except (sqlite3.Error, TimeoutError) as problem:
            # It is tried again, and a writer that makes the log far too long does it itself (see `SqliteLocation`).
            self._begins_again = True
            fields = {"problem": type(problem).__name__}
            _log.warning("database log not checkpointed", extra={"log_fields": fields})
        finally:
            await self._beside(self._hold.release)

    async def _begin_log_again(self, pages: int) -> bool:
        """Tidy up a long log until nothing was written meanwhile, and begin it again; False if that does not come.

        Calls are kept from a log that is far too long until it has begun again.
        """
        is_quiet = False
        for _ in range(TRIES):
            before = pages
            pages, tidied = await self._beside(self._checkpoint_held)
            is_quiet = before == pages == tidied
            if is_quiet or pages > LONGEST_LOG:
                break
        if not is_quiet and pages <= LONGEST_LOG:
            return False
        async with self.turn():
            await self._beside(self._checkpoint_wholly)
            # SQLite waits for the disk now: better here than in the transaction of a call.
            await asyncio.get_running_loop().run_in_executor(self._thread, self._write_nothing)
        self._begins_again = False
        return True

    async def _beside(self, work: Callable[[], T]) -> T:
        """What `work` returns in the thread that tidies up."""
        return await asyncio.get_running_loop().run_in_executor(self._checkpointer, work)

    def _checkpoint(self, how: str = "PASSIVE") -> tuple[int, int]:
        """Bring what the log says into the file; tell how many pages the log has, and how many are in the file."""
        self._checkpoints = self._checkpoints or self._location.connect(self._lock_seconds)
        ((_, pages, tidied),) = self._checkpoints.execute(f"PRAGMA wal_checkpoint({how})").fetchall()
        return pages, tidied

    def _checkpoint_held(self) -> tuple[int, int]:
        self._hold.take()
        return self._checkpoint()

    def _checkpoint_wholly(self) -> None:
        self._hold.release()
        self._checkpoint()

    def _truncate(self) -> None:
        self._hold.release()
        self._checkpoint("TRUNCATE")

    def _close_beside(self) -> None:
        self._hold.close()
        if self._checkpoints is not None:
            self._checkpoints.close()

    def _write_nothing(self) -> None:
        self._of_the_thread().write_nothing()

    def _of_the_thread(self) -> LedgerConnection:
        if self._there is None:
            self._there = LedgerConnection(self._location.connect(self._lock_seconds))
        return self._there

    def _close_there(self) -> None:
        if self._there is not None:
            self._there.close()
