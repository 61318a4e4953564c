"""How uvicorn serves the application."""

from __future__ import annotations

from typing import Any

from proxy.server.connections import ConnectionLimits
from proxy.server.factory import ProtocolFactory
from proxy.server.open_files import file_limit, max_connections_within
from proxy.settings import ServerSettings, Settings


def uvicorn_options(settings: Settings) -> dict[str, Any]:
    """Return how the application is served, as keyword arguments of `uvicorn.Config`."""
    server = settings.server
    return {
        "host": server.host,
        "port": server.port,
        "loop": "uvloop",
        "http": ProtocolFactory(connection_limits(server)),
        "ws": "none",
        "lifespan": "on",
        # Our own access log knows what must not be written.
        "access_log": False,
        "log_config": None,
        "server_header": False,
        "proxy_headers": bool(server.trusted_proxies),
        "forwarded_allow_ips": list(server.trusted_proxies),
        "timeout_graceful_shutdown": server.drain_seconds,
    }


def connection_limits(server: ServerSettings) -> ConnectionLimits:
    """Return what connections may cost, by the settings and by the files that this process may open."""
    limits = ConnectionLimits(
        most=server.max_connections,
        most_per_address=server.max_connections_per_address,
        connect_seconds=server.connect_seconds,
        head_seconds=server.head_seconds,
        keep_alive_seconds=server.keep_alive_seconds,
        trusted=server.trusted_proxies,
    )
    return limits.scale_to(max_connections_within(file_limit()))
