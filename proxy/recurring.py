"""Work that a process does again and again beside its calls."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from proxy.errors import ProxyError

_log = logging.getLogger(__name__)


class Recurring:
    """Does some work after each wait, from `start` to `close`. A failure is logged, and the work is done next time.

    Args:
        name: of the work, for the log.
        seconds: gives the wait before the next time.
    """

    def __init__(self, name: str, work: Callable[[], Awaitable[object]], seconds: Callable[[], float]) -> None:
        self._name = name
        self._work = work
        self._seconds = seconds
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to wait for the first time."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop, also in the middle of the work."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._seconds())
            try:
                await self._work()
            except ProxyError as problem:
                _log.warning("work postponed", extra={"log_fields": {"work": self._name, "problem": problem.code}})
            except Exception:
                _log.exception("work failed", extra={"log_fields": {"work": self._name}})
