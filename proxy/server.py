"""uvicorn as this program runs it: a bounded head of requests, and an end that loses no answer.

uvicorn itself stops listening at the signal, and ends the application while streams still run. Here, at the signal:

    drain       it listens on, so that new work is refused with an answer, and polls of what runs are answered
    close       once nothing is in flight: what waits in the backlog is taken, then nothing more
    cut         if time ran out before: calls are cancelled; streams say goodbye, and all book what they may have used
    shut down   the application, when no call is left
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import select
import signal
import socket
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from proxy.drain import Drain
from proxy.joined import JoinedWrites
from proxy.settings import Settings

#: A request line and its headers; fal's own clients send well below one kilobyte beside the session.
MAX_HEAD_BYTES = 64 * 1024
KEEP_ALIVE_SECONDS = 20
LOOK_SECONDS = 0.02
#: A request may be on its way over a connection that was accepted last.
LAST_REQUEST_SECONDS = 0.25
#: New objects before the garbage collector looks: those of some twenty calls at once are no garbage yet.
GARBAGE_THRESHOLD = 20_000
#: How long a thread that has work (a database's, for one) waits for the one that runs. Python's own 5 ms are several
#: times what a call takes.
SWITCH_SECONDS = 0.0002
#: glibc's mallopt(3): when memory goes back to the system (M_TRIM_THRESHOLD), how much more than is wanted comes from
#: it (M_TOP_PAD), and from what size on each block comes and goes by itself (M_MMAP_THRESHOLD).
MALLOC_BYTES = {-1: 8 * 1024 * 1024, -2: 1024 * 1024, -3: 4 * 1024 * 1024}
_log = logging.getLogger(__name__)


class BoundedHead(HttpToolsProtocol):
    """Hangs up on a request whose head does not end: httptools itself would collect it without a bound."""

    _in_head = False
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(JoinedWrites(transport))  # type: ignore[arg-type]

    def on_message_begin(self) -> None:
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.send_400_response("The head of the request is too large.")


class DrainingServer(uvicorn.Server):
    """Serves an application whose lifespan hands over its `Drain` as the state's `drain`."""

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
        _log.info("stopping; %d calls have %.1f s to finish", len(self.server_state.tasks), drain.seconds_left())
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
            _log.error("the stores did not close in time")

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
            _log.warning("%d calls did not finish in time and are cut", len(left))
            for task in left:
                task.cancel()
            await asyncio.wait(left, timeout=seconds)


def tune_the_interpreter() -> None:
    """Let the garbage collector look at what calls leave behind, and neither so often nor at what stays for good; let
    a database's thread go on soon after each of its statements; and do not give the system back, again and again, the
    memory that the next piece of a file needs."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD, 20, 20)
    sys.setswitchinterval(SWITCH_SECONDS)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, size in MALLOC_BYTES.items():
            mallopt(option, size)


def uvicorn_options(settings: Settings) -> dict[str, Any]:
    """How the application is served, as keyword arguments of `uvicorn.Config`."""
    server = settings.server
    return {
        "host": server.host,
        "port": server.port,
        "loop": "uvloop",
        "http": BoundedHead,
        "ws": "none",
        "lifespan": "on",
        # Our own access log knows what must not be written.
        "access_log": False,
        "log_config": None,
        "server_header": False,
        "proxy_headers": bool(server.trusted_proxies),
        "forwarded_allow_ips": list(server.trusted_proxies),
        "timeout_graceful_shutdown": server.drain_seconds,
        "timeout_keep_alive": KEEP_ALIVE_SECONDS,
    }
