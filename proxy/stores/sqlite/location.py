"""Where a SQLite file is, and connections to it."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import tempfile
from typing import Any

from proxy.errors import StoreUnavailable
from proxy.stores.sqlite.processes import LivingProcesses
from proxy.telemetry.log_limit import LogLimit

#: `SqliteFile` makes checkpoints long before the log has this many pages, unless something is wrong.
#: What is deleted is overwritten: a name that is to be forgotten is in no free page either.
_PRAGMAS = "PRAGMA synchronous={}; PRAGMA foreign_keys=ON; PRAGMA wal_autocheckpoint=96000; PRAGMA secure_delete=ON;"
#: The mode of a file, and what it must not have: it holds whose jobs are whose.
_PRIVATE, _OTHERS = 0o600, 0o077
_log = logging.getLogger(__name__)


class SqliteLocation:
    """Where a SQLite file is, and how connections to it are made.

    Args:
        path: the file, which is made if there is none.
        is_durable: whether each commit waits for the disk, so that a power cut takes none of them.

    Attributes:
        processes: those that write calls to it.
    """

    def __init__(self, path: str, *, is_durable: bool = False) -> None:
        self.is_durable = is_durable
        self.processes = LivingProcesses(path)
        self._path = path
        self._pragmas = _PRAGMAS.format("FULL" if is_durable else "NORMAL")
        #: The file system and the number of the file that was opened first.
        self._identity: tuple[int, int] | None = None
        self._log_limit = LogLimit()

    def connect(self, lock_seconds: float, **options: Any) -> sqlite3.Connection:
        """Open a connection for one thread, which begins its transactions itself, in a mode that cannot deadlock: see
        `sql/sqlite`. The file's own setting, the write-ahead log, is made by the connections there.

        Raises:
            StoreUnavailable: the file is no longer where it was.
        """
        self.check()
        keep_private(self._path)
        connection: sqlite3.Connection = sqlite3.connect(
            self._path, isolation_level=None, timeout=lock_seconds, **options
        )
        try:
            connection.executescript(self._pragmas)
        except sqlite3.Error:
            connection.close()
            raise
        if self._identity is None:
            self._identity = self._look()
        return connection

    def check(self) -> None:
        """Find the file where it was opened first: elsewhere its connections write to what the next start misses.

        Raises:
            StoreUnavailable: it was moved, deleted or replaced.
        """
        if self._identity is not None and self._look() != self._identity:
            if self._log_limit.admits("moved"):
                _log.error("the database file was moved, deleted or replaced: put it back, or restart the proxy")
            raise StoreUnavailable("The proxy's database file is no longer in its place.")

    def check_room(self, size: int) -> None:
        """Write beside the file, to one without a name.

        Raises:
            OSError: the disk is full, or takes no writes.
        """
        with tempfile.TemporaryFile(dir=os.path.dirname(os.path.realpath(self._path))) as scratch:
            scratch.write(bytes(size))
            scratch.flush()

    def _look(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino


def keep_private(path: str) -> None:
    """Make a SQLite file that only its owner reads and writes, or make one so that is there.

    SQLite itself would go by the umask, and gives the files of its log, `-wal` and `-shm`, the mode of this one. One
    that is there is not opened: closing it would take away the locks that connections of this process have on it.

    Raises:
        OSError: it cannot be made, or is no file: the mode of a folder or a device stays as it is.
    """
    path = os.path.realpath(path)
    try:
        made = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, _PRIVATE)
    except FileExistsError:
        if not os.path.isfile(path):
            raise
        for name in (path, f"{path}-wal", f"{path}-shm"):
            _restrict(name)
    else:
        # The umask may have taken more away.
        os.fchmod(made, _PRIVATE)
        os.close(made)


def _restrict(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        if os.stat(path).st_mode & _OTHERS:
            try:
                os.chmod(path, _PRIVATE)
            except PermissionError:
                _log.warning("others can read the database, and its mode cannot be changed: it has another owner")
