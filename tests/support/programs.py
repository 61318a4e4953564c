"""Servers that are not ours, each a process of its own that a test can stop, freeze and bring back."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.support.waiting import wait_until

_SECONDS = 180.0


class Program:
    """One server on one port of the loopback, for as long as it is needed; what it says goes to `log`.

    Args:
        user: who runs it; the user of the tests if not given.
        environ: what its environment has beside that of the tests.
        stop_signal: what ends it without waiting for its clients.
    """

    def __init__(
        self,
        command: list[str],
        port: int,
        log: Path,
        *,
        user: str | None = None,
        stop_signal: int = signal.SIGTERM,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.port = port
        self._command = command
        self._log = log
        self._user = user
        self._stop_signal = stop_signal
        self._environ = {**os.environ, **(environ or {})}
        self._process: subprocess.Popen[bytes] | None = None

    def is_ready(self) -> bool:
        raise NotImplementedError

    def start(self) -> None:
        """Start it, on the data it had, and return when it answers."""
        who = {"user": self._user, "group": self._user, "extra_groups": []} if self._user else {}
        how = {"env": self._environ, "stdin": subprocess.DEVNULL, **who}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, **how)  # type: ignore[call-overload]
        wait_until(self._has_started, self._last_words, _SECONDS)

    def _has_started(self) -> bool:
        assert self._running.poll() is None, self._last_words()
        return self.is_ready()

    def _last_words(self) -> str:
        return self._log.read_text()[-4000:]

    def stop(self) -> None:
        """End it, and with it every connection."""
        self.resume()
        self._running.send_signal(self._stop_signal)
        self._running.wait(timeout=_SECONDS)
        self._process = None

    def pause(self) -> None:
        """Freeze it: connections stay open, and nothing answers."""
        self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal_all(signal.SIGCONT)

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """End it during the block."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Freeze it during the block."""
        self.pause()
        try:
            yield
        finally:
            self.resume()

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "it is not running"
        return self._process

    def _signal_all(self, number: int) -> None:
        for pid in tree(self._running.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def tree(pid: int) -> list[int]:
    """A process and its descendants, the parents first, so that a frozen parent makes no more of them."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return [pid]
    return [pid, *(one for child in children for one in tree(int(child)))]
