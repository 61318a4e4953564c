"""Removes what is past its time, in batches that calls hardly notice.

Each run finds rows past their time and removes some in each transaction. A rest follows that is many times as long as
the removal took, with what SQLite writes to the disk for it: the busier the database, the slower the run. What has a
time of its own (idempotency keys, uploads, revocations) is removed a day after its end; jobs and accounts once the
retention has passed. A run ends if it finds that another process removes rows.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Sequence

from proxy.clock import Clock
from proxy.limits.quotas import WINDOWS, window_start
from proxy.recurring import Recurring
from proxy.stores.retention import KINDS, Expiry, RetentionStore, Row

#: How often a process looks for rows past their time; more often where they are kept for less than days.
EVERY_SECONDS = 600.0
LOOKS = 24
#: Rows that one reading finds, and that one transaction removes.
FOUND_AT_ONCE = 500
MOST_AT_ONCE = 25
#: The least rest after a batch, and how many times as long as the batch it is.
REST_SECONDS, REST_TIMES = 0.02, 9
#: How long idempotency keys, uploads and revocations stay after they have ended; keys end a day after they were taken.
ENDED_SECONDS = 86_400.0
_log = logging.getLogger(__name__)


class Cleaner:
    """Removes rows of one database.

    Args:
        retention_seconds: how long jobs and accounts stay after their end.
        removed: is given the kind and the number of rows that were removed.
    """

    def __init__(
        self,
        store: RetentionStore,
        clock: Clock,
        retention_seconds: float,
        removed: Callable[[str, int], None] = lambda _kind, _rows: None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._retention = retention_seconds
        self._removed = removed
        self._every = min(EVERY_SECONDS, retention_seconds / LOOKS)
        # Replicas that started together do not look together.
        self._running = Recurring("retention", self.run_once, lambda: self._every * random.uniform(0.5, 1.0))

    def start(self) -> None:
        """Begin to remove rows, until `close`."""
        self._running.start()

    async def close(self) -> None:
        await self._running.close()

    async def run_once(self) -> Counter[str]:
        """Remove what is past its time now; how many rows, by kind.

        Raises:
            StoreUnavailable: the database does not answer. What was removed before stays removed.
        """
        loop, removed = asyncio.get_running_loop(), Counter[str]()
        began, expiry = loop.time(), await self._expiry()
        try:
            for kind in KINDS:
                if not await self._remove_all(kind, expiry, removed):
                    break
        finally:
            if removed:
                seconds = round(loop.time() - began, 3)
                _log.info("expired rows removed", extra={"log_fields": {**removed, "seconds": seconds}})
        return removed

    async def _expiry(self) -> Expiry:
        now = self._clock.now()
        before, ended = now - self._retention, now - min(self._retention, ENDED_SECONDS)
        oldest = await self._store.oldest_open()
        # A call that is not over yet is still to be booked on the accounts of the windows in which it was submitted.
        stays = before if oldest is None else min(before, oldest)
        return Expiry(
            jobs=before,
            accounts={window: window_start(window, stays) for window in WINDOWS},
            idempotency=ended,
            uploads=ended,
            revocations=ended,
        )

    async def _remove_all(self, kind: str, expiry: Expiry, removed: Counter[str]) -> bool:
        """Remove the rows of a kind; False if another process is at it."""
        while found := await self._store.find(kind, expiry, FOUND_AT_ONCE):
            before = removed[kind]
            for start in range(0, len(found), MOST_AT_ONCE):
                rows = await self._remove(kind, found[start : start + MOST_AT_ONCE])
                if rows is None:
                    return False
                removed[kind] += rows
            if len(found) < FOUND_AT_ONCE or removed[kind] == before:
                break
        return True

    async def _remove(self, kind: str, batch: Sequence[Row]) -> int | None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        rows = await self._store.remove(kind, batch)
        if rows:
            self._removed(kind, rows)
        await asyncio.sleep(max(REST_SECONDS, REST_TIMES * (loop.time() - began)))
        return rows
