"""Polls that are asked again, byte for byte: nine calls in ten, of which everything but the answer is known.

Who asks, and about which job of their own, follows from the bytes of a request, from the host that sends them and from
the directory. So what was found out about a poll holds for its repetitions, as long as the directory says the same and
the session has not expired. Each is counted against its limits like the first, and one whose answer is not in memory
goes the whole way.

`InstantPolls` answers what needs no waiting before the request is parsed, and `RepeatedPolls` the rest. What each saves
is in docs/performance.md.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, NamedTuple

from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.calls.call import Call
from proxy.calls.polls import StatusQuery, answer_status
from proxy.clock import Clock
from proxy.drain import Drain
from proxy.http.header_lines import write_lines
from proxy.http.repetition import EXTENSION, Answer, WholeRequest
from proxy.http.reply import Reply
from proxy.http.request_ids import new_request_id
from proxy.http.scope import SHOWN
from proxy.jobs.hub import Hub
from proxy.jobs.updates import Update
from proxy.limits.rates import RateLimiter, write_policy
from proxy.limits.session_quotas import SESSION_QUOTAS, SessionQuotas
from proxy.log_context import FIELDS, quiet
from proxy.networks import network
from proxy.stores.counters import Window
from proxy.telemetry.metrics import Metrics
from proxy.tenants.caller import Session
from proxy.tenants.directory import Directory, Snapshot

#: Polls that are remembered, of about three kilobytes each: 12 MB at most.
MOST = 4_000
#: What an answer may depend on beside what is looked at here: a page of another origin, an id of this request, a body.
_APART = frozenset((b"origin", b"x-request-id", b"content-length", b"transfer-encoding", b"expect", b"upgrade"))
_KEEPS_CONNECTION = (b"connection", b"keep-alive")
_access = logging.getLogger("proxy.access")


class Written(NamedTuple):
    """The answer to a poll for as long as the state of its job is the same.

    Attributes:
        before: the lines of its head before that of the request's id.
        after: those behind it, up to what is left of the limits.
    """

    update: Update
    status: int
    before: bytes
    after: bytes
    body: bytes


@dataclass(slots=True, eq=False)
class Poll:
    """What is known of a poll: whose it is, what it asks, what it counts against, what is shown and logged of it.

    Attributes:
        written: its last answer.
    """

    session: Session
    query: StatusQuery
    scopes: tuple[str, ...]
    windows: tuple[Window, ...]
    route: Any
    shown: list[tuple[bytes, bytes]]
    log_fields: dict[str, Any]
    quotas: SessionQuotas | None = None
    written: Written | None = None

    def write(self, update: Update) -> Written:
        """Write the answer of a moment, or find it written: nine in ten are as the one before."""
        written = self.written
        if written is None or written.update is not update:
            outcome = answer_status(self.query, update)
            before = Reply(outcome.status, outcome.headers, outcome.body).raw_headers
            after = list(self.shown)
            if self.windows:
                after.append((b"ratelimit-policy", write_policy(self.scopes, self.windows)))
            written = Written(update, outcome.status, write_lines(before), write_lines(after), outcome.body)
            self.written = written
        return written


class PollCache:
    """The polls of one reading of the directory that were answered from memory, by their bytes."""

    def __init__(self, directory: Directory, limiter: RateLimiter, clock: Clock) -> None:
        self._directory = directory
        self._limiter = limiter
        self._clock = clock
        self._polls: dict[WholeRequest, Poll] = {}
        self._snapshot: Snapshot | None = None

    def __len__(self) -> int:
        return len(self._polls)

    def clear(self) -> None:
        self._polls.clear()

    def find(self, request: WholeRequest) -> Poll | None:
        """Find what is known of a request, if it still holds."""
        poll = self._polls.get(request)
        if poll is None or self._directory.young() is not self._snapshot:
            return None
        return poll if poll.session.expires_at > self._clock.now() else None

    def remember(self, call: Call, query: StatusQuery) -> None:
        """Keep what was found out about a poll. Not of a tenant's key: each use of one is written down."""
        snapshot, scope, caller = self._directory.young(), call.request.scope, call.caller
        request = scope.get("extensions", {}).get(EXTENSION)
        if request is None or caller.session is None or snapshot is None or not _stands_alone(scope):
            return
        if snapshot is not self._snapshot or len(self._polls) >= MOST:
            self._polls.clear()
            self._snapshot = snapshot
        scopes, windows = self._limiter.windows(caller, network(scope["client"]), polls=True)
        state = scope["state"]
        shown = [header for header in state.get(SHOWN, ()) if header[0] != b"x-request-id"]
        self._polls[request] = Poll(
            caller.session,
            query,
            scopes,
            windows,
            scope["route"],
            shown,
            state[FIELDS].copy(),
            state.get(SESSION_QUOTAS),
        )


class InstantPolls:
    """Answers the polls that are known and need no waiting."""

    def __init__(self, cache: PollCache, hub: Hub, limiter: RateLimiter, metrics: Metrics, drain: Drain) -> None:
        self._cache = cache
        self._hub = hub
        self._limiter = limiter
        self._metrics = metrics
        self._drain = drain

    def answer(self, request: WholeRequest) -> Answer | None:
        """Answer a poll as the whole stack does, or give None for what that must answer.

        That is also each poll whose answer says more (the quotas of a session, the end of this process), each that is
        refused, and each that has a line in the log.
        """
        started = time.perf_counter()
        poll = self._cache.find(request)
        if poll is None or poll.quotas is not None or self._drain.started.is_set():
            return None
        update = self._hub.find_cached(poll.query.job)
        if update is None or _access.isEnabledFor(logging.DEBUG):
            return None
        left = b""
        if poll.windows:
            allowance = self._limiter.count_now(poll.scopes, poll.windows)
            if allowance is None:
                return None
            left = b"\r\nratelimit: " + allowance.write_least()
        _, status, before, after, body = poll.write(update)
        lines = b"%b\r\nx-request-id: %b%b%b" % (before, new_request_id().encode("ascii"), after, left)
        self._metrics.count_answer(poll.route.path, status, time.perf_counter() - started)
        return Answer(status, lines, body)


class RepeatedPolls:
    """ASGI, next to the routes: answers the polls that are known."""

    def __init__(self, app: ASGIApp, cache: PollCache, hub: Hub, limiter: RateLimiter) -> None:
        self._app = app
        self._cache = cache
        self._hub = hub
        self._limiter = limiter

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        request = scope.get("extensions", {}).get(EXTENSION)
        if request is not None and scope["method"] == "GET":
            poll = self._cache.find(request)
            if poll is not None and (update := self._hub.find_cached(poll.query.job)) is not None:
                return self._answer(poll, update, scope, receive, send)
        return self._app(scope, receive, send)

    async def _answer(self, poll: Poll, update: Update, scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"], scope["state"][FIELDS] = poll.route, poll.log_fields.copy()
        quiet(scope)
        if poll.quotas is not None:
            scope["state"][SESSION_QUOTAS] = poll.quotas
        await self._limiter.count(scope, poll.scopes, poll.windows)
        outcome = answer_status(poll.query, update)
        await Reply(outcome.status, outcome.headers, outcome.body)(scope, receive, send)


def _stands_alone(scope: Scope) -> bool:
    """Return whether the answer depends only on what is looked at here, and the connection stays open after it."""
    head = scope["headers"]
    keeps = scope.get("http_version") == "1.1" and all(
        header == _KEEPS_CONNECTION for header in head if header[0] == b"connection"
    )
    return keeps and _APART.isdisjoint(name for name, _ in head)
