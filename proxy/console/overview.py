"""The first page of the console: what happens now, live."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from starlette.responses import Response
from starlette.routing import Route

from proxy.clock import Clock
from proxy.console.door import ConsoleDoor, Visit
from proxy.console.sessions import ConsoleSessions
from proxy.drain import Drain
from proxy.errors import RateLimited, SessionExpired
from proxy.http.event_stream import EventStream
from proxy.limits.usage import Period, UsageQuestion, describe, read_usage
from proxy.routes.admin_upstreams import describe_upstreams
from proxy.routes.queries import known_query
from proxy.stores.ledger import Ledger
from proxy.telemetry.metrics import Metrics
from proxy.tenants.directory import Directory
from proxy.upstream import sse
from proxy.upstream.guard import Guard

#: Streams of one process, and of one session in it: each open page has one.
MOST_STREAMS, MOST_STREAMS_PER_SESSION = 32, 4
#: Between two looks at the figures.
PAUSE_SECONDS = 2.0
#: After this many looks without a change, a stream says that it is still there.
QUIET_LOOKS = 7
TEMPLATE, EVENT = "figures.html", "figures"


class FigureReader:
    """Reads the figures of the overview, once for all pages that show them at the same time."""

    def __init__(self, ledger: Ledger, guard: Guard, directory: Directory, metrics: Metrics, clock: Clock) -> None:
        self._ledger = ledger
        self._guard = guard
        self._directory = directory
        self._metrics = metrics
        self._clock = clock
        self._figures: dict[str, Any] = {}
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()

    async def read(self) -> dict[str, Any]:
        """Read the figures; pages that ask within `PAUSE_SECONDS` share one reading.

        Raises:
            StoreUnavailable: the database does not answer.
        """
        async with self._reading:
            now = self._clock.now()
            if not 0 <= now - self._read_at < PAUSE_SECONDS:
                self._figures, self._read_at = await self._read(now), now
            return self._figures

    async def _read(self, now: float) -> dict[str, Any]:
        today = datetime.fromtimestamp(now, UTC).date()
        question = UsageQuestion(None, None, Period(today, today), frozenset({"endpoint"}))
        rows = await read_usage(self._ledger, question)
        snapshot = await self._directory.snapshot()
        return {
            "usage": describe(question, rows, rows),
            "upstreams": await describe_upstreams(self._guard, self._ledger),
            "refusals": await self._metrics.list_refusals(),
            "tenants": len(snapshot.tenants),
            "suspended": sorted(snapshot.suspended),
        }


class LiveStreams:
    """Counts the open streams of the console in this process."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()

    def take(self, session_id: str) -> Callable[[], None]:
        """Count one more stream of a session; call what is returned once, at its end.

        Raises:
            RateLimited: there are as many as may be.
        """
        if self._open.total() >= MOST_STREAMS or self._open[session_id] >= MOST_STREAMS_PER_SESSION:
            raise RateLimited("As many pages of the console are live as may be; close one.", retry_after=5)
        self._open[session_id] += 1

        def give_back() -> None:
            self._open[session_id] -= 1
            if not self._open[session_id]:
                del self._open[session_id]

        return give_back


class OverviewPage:
    """Show the figures, and send them again when they change."""

    def __init__(
        self, door: ConsoleDoor, reader: FigureReader, sessions: ConsoleSessions, drain: Drain, clock: Clock
    ) -> None:
        self._door = door
        self._reader = reader
        self._sessions = sessions
        self._drain = drain
        self._clock = clock
        self._streams = LiveStreams()

    def routes(self) -> list[Route]:
        return [self._door.page("", self.show), self._door.page("/live", self.stream)]

    async def show(self, visit: Visit) -> Response:
        known_query(visit.request)
        return visit.respond("overview.html", **await self._reader.read())

    async def stream(self, visit: Visit) -> Response:
        known_query(visit.request)
        self._drain.refuse_new_work()
        give_back = self._streams.take(visit.session.id)
        return EventStream(self._list_changes(visit), {}, on_close=[give_back])

    async def _list_changes(self, visit: Visit) -> AsyncGenerator[bytes, None]:
        """Yield the figures now and after each change, until the session or this process ends."""
        last, quiet = "", 0
        while not self._drain.started.is_set():
            await self._check_session(visit)
            figures = visit.pages.render(TEMPLATE, await self._reader.read())
            if figures != last:
                last, quiet = figures, 0
                yield sse.encode(figures.encode(), name=EVENT)
            elif (quiet := quiet + 1) >= QUIET_LOOKS:
                quiet = 0
                yield sse.PING
            with suppress(TimeoutError):
                await asyncio.wait_for(self._drain.started.wait(), PAUSE_SECONDS)

    async def _check_session(self, visit: Visit) -> None:
        """Make sure that the session still counts: an open page does not keep it alive.

        Raises:
            SessionExpired, SessionRevoked, Unauthenticated, StoreUnavailable: the session counts no longer.
        """
        if visit.session.expires_at <= self._clock.now():
            raise SessionExpired("The session has expired; sign in again.")
        await self._sessions.find_holder(visit.session)
