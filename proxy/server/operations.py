"""The listener for operators: metrics, readiness and administration on an address of their own."""

from __future__ import annotations

import socket
from dataclasses import dataclass, replace

from proxy.server.factory import ProtocolFactory
from proxy.server.options import connection_limits
from proxy.settings import ServerSettings

#: Operators, probes and scrapers are few; however full the public listener is, these are let in.
MAX_CONNECTIONS = 64


@dataclass(frozen=True)
class OperationsListener:
    """A bound socket, which all workers share, and what serves its connections in each of them."""

    socket: socket.socket
    protocol: ProtocolFactory

    def close(self) -> None:
        self.socket.close()


def bind_operations(server: ServerSettings) -> OperationsListener | None:
    """Bind the address of the operations listener; None if the settings name none.

    Raises:
        OSError: the address cannot be bound.
    """
    if server.ops_port is None:
        return None
    family = socket.AF_INET6 if ":" in server.ops_host else socket.AF_INET
    bound = socket.create_server((server.ops_host, server.ops_port), family=family)
    limits = connection_limits(server)
    limits = replace(limits, most=min(MAX_CONNECTIONS, limits.most), most_per_address=None)
    return OperationsListener(bound, ProtocolFactory(limits, is_public=False))
