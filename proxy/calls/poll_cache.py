"""Polls that are asked again, byte for byte: nine calls in ten, of which everything but the answer is known.

Who asks, and about which job of their own, follows from the bytes of a request, from the caller's address and from the
directory. So what was found out about a poll holds for its repetitions, as long as the directory says the same and the
session has not expired. Each is counted against its limits like the first, and one whose answer is not in memory goes
the whole way.

Without this, a poll takes 1.7 times the processor time (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Awaitable, Hashable
from typing import Any, NamedTuple

from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.calls.call import Call
from proxy.calls.polls import StatusQuery, answer_status
from proxy.clock import Clock
from proxy.http.reply import Reply
from proxy.jobs.hub import Hub
from proxy.jobs.settlement import Settlement
from proxy.jobs.updates import Update
from proxy.limits.rates import RateLimiter
from proxy.limits.session_quotas import SESSION_QUOTAS, SessionQuotas
from proxy.log_context import FIELDS, quiet
from proxy.networks import network
from proxy.stores.counters import Window
from proxy.tenants.caller import Session
from proxy.tenants.directory import Directory, Snapshot

#: Polls that are remembered, of about three kilobytes each: 12 MB at most.
MOST = 4_000
#: Of the head of a request; a longer one is not worth the memory.
MOST_HEAD_BYTES = 4_000
#: What an answer may depend on beside what is looked at here: a page of another origin, an id of this request, a body.
_APART = frozenset((b"origin", b"x-request-id", b"content-length", b"transfer-encoding"))


class Poll(NamedTuple):
    """What is known of a poll: whose it is, what it asks, what it counts against, and what is logged of it."""

    session: Session
    query: StatusQuery
    scopes: tuple[str, ...]
    windows: tuple[Window, ...]
    route: Any
    log_fields: dict[str, Any]
    quotas: SessionQuotas | None = None


class PollCache:
    """The polls of one reading of the directory that were answered from memory, by their bytes."""

    def __init__(self, directory: Directory, limiter: RateLimiter, clock: Clock) -> None:
        self._directory = directory
        self._limiter = limiter
        self._clock = clock
        self._polls: dict[Hashable, Poll] = {}
        self._snapshot: Snapshot | None = None

    def __len__(self) -> int:
        return len(self._polls)

    def clear(self) -> None:
        self._polls.clear()

    def find(self, scope: Scope) -> Poll | None:
        """Find what is known of a request, if it still holds."""
        poll = self._polls.get(_bytes_of(scope))
        if poll is None or self._directory.young() is not self._snapshot:
            return None
        return poll if poll.session.expires_at > self._clock.now() else None

    def remember(self, call: Call, query: StatusQuery) -> None:
        """Keep what was found out about a poll. Not of a tenant's key: each use of one is written down."""
        snapshot, scope, caller = self._directory.young(), call.request.scope, call.caller
        if caller.session is None or snapshot is None or not _stands_alone(scope["headers"]):
            return
        if snapshot is not self._snapshot or len(self._polls) >= MOST:
            self._polls.clear()
            self._snapshot = snapshot
        scopes, windows = self._limiter.windows(caller, network(scope["client"]), polls=True)
        fields = scope["state"][FIELDS].copy()
        self._polls[_bytes_of(scope)] = Poll(
            caller.session, query, scopes, windows, scope["route"], fields, scope["state"].get(SESSION_QUOTAS)
        )


class RepeatedPolls:
    """ASGI, next to the routes: answers the polls that are known."""

    def __init__(self, app: ASGIApp, cache: PollCache, hub: Hub, limiter: RateLimiter, settlement: Settlement) -> None:
        self._app = app
        self._cache = cache
        self._hub = hub
        self._limiter = limiter
        self._settlement = settlement

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] == "http" and scope["method"] == "GET":
            poll = self._cache.find(scope)
            if poll is not None and (update := self._hub.cached(poll.query.job)) is not None:
                return self._answer(poll, update, scope, receive, send)
        return self._app(scope, receive, send)

    async def _answer(self, poll: Poll, update: Update, scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"], scope["state"][FIELDS] = poll.route, poll.log_fields.copy()
        quiet(scope)
        if poll.quotas is not None:
            scope["state"][SESSION_QUOTAS] = poll.quotas
        await self._limiter.count(scope, poll.scopes, poll.windows)
        if not update.is_last:
            await self._settlement.renew_lease(poll.query.job)
        outcome = answer_status(poll.query, update)
        await Reply(outcome.status, outcome.headers, outcome.body)(scope, receive, send)


def _bytes_of(scope: Scope) -> Hashable:
    return scope["raw_path"], scope["query_string"], network(scope["client"]), tuple(scope["headers"])


def _stands_alone(head: list[tuple[bytes, bytes]]) -> bool:
    """Whether all that the answer depends on is looked at here, and it is worth remembering."""
    size = sum(len(name) + len(value) for name, value in head)
    return size <= MOST_HEAD_BYTES and _APART.isdisjoint(name for name, _ in head)
