"""A real uvicorn in a thread, for as long as a `with` block lasts."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from tests.support.waiting import wait_until


def free_port() -> int:
    """A TCP port of the loopback that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


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
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name=f"uvicorn-{port}", daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive(), "the server did not start", seconds=20)
        if not server.started:
            raise RuntimeError("the server stopped while starting: see its log above")
        yield f"{'https' if certificate else 'http'}://{'localhost' if certificate else '127.0.0.1'}:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        assert not thread.is_alive(), "the server did not stop within 20 s"
