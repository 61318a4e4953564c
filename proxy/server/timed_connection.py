"""A connection of a caller: how long it may keep this server waiting, and how it ends."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.server import ServerState

from proxy.errors import ProxyError, RequestTimeout, TooManyConnections
from proxy.server.asgi import AsgiProtocol
from proxy.server.coalescing import CoalescingTransport
from proxy.server.connections import NEVER, Connections
from proxy.server.exchange import Exchange
from proxy.server.refusal import raw_response


class TimedConnection(AsgiProtocol):
    """A connection that has a deadline while the caller has to send or to take something.

    Attributes:
        deadline: when the connection ends if nothing more comes, as a time of the event loop; NEVER while an answer is
            being made.
    """

    __slots__ = ("_answering", "_in_head", "_is_refused", "_limits", "_registry", "_time", "_unsent", "deadline")

    transport: CoalescingTransport  # type: ignore[assignment]

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        connections: Connections,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.deadline = NEVER
        self._registry = connections
        self._limits = connections.limits
        self._time = self.loop.time
        self._answering: Exchange | None = None
        self._in_head = self._is_refused = False
        #: Bytes of an answer that the caller had not taken when `expire` looked last.
        self._unsent: float = NEVER

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(CoalescingTransport(transport, self._registry.outbox))  # type: ignore[arg-type]
        if self._registry.admit(self, self.client):
            self.deadline = self._time() + self._limits.connect_seconds
        elif not self._registry.may_answer_refusal():
            self.transport.abort()
        else:
            self._close_with(TooManyConnections("This server has reached its limit of connections; try again shortly."))

    def connection_lost(self, exc: Exception | None) -> None:
        self._registry.discard(self, self.client)
        super().connection_lost(exc)
        if self._answering is not None:
            # uvicorn tells the newest request alone, and this one may be before it.
            self._answering.report_disconnect()

    @property
    def is_waiting(self) -> bool:
        """Whether the caller has to send something: no answer is on its way."""
        return self.deadline != NEVER and not self.transport.get_write_buffer_size()

    def evict(self) -> None:
        """Close now, to make room for another connection."""
        self.transport.lingers = False
        self.transport.close()

    def expire(self) -> None:
        """End the connection at its deadline, unless it takes its answer; in the middle of a head, say why."""
        self.deadline = self._time() + self._limits.write_seconds
        if unsent := self.transport.get_write_buffer_size():
            if unsent >= self._unsent:
                self.transport.abort()
            self._unsent = unsent
        elif self._in_head and not self.transport.is_closing():
            seconds = self._limits.head_seconds
            late = f"The head of the request did not end within {seconds:g} seconds; send it again."
            self._refuse(RequestTimeout(late))
        else:
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unsent = self.transport.get_write_buffer_size()
        self.deadline = self._time() + self._limits.write_seconds

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._answering is not None and not self._answering.response_complete:
            self.deadline = NEVER

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        self._unsent = NEVER
        if self.transport.is_closing():
            # The caller has yet to take the answer.
            self.deadline = self._time() + self._limits.write_seconds
            return
        if self.flow.read_paused:
            self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
        else:
            limits = self._limits
            self.deadline = self._time() + (limits.head_seconds if self._in_head else limits.keep_alive_seconds)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle  # type: ignore[assignment]
        self.deadline = NEVER
        super()._start_asgi_task(cycle, app)

    @property
    def is_discarding(self) -> bool:
        """Whether what arrives is thrown away, as the last answer is on its way."""
        return self._is_refused or self.transport.is_closing()

    def _refuse(self, error: ProxyError) -> None:
        """Refuse what cannot be read on, after the answers to earlier requests, and close the connection.

        Nothing more is read: while earlier answers are on their way, an endless head would fill the memory.
        """
        if self._is_refused or self.transport.is_closing():
            return
        self._is_refused = True
        self._registry.warn(self.client, error_type=error.code, reason=error.message)
        newest, answering = self.cycle, self._answering
        if newest is None or newest.response_complete:
            self._close_with(error)
        elif not newest.more_body:
            # The newest request is whole; its answer is the last one.
            newest.keep_alive = False
            self.transport.lingers = True
        elif newest is answering:
            newest.report_disconnect()
            if newest.response_started:
                self.transport.close()
            else:
                self._close_with(error)
        else:
            self.pipeline.popleft()
            last = self.pipeline[0][0] if self.pipeline else answering
            assert last is not None
            last.keep_alive = False
            self.transport.lingers = True

    def _close_with(self, error: ProxyError) -> None:
        self.transport.lingers = True
        self.transport.write(raw_response(error))
        self.transport.close()
