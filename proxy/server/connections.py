"""The connections of one process: how many there may be, and how long each may stay silent."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from dataclasses import dataclass
from typing import Protocol

from proxy.networks import Peer, TrustedNetworks, network
from proxy.server.log_limit import LogLimit
from proxy.telemetry import Metrics

#: How often connections past their deadline are looked for.
SWEEP_SECONDS = 1.0
NEVER = math.inf


@dataclass(frozen=True)
class ConnectionLimits:
    """What a connection may cost.

    Attributes:
        most: connections of one process.
        most_per_address: of one IPv4 address or IPv6 /64; does not hold for `trusted` peers, which are balancers.
        connect_seconds: how long a new connection may be silent.
        head_seconds: from the first byte of a request to the end of its head.
        keep_alive_seconds: how long a connection may be idle between requests.
        trusted: networks of the balancers in front.
    """

    most: int = 12_000
    most_per_address: int = 4_000
    connect_seconds: float = 60
    head_seconds: float = 30
    keep_alive_seconds: float = 75
    trusted: tuple[str, ...] = ()


class Connection(Protocol):
    """A connection as `Connections` sees it; it ends at its deadline, a time of the event loop."""

    deadline: float

    def expire(self) -> None: ...


class Connections:
    """Admits connections within the limits, and ends those whose deadline has passed.

    One timer looks at all connections: a timer for each request would cost more than the rest of its bookkeeping.
    """

    def __init__(self, limits: ConnectionLimits, metrics: Metrics) -> None:
        self.limits = limits
        self._loop = asyncio.get_running_loop()
        self._open: set[Connection] = set()
        self._by_address: Counter[str] = Counter()
        self._trusted = TrustedNetworks(limits.trusted)
        self._refused = metrics.connections_refused
        metrics.connections.set_function(lambda: len(self._open))
        self._sweep: asyncio.TimerHandle | None = None
        self._warnings = LogLimit(logging.getLogger(__name__))

    def admit(self, connection: Connection, peer: Peer) -> bool:
        """Count a new connection; False if there are as many as may be, and then it is not counted."""
        address = network(peer)
        reason = self._full(address, peer)
        if reason is not None:
            self._refused.labels(reason).inc()
            self._warnings.warn("connection limit reached", address, limit=reason, connections=len(self._open))
            return False
        self._open.add(connection)
        self._by_address[address] += 1
        if self._sweep is None:
            self._sweep = self._loop.call_later(SWEEP_SECONDS, self._expire)
        return True

    def discard(self, connection: Connection, peer: Peer) -> None:
        """Forget a connection that has ended."""
        if connection not in self._open:
            return
        self._open.discard(connection)
        address = network(peer)
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]

    def warn(self, event: str, peer: Peer, **facts: object) -> None:
        """Log what a peer did, at most once a minute for each address."""
        self._warnings.warn(event, network(peer), **facts)

    def _full(self, address: str, peer: Peer) -> str | None:
        if len(self._open) >= self.limits.most:
            return "process"
        if self._by_address[address] >= self.limits.most_per_address and not self._trusted.contains(peer):
            return "address"
        return None

    def _expire(self) -> None:
        now = self._loop.time()
        for connection in [one for one in self._open if one.deadline <= now]:
            connection.expire()
        self._sweep = self._loop.call_later(SWEEP_SECONDS, self._expire) if self._open else None
