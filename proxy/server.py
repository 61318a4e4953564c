"""uvicorn as this program runs it."""

from __future__ import annotations

import gc
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from proxy.settings import Settings

#: A request line and its headers; fal's own clients send well below one kilobyte beside the session.
MAX_HEAD_BYTES = 64 * 1024
KEEP_ALIVE_SECONDS = 20
#: New objects before the garbage collector looks: those of some twenty calls at once are no garbage yet.
GARBAGE_THRESHOLD = 20_000


class BoundedHead(HttpToolsProtocol):
    """Hangs up on a request whose head does not end: httptools itself would collect it without a bound."""

    _in_head = False
    _head_bytes = 0

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


def spare_the_garbage_collector() -> None:
    """Let it look at what calls leave behind, and neither so often nor at what stays for good."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD, 20, 20)


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
