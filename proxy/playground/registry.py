"""The running `fal-proxy dev`s of this user, so that commands find their database without a setting.

Each writes a file into a folder that only its user can open, and holds a lock on it for as long as it lives: a process
that was killed leaves a file without a lock, which counts for nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import orjson

#: Not below TMPDIR: another terminal may have another one.
_FOLDER = Path("/tmp") / f"fal-proxy-dev-{os.getuid()}"


class RunningDev(NamedTuple):
    """A `dev` that runs.

    Attributes:
        folder: where it was started.
    """

    url: str
    database_url: str
    folder: str


@contextlib.contextmanager
def register(dev: RunningDev) -> Iterator[None]:
    """Let commands find a `dev` until the block ends, if there is a private place to write it down."""
    if not _make_private():
        yield
        return
    path = _FOLDER / f"{os.getpid()}.json"
    unfinished = path.with_suffix(".new")
    with unfinished.open("wb") as file:
        # Locked before it can be found.
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(orjson.dumps(dev._asdict()))
        file.flush()
        unfinished.rename(path)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def find_running(folder: str) -> list[RunningDev]:
    """Find the `dev`s that run: those that were started in `folder`, or all of them if there is none."""
    paths = sorted(_FOLDER.glob("*.json")) if _is_private() else []
    found = [dev for dev in map(_read, paths) if dev is not None]
    return [dev for dev in found if dev.folder == folder] or found


def _read(path: Path) -> RunningDev | None:
    """Read the file of a running `dev`; remove the file of one that has ended."""
    try:
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return RunningDev(**orjson.loads(file.read()))
            path.unlink(missing_ok=True)
    except (OSError, TypeError, ValueError):
        pass
    return None


def _make_private() -> bool:
    """Make the folder if there is none; false if another user owns it or can open it."""
    with contextlib.suppress(OSError):
        _FOLDER.mkdir(mode=0o700, exist_ok=True)
    return _is_private()


def _is_private() -> bool:
    try:
        found = _FOLDER.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
