"""Removes rows that are past their time, in batches that calls hardly notice.

A transaction removes some rows, in a few milliseconds. The rest after it is `REST_TIMES` as long as the removal took,
with what SQLite writes to the disk for it, and longer with each transaction of a call that wanted the same file: the
busier the database, the slower the run.

Rows that end by themselves (idempotency keys, uploads, revocations, accounts of addresses) are removed a day after
their end; jobs, grants and other accounts after the retention, and entries of the audit log after a time of their own.
A run ends if it finds that another process removes rows.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Sequence

from proxy.clock import Clock
from proxy.limits.accounts import WINDOWS, window_start
from proxy.recurring import Recurring
from proxy.stores.grants import GRANT_WINDOWS
from proxy.stores.retention import KINDS, Expiry, Removal, RetentionStore, Row
from proxy.stores.spend import KEPT_SECONDS
from proxy.tenants.plans import MAX_SESSION_SECONDS
from proxy.tenants.terms import SESSION

#: How often a process looks for rows past their time, and how many times within the retention at least.
EVERY_SECONDS = 600.0
LOOKS = 24
#: Rows that one reading finds.
FOUND_AT_ONCE = 500
#: The shortest rest after a batch, and how many times as long as the batch a rest is.
REST_SECONDS, REST_TIMES = 0.01, 4
#: How much longer a rest is for each transaction of a call since the last one, and for all of them at most.
CALL_SECONDS, CALLS_SECONDS = 0.001, 0.05
#: How long idempotency keys, uploads and revocations stay after they have ended; keys end a day after they were taken.
ENDED_SECONDS = 86_400.0
_log = logging.getLogger(__name__)


class Cleaner:
    """Removes rows of one database.

    Args:
        retention_seconds: how long jobs and accounts stay after their end.
        audit_seconds: how long entries of the audit log stay.
        removed: called with the kind and the number of rows that were removed.
    """

    def __init__(
        self,
        store: RetentionStore,
        clock: Clock,
        retention_seconds: float,
        audit_seconds: float,
        removed: Callable[[str, int], None] = lambda _kind, _rows: None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._retention = retention_seconds
        self._audit = audit_seconds
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
        """Remove the rows that are past their time now, and return how many there were of each kind.

        Raises:
            StoreUnavailable: the database does not answer. Rows that were removed before stay removed.
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
        # A call that is not over will be booked on the accounts of the windows in which it was submitted.
        open_since = now if oldest is None else oldest
        stays = min(before, open_since)
        return Expiry(
            jobs=before,
            accounts=_first_windows(stays),
            address_accounts=_first_windows(min(ended, open_since)),
            idempotency=ended,
            uploads=ended,
            revocations=ended,
            grants=stays,
            alerts=before,
            spend_hours=now - KEPT_SECONDS,
            audit=now - self._audit,
        )

    async def _remove_all(self, kind: str, expiry: Expiry, removed: Counter[str]) -> bool:
        """Remove the rows of a kind; return False if another process is removing rows."""
        while found := await self._store.find(kind, expiry, FOUND_AT_ONCE):
            before, tried = removed[kind], 0
            while tried < len(found):
                removal = await self._remove(kind, found[tried:])
                if removal is None:
                    return False
                tried += removal.tried
                removed[kind] += removal.removed
            if len(found) < FOUND_AT_ONCE or removed[kind] == before:
                break
        return True

    async def _remove(self, kind: str, found: Sequence[Row]) -> Removal | None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        removal = await self._store.remove(kind, found, self._store.batch_seconds)
        if removal is not None and removal.removed:
            self._removed(kind, removal.removed)
        await asyncio.sleep(rest_after(loop.time() - began, removal.calls if removal is not None else 0))
        return removal


def rest_after(seconds: float, calls: int) -> float:
    """Return how long a run rests after a removal that took so long, with so many calls' transactions since then."""
    return max(REST_SECONDS, REST_TIMES * seconds) + min(CALLS_SECONDS, CALL_SECONDS * calls)


def _first_windows(stays: float) -> dict[str, float]:
    """Return the earliest start of each window whose accounts stay."""
    starts: dict[str, float] = {window: window_start(window, stays) for window in WINDOWS}
    # An account of a session begins with it, and no session lives longer than this. That of a grant begins at its end.
    return starts | {SESSION: stays - MAX_SESSION_SECONDS} | dict.fromkeys(GRANT_WINDOWS, stays)
