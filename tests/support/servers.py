"""A real uvicorn in a thread, for as long as a `with` block lasts."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import random
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import uvicorn
from starlette.types import ASGIApp

from tests.support.waiting import wait_until


def free_port() -> int:
    """A TCP port of the loopback that nothing listens on and that is given to none but the caller."""
    return next(_PORTS)


def _claim_ports() -> Iterator[int]:
    """Ports that no other process of the tests claims, each once until all are used up.

    They lie below those that Linux and macOS give to connections and to servers that ask for any port, so that none is
    taken between the claim and its use.
    """
    path = Path(tempfile.gettempdir(), f"fal-proxy-tests-ports-{os.geteuid()}")
    with path.open("ab") as claims:
        while True:
            for port in random.sample(range(15_000, 32_000), 17_000):
                if _is_claimed(claims, port) and _is_unused(port):
                    yield port


def _is_claimed(claims: IO[bytes], port: int) -> bool:
    """Whether the port is this process's now: the lock on its byte ends with the process."""
    try:
        fcntl.lockf(claims, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError:
        return False
    return True


def _is_unused(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


_PORTS = _claim_ports()


class _Server(uvicorn.Server):
    """Stops when it is asked to; uvicorn itself looks every tenth of a second whether it is."""

    _ticks: asyncio.Task[None] | None = None

    async def main_loop(self) -> None:
        self._ticks = asyncio.create_task(super().main_loop())
        with contextlib.suppress(asyncio.CancelledError):
            await self._ticks

    def stop(self) -> None:
        """Stop it from another thread."""
        self.should_exit = True
        if self._ticks is not None:
            # Of a loop that has ended by itself there is nothing to stop.
            with contextlib.suppress(RuntimeError):
                self._ticks.get_loop().call_soon_threadsafe(self._ticks.cancel)


@contextlib.contextmanager
def running(
    app: ASGIApp,
    *,
    port: int | None = None,
    certificate: tuple[Path, Path] | None = None,
    **options: Any,
) -> Iterator[str]:
    """Serve `app` on the loopback and yield its base URL; stop it, lifespan included, at the end.

    `certificate` is the pair (certificate chain, private key) that makes it https.
    """
    port = port or free_port()
    if certificate is not None:
        options |= {"ssl_certfile": certificate[0], "ssl_keyfile": certificate[1]}
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        ws="none",
        timeout_graceful_shutdown=3,
        # A busy machine could send on a connection that is just being closed for its idleness.
        **{"timeout_keep_alive": 300, **options},
    )
    server = _Server(config)
    thread = threading.Thread(target=server.run, name=f"uvicorn-{port}", daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive(), "the server did not start")
        if not server.started:
            raise RuntimeError("the server stopped while starting: see its log above")
        yield f"{'https' if certificate else 'http'}://{'localhost' if certificate else '127.0.0.1'}:{port}"
    finally:
        server.stop()
        thread.join(timeout=180)
        assert not thread.is_alive(), "the server did not stop within three minutes"
