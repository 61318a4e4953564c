"""Finds the node of a Redis Cluster that has the keys.

All keys are in one slot, so on one node: no client is needed that knows the whole cluster. A node without the slot
names the one that has it, and the connection goes there. If that one does not answer, the next connection begins again
where the URL leads.
"""

from __future__ import annotations

from redis.exceptions import MovedError


class Route:
    """Where the keys are: at the address of the URL until a node names another."""

    def __init__(self, host: str, port: int) -> None:
        self._first = self.address = (host, port)

    def follow(self, moved: MovedError) -> None:
        # Without a host it is another port of the same one.
        self.address = (moved.host or self.address[0], moved.port)

    def begin_again(self) -> None:
        self.address = self._first
