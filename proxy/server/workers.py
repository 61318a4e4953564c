"""Several processes that share the listening socket, as uvicorn supervises them, each with our own server."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import time
from pathlib import Path

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors.multiprocess import Multiprocess

from proxy.server.draining import DrainingServer
from proxy.server.hangups import hangups_held, hold_hangups, release_hangups
from proxy.server.metrics_folder import metrics_folder
from proxy.server.open_files import file_limit, max_connections_within, raise_file_limit
from proxy.server.operations import OperationsListener, bind_operations
from proxy.server.options import uvicorn_options
from proxy.server.worker_process import Worker
from proxy.settings import Settings
from proxy.telemetry.worker_metrics import retire

LOOK_SECONDS = 0.1
#: A worker whose event loop hangs cannot end itself; it is killed so long after its drain.
GRACE_SECONDS = 1.0
#: How long a worker that serves may take to say so.
ANSWER_SECONDS = 1.0
#: A worker is replaced at once if it had served for this long, or was the first to die; its successors wait.
STEADY_SECONDS = 60.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, MOST_DOUBLINGS = 0.5, 15.0, 10
_log = logging.getLogger(__name__)


def run(factory: str, settings: Settings) -> int:
    """Serve the application that `factory` makes, in as many processes as are set; return the exit code.

    A single process ends by the signal that stopped it.
    """
    # Before the workers start: they inherit both.
    hold_hangups()
    raise_file_limit()
    _warn_of_few_files(settings.server.max_connections)
    config = uvicorn.Config(factory, factory=True, workers=settings.server.workers, **uvicorn_options(settings))
    try:
        operations = bind_operations(settings.server)
    except OSError as problem:
        fields = {"variables": "PROXY_OPS_HOST, PROXY_OPS_PORT", "problem": str(problem)}
        _log.error("operations address not bound", extra={"log_fields": fields})
        return STARTUP_FAILURE
    if config.workers > 1:
        with metrics_folder() as folder:
            workers = Workers(config, [config.bind_socket()], operations, folder)
            workers.run()
        return STARTUP_FAILURE if workers.has_failed else 0
    server = DrainingServer(config, operations)
    with contextlib.suppress(KeyboardInterrupt):
        server.run()
    return 0 if server.started else STARTUP_FAILURE


def _warn_of_few_files(wanted: int) -> None:
    files = file_limit()
    allowed = max_connections_within(files)
    if allowed < wanted:
        fields = {"open_files": files, "connections": allowed, "PROXY_MAX_CONNECTIONS": wanted}
        _log.warning("the limit of open files bounds the connections of a process", extra={"log_fields": fields})


class Backoff:
    """How long to wait before a worker is replaced: not at all at first, then ever longer while its successors die."""

    def __init__(self) -> None:
        self._deaths = 0
        self._due_at = 0.0

    @property
    def is_due(self) -> bool:
        return time.monotonic() >= self._due_at

    def count_death(self, worker: Worker) -> float:
        """Count the death of a worker, and return the seconds to wait after it."""
        now = time.monotonic()
        if worker.served_since is not None and now - worker.served_since >= STEADY_SECONDS:
            self._deaths = 0
        seconds = min(FIRST_PAUSE_SECONDS * 2 ** (self._deaths - 1), LONGEST_PAUSE_SECONDS) if self._deaths else 0.0
        self._deaths = min(self._deaths + 1, MOST_DOUBLINGS)
        self._due_at = now + seconds
        return seconds


class Workers(Multiprocess):
    """Starts the workers, replaces one that dies, and stops them: a signal drains them, a second one hurries them.

    `has_failed` tells after `run` that the application could not be started.
    """

    processes: list[Worker]  # type: ignore[assignment]

    def __init__(
        self,
        config: uvicorn.Config,
        sockets: list[socket.socket],
        operations: OperationsListener | None,
        metrics_folder: Path | None,
    ) -> None:
        super().__init__(config, sockets)
        self._operations = operations
        self._metrics_folder = metrics_folder
        self.has_failed = False
        self._hurries = False
        self._has_served = False
        self._backoffs = [Backoff() for _ in range(self.processes_num)]
        # `Multiprocess` heeds it from here on.
        release_hangups()

    def init_processes(self) -> None:
        self.processes = [self._start_worker() for _ in range(self.processes_num)]

    def _start_worker(self) -> Worker:
        worker = Worker(self.config, self.sockets, self._operations, self._metrics_folder)
        with hangups_held():
            worker.start()
        return worker

    def keep_subprocess_alive(self) -> None:
        for number, worker in enumerate(self.processes):
            if self.should_exit.is_set():
                return
            if worker.is_buried:
                if self._backoffs[number].is_due:
                    self.processes[number] = self._start_worker()
            elif worker.is_well(self.config.timeout_worker_healthcheck):
                self._has_served = self._has_served or worker.served_since is not None
            elif self.signal_queue:
                # Perhaps the worker heard the same, and has ended before this process came to look at it.
                return
            else:
                self._bury(number, worker)

    def _bury(self, number: int, worker: Worker) -> None:
        """End what is left of a worker that died or hangs, and decide what follows."""
        worker.bury()
        if self._metrics_folder is not None:
            retire(self._metrics_folder, worker.pid or 0)
        if (worker.exitcode or 0) > 0 and not self._is_served():
            # What no worker could start with is the configuration, and the next one would fail in the same way.
            self.has_failed = True
            self.should_exit.set()
            return
        seconds = self._backoffs[number].count_death(worker)
        fields = {"pid": worker.pid, "exit_code": worker.exitcode, "replaced_in_seconds": seconds}
        _log.error("worker died", extra={"log_fields": fields})

    def _is_served(self) -> bool:
        """Return whether a worker has served, or does now: each is asked again, as an answer may be a second old."""
        if not self._has_served:
            self._has_served = any(worker.is_serving(ANSWER_SECONDS) for worker in self._list_living())
        return self._has_served

    def handle_int(self) -> None:
        self._hurries = self.should_exit.is_set()
        self.should_exit.set()

    def handle_term(self) -> None:
        self.handle_int()

    def handle_hup(self) -> None:
        """Have each worker reload the configuration."""
        for worker in self._list_living():
            os.kill(worker.pid or 0, signal.SIGHUP)

    def handle_ttin(self) -> None:
        """Do nothing: how many workers there are is a setting."""

    handle_ttou = handle_ttin

    def _list_living(self) -> list[Worker]:
        return [worker for worker in self.processes if not worker.is_buried and worker.process.is_alive()]

    def terminate_all(self) -> None:
        # Connections would queue up on it, and be reset, when the last worker has closed its own.
        for one in self.sockets:
            one.close()
        if self._operations is not None:
            self._operations.close()
        for worker in self._list_living():
            worker.terminate()

    def join_all(self) -> None:
        kill_at = time.monotonic() + (self.config.timeout_graceful_shutdown or 0) + GRACE_SECONDS
        while living := self._list_living():
            living[0].process.join(LOOK_SECONDS)
            self.handle_signals()
            if time.monotonic() > kill_at:
                _log.error("workers killed", extra={"log_fields": {"workers": len(living)}})
                for worker in living:
                    worker.process.kill()
            elif self._hurries:
                self._hurries = False
                for worker in living:
                    os.kill(worker.pid or 0, signal.SIGINT)
