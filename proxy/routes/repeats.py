"""Polls that are asked again, byte for byte: nine calls in ten, of which everything but the answer is known.

Who asks, and about which job of their own, follows from the bytes of a request, from the caller's address and from the
directory. So what was found out about a poll holds for its repetitions, as long as the directory says the same and the
session has not expired. Each is counted against its limits like the first, and one whose answer is not in memory goes
the whole way.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.auth.callers import Caller
from proxy.auth.sessions import Session
from proxy.jobs.updates import Update
from proxy.policy.directory import Snapshot
from proxy.policy.ratelimit import network
from proxy.routes.polls import Asked, Told
from proxy.routes.services import Services
from proxy.stores.base import Window

#: Polls that are remembered, of about three kilobytes each.
MOST = 8_000
#: Of the head of a request; a longer one is not worth the memory.
MOST_HEAD_BYTES = 4_000
#: What an answer may depend on beside what is looked at here: a page of another origin, an id of this request, a body.
_APART = frozenset((b"origin", b"x-request-id", b"content-length", b"transfer-encoding"))
#: Where a route leaves word of a poll that it answered from memory.
STATE = "poll"


@dataclass(frozen=True, slots=True)
class Poll:
    """What is known of a poll: whose it is, what it asks, what it counts against, and what is logged of it."""

    session: Session
    asked: Asked
    scopes: tuple[str, ...]
    windows: tuple[Window, ...]
    route: Any
    facts: dict[str, Any]


def leave_word(services: Services, scope: Scope, caller: Caller, answer: Told) -> None:
    """Tell that a poll was answered from memory. Not of a tenant's key: when that is used is noted each time."""
    if caller.session is not None:
        scopes, windows = services.limiter.windows(caller, network(scope["client"]), polls=True)
        facts = scope["state"]["facts"].copy()
        scope["state"][STATE] = Poll(caller.session, answer.asked, scopes, windows, scope["route"], facts)


class Repeats:
    """ASGI, next to the routes: answers polls that are repeated, and remembers those that the routes leave word of."""

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self._app = app
        self._services = services
        self._polls: dict[Hashable, Poll] = {}
        self._snapshot: Snapshot | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "GET":
            return await self._app(scope, receive, send)
        request = scope["raw_path"], scope["query_string"], network(scope["client"]), tuple(scope["headers"])
        poll = self._known(request)
        update = self._services.hub.known(poll.asked.job) if poll else None
        if poll is None or update is None:
            await self._app(scope, receive, send)
            self._remember(request, scope)
            return None
        return await self._answer(poll, update, scope, receive, send)

    def _known(self, request: Hashable) -> Poll | None:
        poll = self._polls.get(request)
        if poll is None or self._services.directory.young() is not self._snapshot:
            return None
        return poll if poll.session.expires_at > self._services.clock.now() else None

    async def _answer(self, poll: Poll, update: Update, scope: Scope, receive: Receive, send: Send) -> None:
        state = scope["state"]
        scope["route"], state["facts"], state["is_routine"] = poll.route, poll.facts.copy(), True
        allowance = await self._services.limiter.count(poll.scopes, poll.windows)
        if not update.is_last:
            await self._services.settlement.lives(poll.asked.job)
        answer = Told(poll.asked, update)
        answer.raw_headers += allowance.raw_headers()
        await answer(scope, receive, send)

    def _remember(self, request: Hashable, scope: Scope) -> None:
        poll: Poll | None = scope["state"].get(STATE)
        snapshot = self._services.directory.young()
        if poll is None or snapshot is None or not _stands_alone(scope["headers"]):
            return
        if snapshot is not self._snapshot or len(self._polls) >= MOST:
            self._polls.clear()
            self._snapshot = snapshot
        self._polls[request] = poll


def _stands_alone(head: list[tuple[bytes, bytes]]) -> bool:
    """Whether all that the answer depends on is looked at here, and it is worth remembering."""
    size = sum(len(name) + len(value) for name, value in head)
    return size <= MOST_HEAD_BYTES and _APART.isdisjoint(name for name, _ in head)
