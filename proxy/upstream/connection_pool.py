"""The open connections to the upstream: which one a request gets, and when each is closed."""

from __future__ import annotations

import asyncio
import ssl
from functools import partial

import httpx

from proxy.upstream.connection import Connection
from proxy.upstream.connector import CheckAddress, Connector, LookUp
from proxy.upstream.engine import Origin

#: fal's edge does not say how long it keeps an idle connection. One that is idle for longer than this is closed, not
#: used: fal may be closing it at the same moment.
IDLE_SECONDS = 15.0
#: Older connections are closed, so that traffic follows changes of DNS.
MAX_AGE_SECONDS = 600.0


class ConnectionPool:
    """Opens connections, and keeps idle ones for the next request to the same origin.

    Args:
        idle_seconds, max_age_seconds: since its last reply, and since it was opened, after which an idle connection
            is closed.
        check_address, look_up: as for `Connector`.
    """

    def __init__(
        self,
        ssl_context: ssl.SSLContext,
        idle_seconds: float,
        max_age_seconds: float,
        check_address: CheckAddress | None,
        look_up: LookUp | None = None,
    ) -> None:
        self._connector = Connector(ssl_context, check_address, look_up)
        self._idle_seconds = idle_seconds
        self._max_age_seconds = max_age_seconds
        #: The one that was used last at the end.
        self._idle: dict[Origin, list[Connection]] = {}
        self._sweeping: asyncio.TimerHandle | None = None
        self._is_closed = False

    def take_idle(self, origin: Origin) -> Connection | None:
        """Take the idle connection that was used last, of those that still can be used; None if there is none."""
        if idle := self._idle.get(origin):
            now = asyncio.get_running_loop().time()
            while idle:
                candidate = idle.pop()
                if candidate.is_usable and not self._is_stale(candidate, now):
                    return candidate
                candidate.drop()
        return None

    async def open(self, origin: Origin, limit: float | None) -> Connection:
        """Open a new connection.

        Args:
            limit: seconds for DNS, TCP and TLS together; None for any number.

        Raises:
            UnsupportedProtocol: the origin is not one of http or https.
            ConnectError, ConnectTimeout: the upstream cannot be reached; nothing was sent.
            ValueError: `check_address` refuses an address of the host.
        """
        scheme, host, port = origin
        if scheme not in ("http", "https") or not host:
            raise httpx.UnsupportedProtocol("Only http:// and https:// URLs can be sent.")
        make = partial(Connection, asyncio.get_running_loop(), origin)
        try:
            async with asyncio.timeout(limit):
                connection = await self._connector.connect(scheme, host, port, make)
        except TimeoutError as error:
            raise httpx.ConnectTimeout("The upstream could not be reached in time.") from error
        except (OSError, UnicodeError) as error:
            raise httpx.ConnectError(f"The upstream cannot be reached: {error}") from error
        if self._is_closed:
            connection.drop()
            raise httpx.ConnectError("The transport is closed.")
        return connection

    def give_back(self, used: Connection) -> None:
        """Keep a connection for the next request. One that is too old is closed, and any after `close`."""
        now = asyncio.get_running_loop().time()
        if self._is_closed or now - used.opened_at >= self._max_age_seconds:
            used.drop()
            return
        used.has_served, used.idle_since = True, now
        self._idle.setdefault(used.origin, []).append(used)
        if self._sweeping is None:
            self._sweep_later()

    def close(self) -> None:
        """Close what is idle, and open nothing more."""
        self._is_closed = True
        if self._sweeping is not None:
            self._sweeping.cancel()
        for idle in self._idle.values():
            while idle:
                idle.pop().drop()

    def _is_stale(self, candidate: Connection, now: float) -> bool:
        is_old = now - candidate.opened_at >= self._max_age_seconds
        return is_old or now - candidate.idle_since >= self._idle_seconds

    def _sweep_later(self) -> None:
        self._sweeping = asyncio.get_running_loop().call_later(min(self._idle_seconds, 1.0), self._sweep)

    def _sweep(self) -> None:
        """Close connections that are idle for too long; forget those that the upstream has closed."""
        now = asyncio.get_running_loop().time()
        for idle in self._idle.values():
            for candidate in idle:
                if not candidate.is_usable or self._is_stale(candidate, now):
                    candidate.drop()
            idle[:] = [candidate for candidate in idle if candidate.is_usable]
        self._sweeping = None
        if any(self._idle.values()):
            self._sweep_later()
