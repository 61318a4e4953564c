"""Addresses of peers: what counts as one caller, and which peers are balancers."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from functools import lru_cache

#: The host and port of a peer, as ASGI has them; None for a peer without an address, on a Unix socket.
Peer = tuple[str, int] | None


def network(peer: Peer) -> str:
    """Return the address of a peer; of IPv6 the /64, as that is what one household gets. Never empty."""
    return _network(peer[0] if peer else "")


@lru_cache(maxsize=4096)
def _network(host: str) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host or "unknown"
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            # An IPv4 caller of a socket that takes both; all of them share one /64.
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


@lru_cache(maxsize=4096)
def is_private(host: str) -> bool:
    """Return whether an address is not public, such as one of a balancer, a container or this machine."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return not (getattr(address, "ipv4_mapped", None) or address).is_global


class TrustedNetworks:
    """The balancers in front, as `PROXY_TRUSTED_PROXIES` names them."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = tuple(ipaddress.ip_network(one) for one in networks)

    def contains(self, peer: Peer) -> bool:
        """Return whether a peer is one of them; a peer on a Unix socket always is."""
        if peer is None:
            return True
        try:
            address = ipaddress.ip_address(peer[0])
        except ValueError:
            return False
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return any((mapped or address) in network for network in self._networks)
