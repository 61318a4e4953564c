"""The tasks that wait for news of a job."""

from __future__ import annotations

import asyncio


class Waiters:
    """Wakes tasks with a future for each of them; an `asyncio.Event` is ten times as large."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []

    def notify(self) -> None:
        """Wake all tasks that wait."""
        woken, self._waiting = self._waiting, []
        for waiting in woken:
            _wake(waiting)

    async def wait(self, seconds: float | None = None) -> None:
        """Wait until `notify`, or for so many seconds at most; None for any time."""
        loop = asyncio.get_running_loop()
        waiting = loop.create_future()
        self._waiting.append(waiting)
        # A timer costs less than `asyncio.timeout`.
        timer = None if seconds is None else loop.call_later(seconds, _wake, waiting)
        try:
            await waiting
        finally:
            if timer is not None:
                timer.cancel()
            if waiting in self._waiting:
                self._waiting.remove(waiting)


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
