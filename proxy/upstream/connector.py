"""Connecting: DNS, TCP with the address that answers first (RFC 8305), and TLS."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

from aiohappyeyeballs import AddrInfoType, start_connection

from proxy.singleflight import SingleFlight

#: How long the addresses of a host count before they are looked up again.
DNS_SECONDS = 10.0
#: How long an address may take before the next one is tried beside it (RFC 8305, section 8).
_NEXT_ADDRESS_SECONDS = 0.25
#: Raises a ValueError for an address that may not be connected to.
CheckAddress = Callable[[str], None]
#: Finds the addresses of a host and a port.
LookUp = Callable[[str, int], Awaitable[list[AddrInfoType]]]
P = TypeVar("P", bound=asyncio.BaseProtocol)


class Addresses:
    """Looks up the addresses of hosts: once for all callers at the same time, and again after `DNS_SECONDS`.

    Args:
        look_up: finds the addresses; the event loop does, if unset.
    """

    def __init__(self, look_up: LookUp | None = None) -> None:
        self._find = look_up or _look_up
        self._found: dict[tuple[str, int], tuple[float, list[AddrInfoType]]] = {}
        self._lookups: SingleFlight[list[AddrInfoType]] = SingleFlight()

    async def find(self, host: str, port: int) -> list[AddrInfoType]:
        """Find the addresses of a host. Each call puts another one first, so that connections spread over them.

        Raises:
            OSError: the host has no address, or DNS does not answer.
            UnicodeError: `host` is not the name of a host.
        """
        now, key = asyncio.get_running_loop().time(), (host, port)
        until, addresses = self._found.get(key, (now, []))
        if until <= now:
            addresses = await self._lookups.run(key, partial(self._look_up, host, port))
        addresses.append(addresses.pop(0))
        return list(addresses)

    async def _look_up(self, host: str, port: int) -> list[AddrInfoType]:
        found = await self._find(host, port)
        if not found:
            raise OSError("the host has no address")
        now = asyncio.get_running_loop().time()
        self._found = {key: kept for key, kept in self._found.items() if kept[0] > now}
        # `find` turns the list by one before it returns it: its first call is to get the resolver's order.
        addresses: list[AddrInfoType] = [found[-1], *found[:-1]]
        self._found[host, port] = now + DNS_SECONDS, addresses
        return addresses


async def _look_up(host: str, port: int) -> list[AddrInfoType]:
    loop = asyncio.get_running_loop()
    return list(await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG))


class Connector:
    """Opens connections to hosts.

    Args:
        ssl_context: verifies the servers of https.
        check_address: sees all addresses of a host before the first is connected to.
        look_up: finds these addresses; the event loop does, if unset.
    """

    def __init__(
        self, ssl_context: ssl.SSLContext, check_address: CheckAddress | None = None, look_up: LookUp | None = None
    ) -> None:
        self._ssl_context = ssl_context
        self._check_address = check_address
        self._addresses = Addresses(look_up)

    async def connect(self, scheme: str, host: str, port: int | None, make: Callable[[], P]) -> P:
        """Open a connection, with TLS for https, and return its protocol.

        Args:
            port: None for that of the scheme.
            make: makes the protocol.

        Raises:
            OSError: no address of the host can be connected to, or its certificate cannot be verified.
            UnicodeError: `host` is not the name of a host.
            ValueError: `check_address` refuses one of its addresses.
        """
        secure = scheme == "https"
        addresses = await self._addresses.find(host, port or (443 if secure else 80))
        if self._check_address is not None:
            for address in addresses:
                self._check_address(address[4][0])
        loop = asyncio.get_running_loop()
        context, name = (self._ssl_context, host.rstrip(".")) if secure else (None, None)
        while True:
            sock = await start_connection(addresses, happy_eyeballs_delay=_NEXT_ADDRESS_SECONDS)
            others = _list_others(addresses, sock)
            try:
                _, protocol = await loop.create_connection(make, sock=sock, ssl=context, server_hostname=name)
                return protocol
            except BaseException as error:
                # The socket belongs to the event loop, which closes it later; the server is to see the end now.
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                if not isinstance(error, OSError) or not others:
                    raise
            # TLS failed with one server; the others may do better.
            addresses = others


def _list_others(addresses: list[AddrInfoType], sock: socket.socket) -> list[AddrInfoType]:
    """Return the addresses that a socket is not connected to; none if the socket does not say where it is."""
    try:
        peer = sock.getpeername()[:2]
    except OSError:
        return []
    others = [address for address in addresses if address[4][:2] != peer]
    return others if len(others) < len(addresses) else []
