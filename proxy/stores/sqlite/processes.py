"""The processes that write calls to a SQLite file. Each keeps a file locked beside it for as long as it lives.

The system releases the lock when the process ends, also by `kill -9`, and not while it is only frozen. So another one
knows at once that it is gone, without a sign of life that may be late.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets


class LivingProcesses:
    """Where this process shows that it lives, and looks who else does.

    Args:
        path: of the SQLite file.
    """

    def __init__(self, path: str) -> None:
        # One folder, also for processes that reach the file by different links.
        self._folder = f"{os.path.realpath(path)}-processes"
        self._name = ""
        self._lock: int | None = None

    def join(self) -> None:
        """Show from now on that this process lives.

        Raises:
            OSError: the folder of the file takes no more files.
        """
        if self._lock is not None:
            return
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        while self._lock is None:
            name = secrets.token_hex(8)
            made = os.open(self._path(name), os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
            fcntl.flock(made, fcntl.LOCK_EX)
            if os.fstat(made).st_nlink:
                self._name, self._lock = name, made
            else:
                # Before it was locked, another process took it for that of a dead one.
                os.close(made)

    def is_alone(self) -> bool:
        """Return whether no other process lives that joined; False while this one has not joined.

        Raises:
            OSError: the folder cannot be read.
        """
        if self._lock is None:
            return False
        return not [name for name in os.listdir(self._folder) if name != self._name and self._is_alive(name)]

    def leave(self) -> None:
        """Show that this process writes no more calls."""
        if self._lock is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path(self._name))
            os.close(self._lock)
            self._lock = None

    def _is_alive(self, name: str) -> bool:
        """Return whether a process holds its lock; the file of a dead one is removed."""
        try:
            found = os.open(self._path(name), os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        else:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path(name))
            return False
        finally:
            os.close(found)

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, name)
