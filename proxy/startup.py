"""Prepare the database when a process starts, or when the database comes: a process does not wait for it to start."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from proxy.errors import StoreUnavailable

#: Waits between attempts; the last one repeats.
BACKOFF_SECONDS = (0.5, 1.0, 2.0, 5.0)
_log = logging.getLogger(__name__)


class Startup:
    """Runs `prepare` until it succeeds. Until then the process is alive, not ready, and refuses calls."""

    def __init__(self, prepare: Callable[[], Awaitable[None]]) -> None:
        """Take `prepare`, which raises StoreUnavailable while a store does not answer, and may be repeated."""
        self._prepare = prepare
        self._problem = ""
        self._trying: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Prepare once. After a failure, return all the same and try again in a task."""
        if not await self._succeeds():
            self._trying = asyncio.create_task(self._try_again())

    async def _try_again(self) -> None:
        attempts = 0
        while True:
            await asyncio.sleep(BACKOFF_SECONDS[min(attempts, len(BACKOFF_SECONDS) - 1)])
            attempts += 1
            if await self._succeeds():
                _log.info(
                    "the database answers: prepared after the start", extra={"log_fields": {"attempts": attempts}}
                )
                return

    async def _succeeds(self) -> bool:
        try:
            await self._prepare()
        except StoreUnavailable as problem:
            if problem.message != self._problem:
                self._problem = problem.message
                fields = {"problem": problem.message, "setting": "PROXY_DATABASE_URL"}
                _log.error("started, but not ready: the database is tried again", extra={"log_fields": fields})
            return False
        except Exception:
            if self._trying is None:
                raise
            # Another attempt may fare better, and a process that is not ready tells its operator so.
            _log.exception("preparing the database failed")
            return False
        return True

    async def close(self) -> None:
        if self._trying is not None:
            self._trying.cancel()
            await asyncio.gather(self._trying, return_exceptions=True)
