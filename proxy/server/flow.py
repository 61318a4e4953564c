"""Flow control of one connection, and the requests on it that wait for their turn."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl

from proxy.server.event import LightEvent


class Flow(FlowControl):
    """uvicorn's flow control with a lighter event."""

    def __init__(self, transport: asyncio.Transport) -> None:
        # Without uvicorn's own: its event is what is spared.
        self._transport = transport
        self.read_paused = False
        self.write_paused = False
        self._is_writable = LightEvent(is_set=True)

    async def drain(self) -> None:
        await self._is_writable.wait()

    def pause_writing(self) -> None:
        self.write_paused = True
        self._is_writable.clear()

    def resume_writing(self) -> None:
        self.write_paused = False
        self._is_writable.set()


class Pipeline(list[Any]):
    """What uvicorn keeps in a deque, which takes 0.7 KiB while it is empty: hardly any client sends requests ahead."""

    def appendleft(self, request: Any) -> None:
        self.insert(0, request)

    def popleft(self) -> Any:
        return self.pop(0)
