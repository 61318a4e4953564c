"""Requests that are answered again without being parsed: nine in ten are polls that repeat the one before.

Two identical requests of one peer are read in the same way, so bytes that were read as one whole request once need no
second reading. A proxy answers 1.94 times as many polls by this (docs/performance.md).
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn import Config
from uvicorn.server import ServerState

from proxy.http.repetition import EXTENSION, MOST_BYTES, AnswerAgain, WholeRequest
from proxy.server.connections import Connections
from proxy.server.exchange import Exchange
from proxy.server.heads import begin_head
from proxy.server.protocol import LimitedHeadProtocol


class RepetitionProtocol(LimitedHeadProtocol):
    """One connection of a caller, whose requests the application may answer by their bytes."""

    __slots__ = ("_answer_again", "_host")

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        connections: Connections,
        answer_again: AnswerAgain | None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop, connections=connections)
        self._answer_again = answer_again
        self._host = ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._host = self.client[0] if self.client else ""

    def data_received(self, data: bytes) -> None:
        # What begins a POST is parsed at once: no poll begins so.
        if (
            self._answer_again is None
            or len(data) > MOST_BYTES
            or data.startswith(b"POST ")
            or not self._is_between_requests()
        ):
            super().data_received(data)
            return
        request = WholeRequest(data, self._host)
        answer = self._answer_again(request)
        if answer is not None:
            status, lines, body = answer
            head = begin_head(status, self.server_state.default_headers)
            self.transport.write(b"%b%b\r\n\r\n%b" % (head, lines, body))
            self.on_response_complete()
            return
        before = self.cycle
        super().data_received(data)
        exchange = self.cycle
        if exchange is before:
            # Part of a head, or what belongs to no request: the parser alone knows where it stands.
            self._answer_again = self._answer_again if self._in_head else None
        elif self._is_whole(exchange, data):
            exchange.scope["extensions"][EXTENSION] = request  # type: ignore[assignment]

    def _is_between_requests(self) -> bool:
        """Return whether the next bytes begin a request, and may be answered at once."""
        last = self.cycle
        if self._in_head or self._is_refused or self.flow.write_paused or self.transport.is_closing():
            return False
        return last is None or (last.response_complete and not last.more_body)

    def _is_whole(self, exchange: Exchange, data: bytes) -> bool:
        """Return whether these bytes are this request from its first to its last, and no more."""
        if exchange.more_body or self._in_head or self.pipeline or self._is_refused:
            return False
        return data.startswith(b"GET ") and data.find(b"\r\n\r\n") == len(data) - 4
