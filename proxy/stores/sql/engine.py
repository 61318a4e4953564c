"""Connections to the database, made as this program needs them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
import tempfile
from functools import partial
from typing import Any

import aiosqlite
import orjson
from sqlalchemy import event
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from proxy import libpq
from proxy.errors import StoreUnavailable

#: How columns of JSON are written and read.
_JSON: dict[str, Any] = {
    "json_serializer": lambda document: orjson.dumps(document).decode(),
    "json_deserializer": orjson.loads,
}
#: The log is tidied up beside the writing, by `SqliteFile`; long before this many pages, unless something is wrong.
_SQLITE_PRAGMAS = "PRAGMA synchronous={}; PRAGMA foreign_keys=ON; PRAGMA wal_autocheckpoint=32000;"
#: The mode of a SQLite file, and what it must not have: it holds whose jobs are whose.
_PRIVATE, _OTHERS = 0o600, 0o077
#: How long the write lock of a SQLite file is waited for, and a connection to a server that is not there yet.
LOCK_SECONDS = 5.0
#: How long a server may take to answer a statement: a frozen one must not freeze callers.
ANSWER_SECONDS = 10.0
_log = logging.getLogger(__name__)


class SqliteLocation:
    """Where a SQLite file is, and how connections to it are made.

    Args:
        path: the file, which is made if there is none.
        is_durable: whether each commit waits for the disk, so that a power cut takes none of them.
    """

    def __init__(self, path: str, *, is_durable: bool = False) -> None:
        self.is_durable = is_durable
        self._path = path
        self._pragmas = _SQLITE_PRAGMAS.format("FULL" if is_durable else "NORMAL")
        #: The file system and the number of the file that was opened first.
        self._identity: tuple[int, int] | None = None

    def connect(self, lock_seconds: float, **options: Any) -> sqlite3.Connection:
        """Open a connection for one thread, which begins its transactions itself, in a mode that cannot deadlock: see
        `_begin_sqlite`. The file's own setting, the write-ahead log, is made by those of `create_engine`.

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


def create_engine(
    database_url: str,
    lock_seconds: float = LOCK_SECONDS,
    location: SqliteLocation | None = None,
    answer_seconds: float | None = ANSWER_SECONDS,
) -> AsyncEngine:
    """An engine for `sqlite:///…` or `postgresql://…`; connects lazily.

    Args:
        lock_seconds: how long to wait for a database that others keep busy.
        location: of a SQLite file, if it is shared with other connections.
        answer_seconds: how long PostgreSQL may take for a statement; None for as long as it needs.
    """
    if database_url.startswith("sqlite:"):
        location = location or sqlite_location(database_url)
        engine = create_async_engine(
            make_url(database_url).set(drivername="sqlite+aiosqlite"),
            connect_args={"async_creator_fn": partial(_open_sqlite, location, lock_seconds)},
            pool_size=5,
            max_overflow=0,
            hide_parameters=True,
            **_JSON,
        )
        event.listen(engine.sync_engine, "begin", _begin_sqlite)
        return engine
    # Imported here: a proxy on SQLite does without it.
    from proxy.stores.sql.postgres import create_postgres_engine

    return create_postgres_engine(libpq.parse(database_url), lock_seconds, answer_seconds, **_JSON)


def sqlite_location(database_url: str, *, is_durable: bool = False) -> SqliteLocation:
    return SqliteLocation(make_url(database_url).database or "", is_durable=is_durable)


class _SqliteConnection(aiosqlite.Connection):
    """One whose worker may be stopped twice: by a close, and by the cancellation that overtakes it.

    The second word would be put in a queue that is not read any more, and its caller would wait for ever.
    """

    _stopped: asyncio.Future[Any] | None = None

    def stop(self) -> asyncio.Future[Any] | None:
        if self._running:
            self._stopped = super().stop()
        return self._stopped


async def _open_sqlite(
    location: SqliteLocation, lock_seconds: float, _database: str, **options: Any
) -> aiosqlite.Connection:
    """A connection that is ready for use, or gone before its failure is raised."""
    connection = _SqliteConnection(lambda: location.connect(lock_seconds, **options), 64)
    # No end of the program waits for this thread (SQLAlchemy's own way to connect says the same).
    connection._thread.daemon = True
    try:
        await connection
        await _write_ahead(connection, lock_seconds)
    except BaseException:
        connection.stop()
        # The thread has a last word for the event loop, which a command closes next: that would be a traceback.
        await asyncio.to_thread(connection._thread.join)
        raise
    return connection


def keep_private(path: str) -> None:
    """Make a SQLite file that only its owner reads and writes, or make one so that is there.

    SQLite itself would go by the umask, and gives the files of its log, `-wal` and `-shm`, the mode of this one. One
    that is there is not opened: closing it would take away the locks that connections of this process have on it.

    Raises:
        OSError: it cannot be made.
    """
    path = os.path.realpath(path)
    try:
        made = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, _PRIVATE)
    except FileExistsError:
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


async def _write_ahead(connection: aiosqlite.Connection, lock_seconds: float) -> None:
    # For this one statement SQLite does not wait for a lock: of those that open a new file at once, one succeeds.
    give_up_at = asyncio.get_running_loop().time() + lock_seconds
    while True:
        try:
            await connection.execute_fetchall("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or asyncio.get_running_loop().time() > give_up_at:
                raise
        await asyncio.sleep(0.02)


def _begin_sqlite(connection: Any) -> None:
    # A transaction that reads and then writes would fail at once when another process writes between the two;
    # IMMEDIATE takes the write lock at the start, and waits for it.
    mode = "DEFERRED" if connection.get_execution_options().get("read_only") else "IMMEDIATE"
    connection.exec_driver_sql(f"BEGIN {mode}")
