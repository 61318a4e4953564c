"""Keeps what a process has learned in the database, so that the next one need not learn it again."""

from __future__ import annotations

from proxy.clock import Clock
from proxy.limits.learned import MOST_CLASSES, Learned
from proxy.recurring import Recurring
from proxy.stores.learned import LearnedStore

#: How often what was learned is written, and the wait before it is first read.
EVERY_SECONDS, FIRST_SECONDS = 60.0, 1.0
#: What no process has learned for so long is forgotten.
FORGOTTEN_SECONDS = 30 * 86_400.0


class LearnedKeeper:
    """Reads once what was learned before, and then writes what is learned, from `start` to `close`.

    Processes write the same rows, and the last one to write wins: what they see is alike.
    """

    def __init__(self, learned: Learned, store: LearnedStore, clock: Clock) -> None:
        self._learned = learned
        self._store = store
        self._clock = clock
        self._has_read = False
        self._running = Recurring(
            "learned uses", self.run_once, lambda: EVERY_SECONDS if self._has_read else FIRST_SECONDS
        )

    def start(self) -> None:
        """Begin to read and write, until `close`."""
        self._running.start()

    async def close(self) -> None:
        await self._running.close()

    async def run_once(self) -> None:
        """Read, if that was not done yet, and write what has changed.

        Raises:
            StoreUnavailable: the database does not answer.
        """
        now = self._clock.now()
        if not self._has_read:
            self._learned.restore(await self._store.load(now - FORGOTTEN_SECONDS, MOST_CLASSES))
            self._has_read = True
        if changed := self._learned.list_changed():
            await self._store.save(changed, now, now - FORGOTTEN_SECONDS)
            self._learned.mark_saved(changed)
