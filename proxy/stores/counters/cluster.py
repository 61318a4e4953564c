"""Connections that find the node of a Redis Cluster that has the keys.

All keys are in one slot, so on one node: no client is needed that knows the whole cluster. A node without the slot
names the one that has it, and the connection goes there. If that one does not answer, the next connection begins again
where the URL leads.
"""

from __future__ import annotations

from typing import Any

from redis.asyncio import BlockingConnectionPool, Connection, SSLConnection
from redis.exceptions import MovedError


class Route:
    """Where the keys are, for all connections of a scope: at the address of the URL until a node names another."""

    def __init__(self, host: str, port: int) -> None:
        self._first = self.address = (host, port)

    def follow(self, moved: MovedError) -> None:
        # Without a host it is another port of the same one.
        self.address = (moved.host or self.address[0], moved.port)

    def begin_again(self) -> None:
        self.address = self._first


class _Following:
    """Mixed into a connection: takes its address from a route when it connects."""

    def __init__(self, *, route: Route, **options: Any) -> None:
        super().__init__(**options)
        self._route = route

    async def _connect(self) -> None:
        self.host, self.port = self._route.address
        try:
            await super()._connect()  # type: ignore[misc]
        except Exception:
            self._route.begin_again()
            raise

    async def disconnect(
        self,
        nowait: bool = False,
        error: Exception | None = None,
        failure_count: int | None = None,
        health_check_failed: bool = False,
    ) -> None:
        """Close the connection; before it is used again, it connects to where the error leads."""
        if isinstance(error, MovedError):
            self._route.follow(error)
        await super().disconnect(nowait, error, failure_count, health_check_failed)  # type: ignore[misc]


class FollowingConnection(_Following, Connection):
    pass


class FollowingSSLConnection(_Following, SSLConnection):
    pass


def follow_moves(scope: BlockingConnectionPool) -> None:
    """Make a scope, from which nothing was taken yet, follow its keys through a cluster."""
    classes: dict[type, type[Connection]] = {Connection: FollowingConnection, SSLConnection: FollowingSSLConnection}
    options = scope.connection_kwargs
    # A socket of the file system leads to one server only.
    if (following := classes.get(scope.connection_class)) is not None:
        options["route"] = Route(options.get("host", "localhost"), options.get("port", 6379))
        scope.connection_class = following
