"""A process that serves, as the one that supervises it sees it."""

from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path

import uvicorn
from uvicorn.supervisors.multiprocess import Process

from proxy.server.draining import DrainingServer
from proxy.server.operations import OperationsListener

#: How long a new worker may take until it serves: on a busy machine it imports the program for many seconds.
STARTING_SECONDS = 120.0


class Worker(Process):
    """One process that serves.

    Attributes:
        served_since: when it was first seen to serve, by the monotonic clock; None if it never was.
        is_buried: whether it has died, and its end was waited for.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        sockets: list[socket.socket],
        operations: OperationsListener | None,
        metrics_folder: Path | None,
    ) -> None:
        self._operations = operations
        self._metrics_folder = metrics_folder
        self.served_since: float | None = None
        self.is_buried = False
        self._is_asked = False
        self._starts_until = time.monotonic() + STARTING_SECONDS
        super().__init__(config, sockets)

    def is_well(self, seconds: float) -> bool:
        """Return whether the worker lives, and answers within so many seconds, or has still time to start."""
        if self.served_since is None and time.monotonic() < self._starts_until and self.process.is_alive():
            if self._has_started():
                self.served_since = time.monotonic()
            return True
        if self.served_since is None and self.process.is_alive() and self.is_ready(seconds):
            self.served_since = time.monotonic()
        return self.is_alive(seconds)

    def _has_started(self) -> bool:
        """Ask whether it has started, and look for the answer without waiting.

        No question follows before the answer to the last one: a worker that hangs later would seem to answer.
        """
        try:
            if not self._is_asked:
                self.parent_conn.send(b"ping")
                self._is_asked = True
            if not self.parent_conn.poll():
                return False
            self._is_asked = False
            return bool(self.parent_conn.recv())
        except (OSError, EOFError):
            # It has died, which the next look finds.
            return False

    def is_serving(self, seconds: float) -> bool:
        """Return whether the worker says now that it serves; its answer to an earlier question does not count."""
        with contextlib.suppress(OSError, EOFError):
            if self._is_asked and self.parent_conn.poll(seconds):
                self.parent_conn.recv()
                self._is_asked = False
        return not self._is_asked and self.process.is_alive() and self.is_ready(seconds)

    def bury(self) -> None:
        """Kill it, if it has not died by itself, and wait for its end."""
        self.is_buried = True
        self.kill()
        self.join()

    @property
    def server(self) -> uvicorn.Server:
        if self._server is None:
            self._server = DrainingServer(self.config, self._operations, self._metrics_folder)
        return self._server
