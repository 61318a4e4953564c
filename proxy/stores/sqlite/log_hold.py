"""A hold on a SQLite file's log, which does not begin again while there is one.

SQLite begins its log from the start again with a transaction that finds the whole log in the file, and no reader that
needs it. It waits for the disk then. Who writes beside a hold does not: the log only grows.
"""

from __future__ import annotations

import sqlite3

from proxy.stores.sqlite.location import SqliteLocation


class LogHold:
    """A reader that needs the log. Opens nothing until it is used; each call comes from the same thread."""

    def __init__(self, location: SqliteLocation, lock_seconds: float) -> None:
        self._location = location
        self._lock_seconds = lock_seconds
        #: The one that holds last: two take turns, so that a later hold begins before the earlier one ends.
        self._connections: list[sqlite3.Connection] = []

    def take(self) -> None:
        """Hold the log as it is now. What was written until now can be brought into the file.

        It does not hold a log that is in the file as a whole.
        """
        while len(self._connections) < 2:
            self._connections.append(self._location.connect(self._lock_seconds))
        later, earlier = self._connections
        later.execute("BEGIN")
        # Its snapshot is made with the first statement.
        later.execute("SELECT count(*) FROM sqlite_master").fetchone()
        _end(earlier)
        self._connections = [earlier, later]

    def release(self) -> None:
        for connection in self._connections:
            _end(connection)

    def close(self) -> None:
        for connection in self._connections:
            connection.close()


def _end(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        connection.execute("ROLLBACK")
