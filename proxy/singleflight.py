"""One at a time: callers who want the same thing at the same moment share one piece of work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")


class SingleFlight(Generic[Result]):
    """Runs work by key. When the last caller who waits for a piece of work goes away, it is cancelled."""

    def __init__(self) -> None:
        self._running: dict[Hashable, tuple[asyncio.Task[Result], list[None]]] = {}

    async def run(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """Return the result of the work under this key, which begins now unless it is under way."""
        if key not in self._running:
            started = asyncio.create_task(work())
            self._running[key] = started, []
            started.add_done_callback(lambda task: self._forget(key, task))
        task, waiting = self._running[key]
        waiting.append(None)
        try:
            return await asyncio.shield(task)
        finally:
            waiting.pop()
            if not waiting and not task.done():
                # Out of the way at once: the next caller must not wait for what is being given up.
                self._forget(key, task)
                task.cancel()

    def _forget(self, key: Hashable, task: asyncio.Task[Result]) -> None:
        """Forget a task, unless another has taken its place: one that was given up ends later than it is forgotten."""
        if key in self._running and self._running[key][0] is task:
            del self._running[key]
