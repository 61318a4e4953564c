"""Several processes that share the listening socket, as uvicorn supervises them, each with our own server."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import time

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors.multiprocess import Multiprocess, Process

from proxy.server.draining import DrainingServer
from proxy.server.open_files import file_limit, max_connections_within, raise_file_limit
from proxy.server.operations import OperationsListener, bind_operations
from proxy.server.options import uvicorn_options
from proxy.settings import Settings

LOOK_SECONDS = 0.1
#: A worker whose event loop hangs cannot end itself; it is killed so long after its drain.
GRACE_SECONDS = 1.0
_log = logging.getLogger(__name__)


def run(factory: str, settings: Settings) -> int:
    """Serve the application that `factory` makes, in as many processes as are set; the exit code.

    A single process ends by the signal that stopped it.
    """
    # Before the workers start: they inherit it.
    raise_file_limit()
    _warn_of_few_files(settings.server.max_connections)
    config = uvicorn.Config(factory, factory=True, workers=settings.server.workers, **uvicorn_options(settings))
    try:
        operations = bind_operations(settings.server)
    except OSError as problem:
        _log.error("PROXY_OPS_HOST and PROXY_OPS_PORT: the address cannot be bound: %s", problem)
        return STARTUP_FAILURE
    if config.workers > 1:
        workers = Workers(config, [config.bind_socket()], operations)
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
        facts = {"open_files": files, "connections": allowed, "PROXY_MAX_CONNECTIONS": wanted}
        _log.warning("the limit of open files bounds the connections of a process", extra={"facts": facts})


class Worker(Process):
    def __init__(
        self, config: uvicorn.Config, sockets: list[socket.socket], operations: OperationsListener | None
    ) -> None:
        self._operations = operations
        super().__init__(config, sockets)

    @property
    def server(self) -> uvicorn.Server:
        if self._server is None:
            self._server = DrainingServer(self.config, self._operations)
        return self._server


class Workers(Multiprocess):
    """Starts the workers, replaces one that dies, and stops them: a signal drains them, a second one hurries them.

    `has_failed` tells after `run` that the application could not be started.
    """

    def __init__(
        self, config: uvicorn.Config, sockets: list[socket.socket], operations: OperationsListener | None
    ) -> None:
        super().__init__(config, sockets)
        self._operations = operations
        self.has_failed = False
        self._hurries = False

    def init_processes(self) -> None:
        self.processes = [self._started() for _ in range(self.processes_num)]

    def _started(self) -> Process:
        worker = Worker(self.config, self.sockets, self._operations)
        worker.start()
        return worker

    def keep_subprocess_alive(self) -> None:
        for number, worker in enumerate(self.processes):
            if self.should_exit.is_set() or worker.is_alive(timeout=self.config.timeout_worker_healthcheck):
                continue
            if self.signal_queue:
                # Perhaps the worker heard the same, and has ended before this process came to look at it.
                return
            worker.kill()
            worker.join()
            if worker.exitcode == STARTUP_FAILURE:
                # It would fail in the same way again and again.
                self.has_failed = True
                self.should_exit.set()
                return
            _log.error("worker %s died and is replaced", worker.pid)
            self.processes[number] = self._started()

    def handle_int(self) -> None:
        self._hurries = self.should_exit.is_set()
        self.should_exit.set()

    def handle_term(self) -> None:
        self.handle_int()

    def handle_hup(self) -> None:
        """Nothing: replicas are restarted one after the other, workers together."""

    handle_ttin = handle_ttou = handle_hup

    def terminate_all(self) -> None:
        # Connections would queue up on it, and be reset, when the last worker has closed its own.
        for one in self.sockets:
            one.close()
        if self._operations is not None:
            self._operations.close()
        super().terminate_all()

    def join_all(self) -> None:
        kill_at = time.monotonic() + (self.config.timeout_graceful_shutdown or 0) + GRACE_SECONDS
        while living := [worker for worker in self.processes if worker.process.is_alive()]:
            living[0].process.join(LOOK_SECONDS)
            self.handle_signals()
            if time.monotonic() > kill_at:
                _log.error("%d workers hang and are killed", len(living))
                for worker in living:
                    worker.process.kill()
            elif self._hurries:
                self._hurries = False
                for pid in filter(None, (worker.pid for worker in living)):
                    os.kill(pid, signal.SIGINT)
