"""How uvicorn gets a protocol for each connection."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn import Config
from uvicorn.server import ServerState

from proxy.http.repetition import ANSWER_AGAIN
from proxy.server.connections import ConnectionLimits, Connections
from proxy.server.repetition import RepetitionProtocol
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
    ) -> RepetitionProtocol:
        if self._connections is None:
            metrics = app_state.get("metrics") if self._is_public else None
            self._connections = Connections(self._limits, metrics or Metrics())
        answer_again = app_state.get(ANSWER_AGAIN) if self._is_public else None
        connections = self._connections
        return RepetitionProtocol(
            config, server_state, app_state, _loop, connections=connections, answer_again=answer_again
        )
