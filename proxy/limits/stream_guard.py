"""Open event streams end with the credential that they were opened with; those of jobs after its grace period.

A stream is open for minutes and asks for nothing. So this process looks at the credentials of all open streams
whenever the directory has changed, and at their expiry every second: one task for all streams, and an entry each.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, Protocol

from proxy.clock import Clock
from proxy.errors import ProxyError, SessionExpired, StoreUnavailable, TenantSuspended, Unauthenticated
from proxy.recurring import Recurring
from proxy.telemetry.metrics import Metrics
from proxy.tenants.caller import GRACE_SECONDS, Caller, Session, check_not_revoked
from proxy.tenants.directory import Directory, Snapshot

SWEEP_SECONDS = 1.0


class Stream(Protocol):
    """A stream that can be ended from outside."""

    is_over: bool

    def refuse(self, error: ProxyError) -> None: ...


class _Opened(NamedTuple):
    """Who opened a stream, and when its session ends it."""

    caller: Caller
    expires_at: float


class StreamGuard:
    """Watches the credentials of the open streams of this process.

    While the database does not answer, streams stay open: nothing can be revoked there either. Their expiry counts.
    """

    def __init__(self, directory: Directory, clock: Clock, metrics: Metrics) -> None:
        self._directory = directory
        self._clock = clock
        self._metrics = metrics
        self._open: dict[Stream, _Opened] = {}
        self._sweeping = Recurring("check of open streams", self._sweep, lambda: SWEEP_SECONDS)
        directory.listen(self._check_all)

    def watch(self, stream: Stream, caller: Caller, *, reads_job: bool) -> None:
        """Refuse a stream once its caller's credential ends; at once, if it is revoked already.

        A stream that only reads a job stays open for the grace period of an expired session.
        """
        grace = GRACE_SECONDS if reads_job else 0.0
        expires_at = caller.session.expires_at + grace if caller.session is not None else float("inf")
        self._open[stream] = _Opened(caller, expires_at)
        self._check(stream, caller, self._directory.latest)

    def refuse_unsigned(self, is_signed: Callable[[Session], bool]) -> None:
        """End the streams whose session's secret counts no longer."""
        for stream, (caller, _) in [pair for pair in self._open.items() if not pair[0].is_over]:
            if caller.session is not None and not is_signed(caller.session):
                self._refuse(stream, Unauthenticated("The session is no longer valid; get a new one."))

    def start(self) -> None:
        """Begin to look every second, until `close`."""
        self._sweeping.start()

    async def close(self) -> None:
        await self._sweeping.close()

    async def _sweep(self) -> None:
        now = self._clock.now()
        for stream, opened in list(self._open.items()):
            # Cheaper than a callback for each stream, which would take memory for as long as it is open.
            if stream.is_over:
                del self._open[stream]
            elif opened.expires_at <= now:
                self._refuse(stream, SessionExpired("The session has expired; get a new one."))
        if self._open:
            # Calls keep the directory young; where there are only streams, this does.
            with suppress(StoreUnavailable):
                await self._directory.refresh()

    def _check_all(self, snapshot: Snapshot) -> None:
        for stream, (caller, _) in [pair for pair in self._open.items() if not pair[0].is_over]:
            self._check(stream, caller, snapshot)

    def _check(self, stream: Stream, caller: Caller, snapshot: Snapshot) -> None:
        try:
            check_not_revoked(caller, snapshot)
        except (Unauthenticated, TenantSuspended) as error:
            self._refuse(stream, error)

    def _refuse(self, stream: Stream, error: ProxyError) -> None:
        self._open.pop(stream, None)
        self._metrics.refusals.labels(error.code).inc()
        stream.refuse(error)
