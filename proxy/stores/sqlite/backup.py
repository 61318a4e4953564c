"""A consistent copy of a SQLite file that others write to meanwhile."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

from proxy.stores.sqlite.location import keep_private

#: Pages of four kilobytes that are copied between two reports.
PAGES_AT_ONCE = 1_000
Report = Callable[[int, int], None]


class BackupFailed(Exception):
    """There is no copy; says why."""


class _SourceUnreadable(sqlite3.DatabaseError):
    """The database itself cannot be read."""


def back_up(source: str, target: Path, report: Report, pages_at_once: int = PAGES_AT_ONCE) -> None:
    """Copy a SQLite file to a new file that only its owner reads.

    The copy is what one transaction sees, from its start to its end: neither does it hold those who write, nor does it
    begin again when they do. It has its name when it is whole and on the disk.

    Args:
        report: called with the pages that are copied, and with how many there are.

    Raises:
        BackupFailed: there is no database, there is a file of that name, or the copy cannot be made.
    """
    if not os.path.isfile(source):
        raise BackupFailed("there is no database yet")
    # Not by Path, which raises errors for a name that is too long.
    if os.path.exists(target):
        raise BackupFailed(f"{target} is there already; give each backup a name of its own")
    partial = target.with_name(f"{target.name}.partial")
    try:
        keep_private(str(partial))
        with (
            contextlib.closing(sqlite3.connect(f"file:{_quote(source)}?mode=ro", uri=True)) as origin,
            contextlib.closing(sqlite3.connect(partial)) as copy,
        ):
            _copy(origin, copy, report, pages_at_once)
        _sync(partial)
        partial.rename(target)
    except (OSError, sqlite3.Error) as problem:
        raise BackupFailed(f"{_find_fault(problem, source, target)} ({problem})") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _copy(origin: sqlite3.Connection, copy: sqlite3.Connection, report: Report, pages_at_once: int) -> None:
    origin.isolation_level = None
    # Held open, so that each step copies the same state: otherwise a change by another one begins the copy again.
    try:
        origin.execute("BEGIN")
        origin.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error as problem:
        raise _SourceUnreadable(str(problem)) from None
    origin.backup(copy, pages=pages_at_once, progress=lambda _status, left, total: report(total - left, total))
    origin.execute("ROLLBACK")
    if copy.execute("PRAGMA integrity_check").fetchall() != [("ok",)]:
        raise _SourceUnreadable("the copy is damaged, so the database may be")


def _find_fault(problem: Exception, source: str, target: Path) -> str:
    """Return which of the two files is at fault."""
    # A copy that is being written has been empty, so it is neither of these.
    is_damaged = getattr(problem, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
    if is_damaged or isinstance(problem, _SourceUnreadable):
        return f"{source} cannot be copied"
    return f"{target} cannot be written"


def _quote(path: str) -> str:
    return path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
