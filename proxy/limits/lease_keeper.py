"""Keeps the leases of this process while it lives, returns them when it could not at once, and ends those of the dead.

A call that this process makes for its caller, such as a run, a stream or a submit, ends with the process, and so does
its lease. A job in fal's queue goes on, and its lease is handed over: it stands until the job's end is known.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Iterable, Mapping, Sequence

from proxy.clock import Clock
from proxy.errors import ProxyError, StoreUnavailable
from proxy.limits.dead_holders import HOLDER_SECONDS, DeadHolders
from proxy.limits.lease_scopes import scope_keys
from proxy.limits.quotas import UPLOAD
from proxy.stores.counters import Beat, Counters, LeaseScope, LeasesLost
from proxy.stores.ledger import Ledger, OpenJob

#: Without any word of a job its lease ends after this; every word renews it.
LEASE_SECONDS = 600.0
#: How often a process gives a sign of life. A dead one is looked at twice, one beat apart, when its last sign no longer
#: counts: its leases end ten seconds after its end at the latest.
BEAT_SECONDS = 2.0
#: Beats after which the lease of a call that still runs is renewed: long before it expires.
RENEW_BEATS = 75
#: Leases that could not be returned yet; of more than these the oldest are left to expire.
MOST_RETURNS = 100_000
_SIDE_BY_SIDE = 20
_log = logging.getLogger(__name__)


class LeaseKeeper:
    """Takes leases for this process, and keeps them."""

    def __init__(self, counters: Counters, ledger: Ledger, clock: Clock) -> None:
        self._counters = counters
        self._ledger = ledger
        self._clock = clock
        #: What ends with this process: scopes by lease, and the beat at which it was taken or renewed, oldest first.
        self._held: dict[str, tuple[Sequence[str], int]] = {}
        self._handed_over: list[str] = []
        self._returns: dict[str, Sequence[str]] = {}
        #: Leases of jobs that were restored, and at which beat: whether the job ended meanwhile is looked up once more.
        self._restored: dict[str, tuple[Sequence[str], int]] = {}
        self._dead_holders = DeadHolders(counters, ledger, clock)
        self._beats = 0
        self._beating = asyncio.Lock()
        self._has_beaten = asyncio.Event()
        #: A new process knows of no lease; it restores those of jobs before it takes any.
        self._is_lost = True
        self._is_empty = False
        self._recovery: asyncio.Task[None] | None = None
        self._running: asyncio.Task[None] | None = None

    async def acquire(self, lease: str, scopes: Sequence[LeaseScope]) -> int | None:
        """Take a lease of every scope, or of none; the place of a scope that is full, else None.

        Raises:
            StoreUnavailable: the counters do not answer, or lost their data, and the ledger does not answer.
        """
        if self._is_lost:
            await self.recover()
        try:
            full = await self._acquire(lease, scopes)
        except LeasesLost:
            self._is_lost = True
            await self.recover()
            try:
                full = await self._acquire(lease, scopes)
            except LeasesLost:
                raise StoreUnavailable("The proxy's counters lost their data; try again shortly.") from None
        if full is None:
            self._held[lease] = ([scope.key for scope in scopes], self._beats)
        return full

    def _acquire(self, lease: str, scopes: Sequence[LeaseScope]) -> Awaitable[int | None]:
        now = self._clock.now()
        return self._counters.acquire(lease, scopes, now, now + LEASE_SECONDS)

    async def release(self, lease: str, keys: Sequence[str]) -> None:
        """Return a lease, later if the counters do not answer now."""
        self._held.pop(lease, None)
        # Before anything can go wrong, or cancel it.
        self._returns[lease] = keys
        try:
            await self._counters.release(lease, keys)
        except StoreUnavailable:
            if len(self._returns) > MOST_RETURNS:
                del self._returns[next(iter(self._returns))]
            return
        # While leases are restored, this one may be restored after it was returned: it is returned again.
        if self._recovery is None:
            self._returns.pop(lease, None)

    def hand_over(self, lease: str) -> None:
        """Let a lease outlive this process: fal has its job."""
        if self._held.pop(lease, None) is not None:
            self._handed_over.append(lease)

    async def restore(self, leases: Mapping[str, Sequence[str]]) -> None:
        """Take leases of jobs that fal has in its queue, whether or not there is room."""
        now = self._clock.now()
        await self._counters.restore(leases, now, now + LEASE_SECONDS)
        self._restored |= {lease: (keys, self._beats) for lease, keys in leases.items()}

    async def recover(self) -> None:
        """Restore the leases of this process, and those of jobs in fal's queue; once, however many wait for it.

        Raises:
            StoreUnavailable: the counters or the ledger do not answer.
        """
        if self._recovery is None:
            self._recovery = asyncio.create_task(self._recover())
            self._recovery.add_done_callback(self._check_recovery)
        await asyncio.shield(self._recovery)

    def _check_recovery(self, recovery: asyncio.Task[None]) -> None:
        self._recovery = None
        if not recovery.cancelled() and (problem := recovery.exception()) is not None:
            _log.warning("leases not restored", extra={"log_fields": {"problem": type(problem).__name__}})

    async def _recover(self) -> None:
        # Both before and after the ledger is read, so that none is missed that is handed over or taken meanwhile.
        held = {lease: keys for lease, (keys, _) in self._held.items()}
        beat = await self._beat()
        jobs = [job for job in await self._ledger.open_jobs() if job.kind != UPLOAD]
        queued = _scopes_of(job for job in jobs if job.state == "accepted")
        await self.restore(queued)
        now = self._clock.now()
        if self._is_empty:
            # Calls of other processes: each that lives takes its own again, and the rest is over soon.
            calls = _scopes_of(job for job in jobs if job.state == "reserved" and job.expires_at > now)
            await self._counters.restore(calls, now, now + HOLDER_SECONDS)
        held |= {lease: keys for lease, (keys, _) in self._held.items()}
        await self._counters.restore(held, now, now + LEASE_SECONDS, holds=True)
        fields = {"jobs": len(queued), "calls": len(held), "lost": self._is_empty}
        self._counters.holder.adopt(beat.epoch)
        self._is_lost = self._is_empty = False
        _log.info("leases restored", extra={"log_fields": fields})

    async def keep(self) -> None:
        """Give a sign of life, and do what is due with it.

        Raises:
            StoreUnavailable: the counters or the ledger do not answer.
        """
        await self.beat()
        await self.tidy()

    async def beat(self) -> None:
        """Give a sign of life, and look which other processes gave none.

        Raises:
            StoreUnavailable: the counters do not answer.
        """
        self._beats += 1
        try:
            beat = await self._beat()
        except StoreUnavailable:
            self._dead_holders.forget()
            raise
        self._dead_holders.see(beat.dead)
        self._has_beaten.set()

    async def tidy(self) -> None:
        """Restore, return and renew what is due, and end what dead processes held.

        Raises:
            StoreUnavailable: the counters or the ledger do not answer.
        """
        # First what needs no ledger.
        await self._return_again()
        await self._hand_over()
        await self._renew()
        if self._is_lost:
            await self.recover()
        await self._check_restored()
        await self._dead_holders.free()

    async def _beat(self) -> Beat:
        # One after the other: each is compared with what the last one left.
        async with self._beating:
            now = self._clock.now()
            beat = await self._counters.holder.beat(now, now + HOLDER_SECONDS)
        self._is_empty |= beat.is_empty
        self._is_lost |= beat.is_empty or beat.was_away
        return beat

    async def _return_again(self) -> None:
        if self._recovery is not None:
            # What it restores may be among these.
            return
        waiting = list(self._returns.items())
        for start in range(0, len(waiting), _SIDE_BY_SIDE):
            some = waiting[start : start + _SIDE_BY_SIDE]
            await asyncio.gather(*(self._counters.release(lease, keys) for lease, keys in some))
            for lease, _ in some:
                self._returns.pop(lease, None)

    async def _hand_over(self) -> None:
        if leases := list(self._handed_over):
            await self._counters.holder.hand_over(leases)
            del self._handed_over[: len(leases)]

    async def _renew(self) -> None:
        """Renew the leases of calls that have run for long."""
        due: dict[str, Sequence[str]] = {}
        for lease, (keys, at) in self._held.items():
            if at > self._beats - RENEW_BEATS:
                break
            due[lease] = keys
        if not due:
            return
        now = self._clock.now()
        await self._counters.restore(due, now, now + LEASE_SECONDS, holds=True)
        for lease, keys in due.items():
            if self._held.pop(lease, None) is not None:
                self._held[lease] = (keys, self._beats)
            elif lease not in self._handed_over:
                self._returns[lease] = keys

    async def _check_restored(self) -> None:
        """Return what was restored while its job ended.

        A process returns a lease first and writes down the end after: so this looks a whole beat later.
        """
        due = {lease: keys for lease, (keys, at) in self._restored.items() if at < self._beats - 1}
        queued = await self._ledger.queued_among(list(due))
        for lease, keys in due.items():
            self._restored.pop(lease, None)
            if lease not in queued:
                await self.release(lease, keys)

    async def start(self) -> None:
        """Begin to keep leases, until `close`; if a store does not answer now, that is tried again."""
        await _say_trouble(self.keep())
        self._running = asyncio.create_task(self._forever())

    async def _forever(self) -> None:
        # Side by side: a ledger that does not answer is no reason to be taken for dead.
        async with asyncio.TaskGroup() as group:
            group.create_task(self._beat_forever())
            group.create_task(self._tidy_forever())

    async def _beat_forever(self) -> None:
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            await _say_trouble(self.beat())

    async def _tidy_forever(self) -> None:
        while True:
            await self._has_beaten.wait()
            self._has_beaten.clear()
            await _say_trouble(self.tidy())

    async def close(self) -> None:
        """Return what is still to be returned, and be no holder any more."""
        if self._running is None:
            return
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)
        try:
            await self._return_again()
            await self._hand_over()
            if not self._held:
                await self._counters.holder.leave()
        except ProxyError as problem:
            _log.warning(
                "leases not returned", extra={"log_fields": {"problem": problem.code, "leases": len(self._returns)}}
            )


def _scopes_of(jobs: Iterable[OpenJob]) -> Mapping[str, Sequence[str]]:
    return {job.id: scope_keys(job) for job in jobs}


async def _say_trouble(work: Awaitable[None]) -> None:
    try:
        await work
    except ProxyError as problem:
        _log.warning("leases not kept", extra={"log_fields": {"problem": problem.code}})
    except Exception:
        _log.exception("lease keeper failed")
