"""How long a connection is waited for: by one deadline, which only a database that answers others puts off."""

from __future__ import annotations

import asyncio
from typing import Any

#: A caller whose turn does not come waits at most so many times as long as for a database that is silent.
MOST_TIMES = 3


class ConnectionTimeout:
    """Bounds what callers wait for: a free connection, its answer, and a new one together.

    A database that answers no caller for `seconds` is given up. While it answers, the queue moves, and callers wait for
    their turn.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        #: By the clock of the event loop.
        self.answered_at = float("-inf")

    def note_answer(self) -> None:
        self.answered_at = asyncio.get_running_loop().time()

    def bound(self) -> _Wait:
        """Raise TimeoutError in an `async with` block that takes too long."""
        return _Wait(self)


class _Wait:
    def __init__(self, limit: ConnectionTimeout) -> None:
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._timeout = asyncio.timeout(None)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()
        self._began = self._loop.time()
        self._timer = self._loop.call_at(self._began + self._limit.seconds, self._look)

    def _look(self) -> None:
        """End the wait, or look again when it may have to end."""
        seconds = self._limit.seconds
        end = min(max(self._began, self._limit.answered_at) + seconds, self._began + MOST_TIMES * seconds)
        if end > self._loop.time():
            self._timer = self._loop.call_at(end, self._look)
        else:
            self._timeout.reschedule(end)

    async def __aexit__(self, *error: Any) -> None:
        self._timer.cancel()
        await self._timeout.__aexit__(*error)
