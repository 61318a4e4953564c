"""The tasks that wait for news of a job."""

from __future__ import annotations

import asyncio


class Waiters:
    """A future for each who waits: an `asyncio.Event` is ten times as large."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []

    def notify(self) -> None:
        """Wake all who wait."""
        woken, self._waiting = self._waiting, []
        for waiting in woken:
            _wake(waiting)

    async def wait(self, seconds: float | None = None) -> None:
        """Wait until there is news, or for so many seconds: a timer takes less than `asyncio.timeout`."""
        loop = asyncio.get_running_loop()
        waiting = loop.create_future()
        self._waiting.append(waiting)
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
