"""How uvicorn gets a protocol for each connection."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn import Config
from uvicorn.server import ServerState

from proxy.server.connections import ConnectionLimits, Connections
from proxy.server.protocol import LimitedHeadProtocol
from proxy.telemetry.metrics import Metrics


class ProtocolFactory:
    """What uvicorn calls for each connection. All protocols of a listener share its `Connections`.

    The metrics count those of the public listener.
    """

    def __init__(self, limits: ConnectionLimits | None = None, *, is_public: bool = True) -> None:
        self._limits = limits or ConnectionLimits()
        self._is_public = is_public
        self._connections: Connections | None = None

    def __call__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> LimitedHeadProtocol:
        if self._connections is None:
            metrics = app_state.get("metrics") if self._is_public else None
            self._connections = Connections(self._limits, metrics or Metrics())
        return LimitedHeadProtocol(config, server_state, app_state, _loop, connections=self._connections)
