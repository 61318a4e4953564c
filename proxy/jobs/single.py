"""One at a time: callers who want the same thing at the same moment share one piece of work."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

Found = TypeVar("Found")


class Single(Generic[Found]):
    """Work by key. When the last caller who waits for a piece of work goes away, it is cancelled."""

    def __init__(self) -> None:
        self._running: dict[Hashable, tuple[asyncio.Task[Found], list[None]]] = {}

    async def do(self, key: Hashable, work: Callable[[], Awaitable[Found]]) -> Found:
        """What the work under this key comes to, begun now unless it is on its way already."""
        if key not in self._running:
            begun = asyncio.ensure_future(_awaited(work))
            self._running[key] = begun, []
            begun.add_done_callback(lambda task: self._forget(key, task))
        task, waiting = self._running[key]
        waiting.append(None)
        try:
            return await asyncio.shield(task)
        finally:
            waiting.pop()
            if not waiting and not task.done():
                # Out of the way at once: whoever comes now must not wait for what is being given up.
                self._forget(key, task)
                task.cancel()

    def _forget(self, key: Hashable, task: asyncio.Task[Found]) -> None:
        """Unless another has taken its place: one that was given up ends later than it is forgotten."""
        if key in self._running and self._running[key][0] is task:
            del self._running[key]


async def _awaited(work: Callable[[], Awaitable[Found]]) -> Found:
    return await work()
