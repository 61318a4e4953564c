"""How uvicorn serves the application."""

from __future__ import annotations

from typing import Any

from proxy.server.protocol import LimitedHeadProtocol
from proxy.settings import Settings

KEEP_ALIVE_SECONDS = 20


def uvicorn_options(settings: Settings) -> dict[str, Any]:
    """How the application is served, as keyword arguments of `uvicorn.Config`."""
    server = settings.server
    return {
        "host": server.host,
        "port": server.port,
        "loop": "uvloop",
        "http": LimitedHeadProtocol,
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
