"""Adds settled jobs to the sums of which usage reports are made, in batches that calls hardly notice.

A rest of `REST_TIMES` its length follows each batch. A run ends if it finds that another process counts, or that only a
few jobs are left, which a report adds up itself.
"""

from __future__ import annotations

import asyncio
import random

from proxy.recurring import Recurring
from proxy.stores.usage import UsageRollup

#: How often a process looks for settled jobs.
EVERY_SECONDS = 10.0
#: Jobs that one transaction counts, in a millisecond on SQLite: calls wait for it.
MOST_AT_ONCE = 50
#: The shortest rest after a batch, and how many times as long as the batch a rest is.
REST_SECONDS, REST_TIMES = 0.01, 4


class UsageCounter:
    """Counts the settled jobs of one database, from `start` to `close`."""

    def __init__(self, store: UsageRollup) -> None:
        self._store = store
        # Replicas that started together do not look together.
        self._running = Recurring("usage rollup", self.run_once, lambda: EVERY_SECONDS * random.uniform(0.5, 1.0))

    def start(self) -> None:
        """Begin to count jobs, until `close`."""
        self._running.start()

    async def close(self) -> None:
        await self._running.close()

    async def run_once(self) -> int:
        """Count the jobs that are settled now, and return how many there were.

        Raises:
            StoreUnavailable: the database does not answer. Jobs that were counted before stay counted.
        """
        loop, total = asyncio.get_running_loop(), 0
        while True:
            began = loop.time()
            counted = await self._store.count(MOST_AT_ONCE)
            total += counted or 0
            if counted is None or counted < MOST_AT_ONCE:
                return total
            await asyncio.sleep(max(REST_SECONDS, REST_TIMES * (loop.time() - began)))
