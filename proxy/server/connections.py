"""The connections of one listener in one process: how many there may be, and how long each may keep it waiting.

A connection that waits for its caller has a deadline. When the process has as many connections as it may have, new ones
take the place of those that wait and are nearest to their deadline; only where all are busy a new one is refused. An
address that has more than its share is refused at once.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import math
from collections import Counter
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Protocol

from proxy.networks import Peer, TrustedNetworks, is_private, network
from proxy.server.coalescing import Outbox
from proxy.server.direct_body import LEAST_DIRECT_BYTES, BodyBuffers
from proxy.telemetry.log_limit import LogLimit
from proxy.telemetry.metrics import Metrics

#: How often connections past their deadline are looked for.
SWEEP_SECONDS = 1.0
NEVER = math.inf
#: Of the connections, a third may come from one public address if nothing else is set. A private address is mostly that
#: of a balancer, or of a network of containers, behind which many callers are.
PUBLIC_SHARE = 3
#: Of the connections, a 64th makes room at once: looking at all of them for each new one would take too long.
EVICTED_SHARE = 64
#: Refused connections that stay until their answer is read; more are closed without an answer.
MAX_ANSWERED_REFUSALS = 128
#: Events that strangers can cause.
LIMIT_REACHED, BAD_REQUEST = "connection limit reached", "bad request"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ConnectionLimits:
    """What a connection may cost.

    Attributes:
        most: connections of one process.
        most_per_address: of one IPv4 address or IPv6 /64; does not hold for `trusted` peers, which are balancers. None
            bounds public addresses only.
        connect_seconds: how long a new connection may be silent.
        head_seconds: from the first byte of a request to the end of its head.
        keep_alive_seconds: how long a connection may be idle between requests.
        write_seconds: how long a caller may take nothing of its answer.
        direct_bytes: a body of which more is left behind its first packet is read directly (`direct_body.py`).
        trusted: networks of the balancers in front.
    """

    most: int = 12_000
    most_per_address: int | None = None
    connect_seconds: float = 60
    head_seconds: float = 30
    keep_alive_seconds: float = 75
    write_seconds: float = 60
    direct_bytes: int = LEAST_DIRECT_BYTES
    trusted: tuple[str, ...] = ()

    def scale_to(self, most: int) -> ConnectionLimits:
        """Return the same limits, in proportion, for a process that can have no more connections than this."""
        if most >= self.most:
            return self
        per_address = self.most_per_address and max(1, self.most_per_address * most // self.most)
        return replace(self, most=most, most_per_address=per_address)

    def most_from(self, peer: Peer) -> float:
        """Return how many connections a peer may have that is no balancer."""
        if self.most_per_address is not None:
            return self.most_per_address
        return math.inf if peer is None or is_private(peer[0]) else max(1, self.most // PUBLIC_SHARE)


class Connection(Protocol):
    """A connection as `Connections` sees it; it ends at its deadline, a time of the event loop."""

    deadline: float

    def expire(self) -> None:
        """End what took too long."""

    def evict(self) -> None:
        """Close now, to make room."""

    @property
    def is_waiting(self) -> bool:
        """Whether the caller has to send something: no answer is on its way."""


class Connections:
    """Admits connections within the limits, and ends those whose deadline has passed.

    One timer looks at all connections: a timer for each request would cost more than the rest of its bookkeeping.
    """

    def __init__(self, limits: ConnectionLimits, metrics: Metrics) -> None:
        self.limits = limits
        self.body_buffers = BodyBuffers()
        self.outbox = Outbox(limits.write_seconds)
        self._loop = asyncio.get_running_loop()
        self._open: set[Connection] = set()
        self._refused: set[Connection] = set()
        #: Closing, and among the open ones until they are closed.
        self._evicted: set[Connection] = set()
        self._by_address: Counter[str] = Counter()
        self._trusted = TrustedNetworks(limits.trusted)
        self._metrics = metrics
        metrics.connections.set_function(lambda: len(self._open))
        metrics.connections_limit.set(limits.most)
        self._sweep: asyncio.TimerHandle | None = None
        self._sweep_seconds = min(SWEEP_SECONDS, limits.connect_seconds, limits.head_seconds, limits.keep_alive_seconds)
        #: Since the last sweep, none waited: no use to look at all of them for each one that is refused.
        self._are_busy = False
        # Each event has its own, so that bad requests do not use up the lines of the other.
        self._logged = {event: LogLimit() for event in (LIMIT_REACHED, BAD_REQUEST)}

    def __len__(self) -> int:
        return len(self._open)

    def admit(self, connection: Connection, peer: Peer) -> bool:
        """Count a new connection; False, and not counted, if there are as many as may be."""
        address = network(peer)
        reason = self._find_limit(address, peer)
        if reason is not None:
            self._metrics.connections_refused.labels(reason).inc()
            self._refused.add(connection)
            return False
        self._open.add(connection)
        self._by_address[address] += 1
        if self._sweep is None:
            self._sweep = self._loop.call_later(self._sweep_seconds, self._expire)
        return True

    def may_answer_refusal(self) -> bool:
        """Return whether a refused connection may stay until its answer is read."""
        return len(self._refused) <= MAX_ANSWERED_REFUSALS

    def discard(self, connection: Connection, peer: Peer) -> None:
        """Forget a connection that has ended."""
        self._refused.discard(connection)
        self._evicted.discard(connection)
        if connection not in self._open:
            return
        self._open.discard(connection)
        address = network(peer)
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]

    def warn(self, peer: Peer, **fields: object) -> None:
        """Log a bad request, at most once a minute for each address."""
        self._warn(BAD_REQUEST, network(peer), **fields)

    def _warn(self, event: str, address: str, **fields: object) -> None:
        if self._logged[event].admits(address):
            _log.warning(event, extra={"log_fields": {"address": address, **fields}})

    def _find_limit(self, address: str, peer: Peer) -> str | None:
        """Return the limit that a new connection would exceed; None if there is room, or room can be made."""
        most, held = self.limits.most_from(peer), self._by_address[address]
        if held >= most and not self._trusted.contains(peer):
            self._warn(LIMIT_REACHED, address, limit="address", most=most, connections=held)
            return "address"
        if len(self._open) - len(self._evicted) < self.limits.most:
            return None
        self._warn(LIMIT_REACHED, address, limit="process", most=self.limits.most, connections=len(self._open))
        return None if self._make_room() else "process"

    def _make_room(self) -> bool:
        """Close the waiting connections that are nearest to their deadline; return whether there were any."""
        if self._are_busy:
            return False
        waiting = [one for one in self._open - self._evicted if one.is_waiting]
        evicted = heapq.nsmallest(max(1, self.limits.most // EVICTED_SHARE), waiting, key=attrgetter("deadline"))
        self._evicted.update(evicted)
        for connection in evicted:
            connection.evict()
        self._metrics.connections_evicted.inc(len(evicted))
        self._are_busy = not evicted
        return bool(evicted)

    def _expire(self) -> None:
        self._are_busy = False
        now = self._loop.time()
        for connection in [one for one in self._open if one.deadline <= now]:
            connection.expire()
        self._sweep = self._loop.call_later(self._sweep_seconds, self._expire) if self._open else None
