"""Copies of a SQLite file that others write to: whole, of one moment, and never half."""

from __future__ import annotations

import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from proxy.stores.sqlite.backup import BackupFailed, back_up
from proxy.stores.sqlite.location import SqliteLocation

ROWS = 2_000


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = str(tmp_path / "a # file?.db")
    with closing(SqliteLocation(path).connect(5)) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY, note TEXT)")
        database.executemany("INSERT INTO notes (note) VALUES (?)", [("x" * 500,)] * ROWS)
    return path


def count(path: Path) -> int:
    with closing(sqlite3.connect(path)) as database:
        (found,) = database.execute("SELECT count(*) FROM notes WHERE note IS NOT NULL").fetchone()
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    return int(found)


def test_writes_during_a_copy_neither_wait_nor_are_in_it(source: str, tmp_path: Path) -> None:
    """A copy that starts again after each change of another connection would never end here."""
    steps: list[tuple[int, int]] = []
    with closing(sqlite3.connect(source, timeout=0, isolation_level=None)) as writer:

        def write(copied: int, pages: int) -> None:
            assert len(steps) < 1_000, "the copy begins again and again"
            steps.append((copied, pages))
            writer.execute("INSERT INTO notes (note) VALUES ('later')")
            writer.execute("UPDATE notes SET note = NULL WHERE id = ?", (len(steps),))

        back_up(source, tmp_path / "copy.db", write, pages_at_once=10)
        changed = len(steps)
    assert changed > 20 and steps == sorted(steps) and steps[-1][0] == steps[-1][1]
    assert count(tmp_path / "copy.db") == ROWS
    with closing(sqlite3.connect(source)) as database:
        assert database.execute("SELECT count(*) FROM notes WHERE note = 'later'").fetchone() == (changed,)


def test_only_its_owner_can_read_a_copy(source: str, tmp_path: Path) -> None:
    back_up(source, tmp_path / "copy.db", lambda _copied, _pages: None)
    assert stat.S_IMODE((tmp_path / "copy.db").stat().st_mode) == 0o600
    assert not list(tmp_path.glob("*.partial*"))


def test_an_existing_copy_is_not_overwritten(source: str, tmp_path: Path) -> None:
    (tmp_path / "copy.db").write_text("precious")
    with pytest.raises(BackupFailed, match="is there already"):
        back_up(source, tmp_path / "copy.db", lambda _copied, _pages: None)
    assert (tmp_path / "copy.db").read_text() == "precious"


def test_a_copy_that_breaks_off_leaves_nothing(source: str, tmp_path: Path) -> None:
    def give_up(_copied: int, _pages: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        back_up(source, tmp_path / "copy.db", give_up, pages_at_once=10)
    assert not list(tmp_path.glob("copy*"))


def test_a_damaged_database_is_no_backup(source: str, tmp_path: Path) -> None:
    with closing(sqlite3.connect(source)) as database:
        # An index that no longer has what its table has: each page by itself can be read.
        database.execute("CREATE INDEX ix_notes ON notes (note)")
        database.execute("PRAGMA writable_schema = ON")
        database.execute("UPDATE sqlite_master SET sql = 'CREATE INDEX ix_notes ON notes (id)' WHERE name = 'ix_notes'")
        database.commit()
    with pytest.raises(BackupFailed, match="the copy is damaged"):
        back_up(source, tmp_path / "copy.db", lambda _copied, _pages: None)
    assert not list(tmp_path.glob("copy*"))


def test_a_copy_that_cannot_be_made_is_refused_with_the_reason(source: str, tmp_path: Path) -> None:
    with pytest.raises(BackupFailed, match="there is no database yet"):
        back_up(str(tmp_path / "none.db"), tmp_path / "copy.db", lambda _copied, _pages: None)
    assert not (tmp_path / "none.db").exists()
    with pytest.raises(BackupFailed, match="cannot be written"):
        back_up(source, tmp_path / "nowhere" / "copy.db", lambda _copied, _pages: None)
    (tmp_path / "text.db").write_text("no database" * 1000)
    with pytest.raises(BackupFailed, match="not a database"):
        back_up(str(tmp_path / "text.db"), tmp_path / "copy.db", lambda _copied, _pages: None)


def test_a_database_that_cannot_be_read_is_named_and_not_the_copy(tmp_path: Path) -> None:
    source, copy = tmp_path / "notes.txt", tmp_path / "copy.db"
    source.write_text("no database " * 100)
    with pytest.raises(BackupFailed, match=f"^{source} cannot be copied .file is not a database.$"):
        back_up(str(source), copy, lambda _copied, _pages: None)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
