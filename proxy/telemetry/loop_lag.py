"""How late the event loop is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

#: Between two looks.
SECONDS = 1.0


class LoopLag:
    """Sets a timer again and again, and observes by how many seconds each fired too late.

    That is how long everything else waited too that became due in the same moment.
    """

    def __init__(self, observe: Callable[[float], None], seconds: float = SECONDS) -> None:
        self._observe = observe
        self._seconds = seconds
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._set_timer(asyncio.get_running_loop())

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _set_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        due = loop.time() + self._seconds
        self._timer = loop.call_at(due, self._fire, loop, due)

    def _fire(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        self._observe(max(0.0, loop.time() - due))
        self._set_timer(loop)
