"""A hold on the write-ahead log of a SQLite file, which keeps SQLite from starting the log over.

When the whole log has been copied into the file and no reader needs it, SQLite's next write transaction starts the log
over (sqlite.org/wal.html), and waits for the disk to do so. While a reader holds the log, it only grows, and writes do
not wait.
"""

from __future__ import annotations

import sqlite3

from proxy.stores.sqlite.location import SqliteLocation


class LogHold:
    """A reader that needs the log.

    It opens the file when it is first used, and has to be used from one thread.

    Args:
        lock_seconds: how long to wait for a lock of the file.
    """

    def __init__(self, location: SqliteLocation, lock_seconds: float) -> None:
        self._location = location
        self._lock_seconds = lock_seconds
        #: Two that take turns, so that a later hold begins before the earlier one ends; the last one holds.
        self._connections: list[sqlite3.Connection] = []

    def take(self) -> None:
        """Hold the log as it is now, instead of as it was; what was written until now can be copied into the file.

        A log that has been copied as a whole is not held.
        """
        while len(self._connections) < 2:
            self._connections.append(self._location.connect(self._lock_seconds))
        later, earlier = self._connections
        later.execute("BEGIN")
        # SQLite makes the snapshot with the first statement that reads.
        later.execute("SELECT count(*) FROM sqlite_master").fetchone()
        _end(earlier)
        self._connections = [earlier, later]

    def release(self) -> None:
        """Let SQLite start the log over."""
        for connection in self._connections:
            _end(connection)

    def close(self) -> None:
        for connection in self._connections:
            connection.close()


def _end(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        connection.execute("ROLLBACK")
