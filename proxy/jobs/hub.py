"""The jobs that are followed: all callers of this process who poll or watch a job share one status stream of fal's.

The state of a job that ended stays in memory, within a bound. A job that no caller asks for any more is not followed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from cachetools import LRUCache

from proxy.clock import Clock
from proxy.drain import Drain
from proxy.errors import ProxyError
from proxy.jobs.fal_queue import FalQueue
from proxy.jobs.opening import TURNS_PER_SECOND, StreamOpener
from proxy.jobs.settlement import Settlement
from proxy.jobs.updates import Update
from proxy.jobs.watch import BACKOFF_SECONDS, Watch
from proxy.jobs.watches import MOST_WATCHES, Watches
from proxy.recurring import Recurring
from proxy.stores.ledger import Job
from proxy.upstream.client import Upstream
from proxy.upstream.event_reader import StreamBroken

#: How long a job is followed after the last caller asked for it.
IDLE_SECONDS = 30.0
SWEEP_SECONDS = 1.0
#: How long a poll waits for the first event of a stream that is being opened, before it asks fal itself.
PATIENCE_SECONDS = 2.0
#: Memory for the states of ended jobs; one without a log takes about four kilobytes.
ENDED_BYTES = 64 * 1024 * 1024


class Hub:
    """Follows jobs at fal for the callers who poll or watch them."""

    def __init__(
        self,
        upstream: Upstream,
        queue: FalQueue,
        settlement: Settlement,
        clock: Clock,
        drain: Drain,
        backoff: Sequence[float] = BACKOFF_SECONDS,
        turns_per_second: float = TURNS_PER_SECOND,
        most: int = MOST_WATCHES,
        most_per_tenant: Callable[[], int] = lambda: MOST_WATCHES,
    ) -> None:
        self._queue = queue
        self._settlement = settlement
        self._opener = StreamOpener(upstream, turns_per_second)
        # Made once, as each reference to a bound method takes memory of its own in every watch.
        self._new_watch = partial(
            Watch,
            open_=self._opener.open,
            fetch=self._fetch_status,
            on_status=settlement.record_status,
            when_over=self._forget_watch,
            backoff=backoff,
        )
        self._clock = clock
        self._drain = drain
        self._watches = Watches(most, most_per_tenant)
        self._ended: LRUCache[str, Update] = LRUCache(ENDED_BYTES, getsizeof=_bytes)
        self._sweeping = Recurring("sweep of followed jobs", self.sweep, lambda: SWEEP_SECONDS)

    def __len__(self) -> int:
        """Count the jobs that are followed now."""
        return len(self._watches)

    def find_cached(self, job: Job) -> Update | None:
        """Return the state of a job if this process knows it as well as fal; its lease is renewed by `sweep`."""
        id_ = job.request_id or ""
        watch = self._watches.get(id_)
        if watch is None:
            return self._ended.get(id_)
        watch.used_at = self._clock.now()
        latest = watch.latest
        return latest if latest is not None and (watch.is_live or latest.is_last) else None

    def is_watching(self, job: Job) -> bool:
        """Return whether fal's stream of a job is open now, so that its end will be heard of."""
        watch = self._watches.get(_id(job))
        return watch is not None and watch.is_live

    async def get_or_watch(self, job: Job) -> Update | None:
        """Return the state of a job, and follow it from now on.

        None if fal has to be asked, as there is no stream.
        """
        if (found := self.find_cached(job)) is not None:
            return found
        if _id(job) not in self._watches and not self._watches.has_room(job.tenant):
            return None
        watch = self._watch(job)
        if not watch.is_trying or self._opener.is_refused:
            return None
        try:
            return await watch.first_update(seconds=PATIENCE_SECONDS)
        except (ProxyError, StreamBroken):
            return None

    async def _fetch_status(self, job: Job) -> dict[str, Any] | None:
        """Ask fal for the state of a job, if it can be had."""
        try:
            report = await self._queue.status(job, logs=True)
        except ProxyError:
            return None
        return report.document if report.state else None

    def join(self, job: Job) -> Watch:
        """Join the watch of a job, for an event stream that is to `leave` it at its end."""
        watch = self._watch(job)
        watch.readers += 1
        return watch

    def leave(self, watch: Watch) -> None:
        watch.readers -= 1
        watch.used_at = self._clock.now()

    def start(self) -> None:
        """Begin to sweep, until `close`."""
        self._sweeping.start()

    async def close(self) -> None:
        """Stop following all jobs."""
        watches = self._watches.list_all()
        for watch in watches:
            watch.stop()
        for watch in watches:
            await watch.wait_for_end()
        await self._sweeping.close()

    async def sweep(self) -> None:
        """Stop following jobs that no caller asked for in a while, and renew the leases of the others.

        Event streams learn here that the process is stopping.
        """
        idle_since = self._clock.now() - IDLE_SECONDS
        for watch in self._watches.list_all():
            if not watch.readers and watch.used_at <= idle_since:
                # Removed first, so that a caller who comes now begins another watch.
                self._watches.remove(_id(watch.job), watch)
                watch.stop()
                continue
            if watch.is_live:
                await self._settlement.renew_lease(watch.job)
            if self._drain.started.is_set():
                watch.notify()

    def _watch(self, job: Job) -> Watch:
        id_ = _id(job)
        if (last := self._ended.get(id_)) is not None:
            return Watch.from_last(job, last)
        watch = self._watches.get(id_)
        if watch is None or watch.is_over:
            watch = self._new_watch(job, used_at=self._clock.now())
            self._watches.add(id_, watch)
            watch.start()
        return watch

    def _forget_watch(self, watch: Watch) -> None:
        id_ = _id(watch.job)
        if watch.latest is not None and watch.latest.is_last:
            self._ended[id_] = watch.latest
        self._watches.remove(id_, watch)


def _id(job: Job) -> str:
    """fal's id; every job that a caller can name has one."""
    return job.request_id or ""


def _bytes(last: Update) -> int:
    # Polls keep the whole log in up to three forms, and streams keep its last lines.
    return 4096 + 5 * last.log.bytes
