"""An event that tasks of one loop wait for."""

from __future__ import annotations

import asyncio


class LightEvent:
    """`asyncio.Event` without its deque, which takes 0.7 KiB for each connection and each open stream."""

    __slots__ = ("_is_set", "_waiting")

    def __init__(self, *, is_set: bool = False) -> None:
        self._is_set = is_set
        self._waiting: tuple[asyncio.Future[None], ...] = ()

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        """Wake all who wait; who comes later does not wait."""
        self._is_set = True
        woken, self._waiting = self._waiting, ()
        for waiting in woken:
            if not waiting.done():
                waiting.set_result(None)

    def clear(self) -> None:
        """Let all who come wait until `set` is called again."""
        self._is_set = False

    async def wait(self) -> None:
        """Wait until the event is set."""
        if self._is_set:
            return
        waiting = asyncio.get_running_loop().create_future()
        self._waiting = (*self._waiting, waiting)
        try:
            await waiting
        finally:
            # One that was cancelled is still there.
            if self._waiting:
                self._waiting = tuple(one for one in self._waiting if one is not waiting)
