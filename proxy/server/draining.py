"""uvicorn as this program runs it: an end that loses no answer.

uvicorn itself stops listening at the signal, and ends the application while streams still run. Here, at the signal:

    drain       it listens on, so that new work is refused with an answer, and polls of what runs are answered
    close       once nothing is in flight: what waits in the backlog is taken, then nothing more
    cut         if time ran out before: calls are cancelled; streams say goodbye, and all book what they may have used
    shut down   the application, when no call is left
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import multiprocessing
import select
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import uvicorn

from proxy.drain import Drain
from proxy.listeners import LISTENER, OPERATIONS
from proxy.server.garbage import FrozenGarbage
from proxy.server.hangups import release_hangups
from proxy.server.operations import OperationsListener

LOOK_SECONDS = 0.02
#: uvicorn's ticks in a second.
TICKS = 10
#: A request may be on its way over a connection that was accepted last.
LAST_REQUEST_SECONDS = 0.25
_log = logging.getLogger(__name__)


class DrainingServer(uvicorn.Server):
    """Serves an application whose lifespan hands over its `Drain` as the state's `drain`.

    Args:
        operations: the listener for operators, which drains with the public one.
        metrics_folder: where the metrics of several workers meet.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        operations: OperationsListener | None = None,
        metrics_folder: Path | None = None,
    ) -> None:
        super().__init__(config)
        self._operations = operations
        self._metrics_folder = metrics_folder
        self._frozen = FrozenGarbage()

    async def on_tick(self, counter: int) -> bool:
        if counter % TICKS == 0:
            self._frozen.look()
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._metrics_folder is not None:
            await self.lifespan.state["metrics"].share(self._metrics_folder)
        if self._operations is not None:
            self.servers.append(await self._listen_to_operators(self._operations))
        if (reload := self.lifespan.state.get("reload")) is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
            release_hangups()
        if (supervisor := multiprocessing.parent_process()) is not None:
            asyncio.get_running_loop().add_reader(supervisor.sentinel, self._stop_without, supervisor.sentinel)

    def _stop_without(self, sentinel: int) -> None:
        """Stop as a signal would: nothing is left to replace this worker, or to end it."""
        asyncio.get_running_loop().remove_reader(sentinel)
        _log.error("the supervisor of the workers is gone")
        self.should_exit = True

    async def _listen_to_operators(self, operations: OperationsListener) -> asyncio.Server:
        connect = functools.partial(
            operations.protocol, self.config, self.server_state, {**self.lifespan.state, LISTENER: OPERATIONS}
        )
        server = await asyncio.get_running_loop().create_server(connect, sock=operations.socket)
        fields = dict(zip(("host", "port"), operations.socket.getsockname()[:2], strict=True))
        _log.info("listening to operators", extra={"log_fields": fields})
        return server

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # A worker may hear one Ctrl-C twice, from the terminal and from its parent; to hurry, the parent says SIGINT.
        is_second = self.should_exit and (sig == signal.SIGINT or self.config.workers == 1)
        self.force_exit = self.force_exit or is_second
        self.should_exit = True
        if sig not in self._captured_signals:
            self._captured_signals.append(sig)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        drain: Drain = self.lifespan.state["drain"]
        drain.start()
        fields = {"calls": len(self.server_state.tasks), "seconds_left": round(drain.seconds_left(), 1)}
        _log.info("drain started", extra={"log_fields": fields})
        await self._until_idle(drain)
        await self._stop_listening(sockets or [])
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(drain.over.wait(), LAST_REQUEST_SECONDS)
        for connection in list(self.server_state.connections):
            # Closes those that are idle; the others close with their answer, so that nothing new comes from here on.
            connection.shutdown()
        await self._until_idle(drain)
        drain.end()
        await self._cut(drain.settling_seconds / 2)
        try:
            await asyncio.wait_for(self.lifespan.shutdown(), drain.settling_seconds / 2)
        except TimeoutError:
            _log.error("stores did not close in time")
        if self._metrics_folder is not None:
            await self.lifespan.state["metrics"].unshare()

    async def _until_idle(self, drain: Drain) -> None:
        """Wait until no call is in flight, or time is over. Connections that are only kept open do not count."""
        while self.server_state.tasks and not drain.over.is_set():
            if self.force_exit:
                drain.end()
            await asyncio.sleep(LOOK_SECONDS)

    async def _stop_listening(self, sockets: Sequence[socket.socket]) -> None:
        """Take what waits to be accepted, which closing would reset, and close."""
        backlog = select.poll()
        for server in self.servers:
            for listener in server.sockets:
                backlog.register(listener.fileno(), select.POLLIN)
        for _ in range(self.config.backlog):
            if not backlog.poll(0):
                break
            await asyncio.sleep(0)
        for server in self.servers:
            server.close()
        for one in sockets:
            one.close()

    async def _cut(self, seconds: float) -> None:
        """Cancel what still runs, and wait while each call tells its caller, and books what it may have used."""
        if left := set(self.server_state.tasks):
            _log.warning("calls cut", extra={"log_fields": {"calls": len(left)}})
            for task in left:
                task.cancel()
            await asyncio.wait(left, timeout=seconds)
