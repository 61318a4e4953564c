"""Requests to URLs that tenants' settings name: to public addresses, a bounded time and size, and no redirect.

The addresses of a host are judged after they were looked up, and before one is connected to.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

import httpx

from proxy.networks import TrustedNetworks
from proxy.tenants.addresses import is_public
from proxy.upstream.engine import Body, text_of
from proxy.upstream.resolver import Resolver
from proxy.upstream.transport import EngineTransport


@dataclass(frozen=True)
class Answer:
    """What a server answered: `body` are its first bytes, one more than were asked for if there are more."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class OutboundClient:
    """Asks servers, over a connection of its own for each request.

    Args:
        networks: where they may be, beside public addresses.
        setting: the variable that names the networks, for errors.
        ssl_context: what verifies servers; httpx's by default, as for fal.
        seconds: for a whole request.
        allows_http: whether servers in these networks may speak plain http. Nothing secret or trusted goes that way.
        resolver: looks up their names.
    """

    def __init__(
        self,
        networks: tuple[str, ...],
        setting: str,
        ssl_context: ssl.SSLContext | None,
        seconds: float,
        *,
        allows_http: bool = False,
        resolver: Resolver | None = None,
    ) -> None:
        self._resolver = resolver or Resolver()
        self._allows_http = allows_http
        self._networks = TrustedNetworks(networks)
        self._setting = setting
        self._ssl_context = ssl_context
        self._seconds = seconds

    async def request(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None, *, most_bytes: int
    ) -> Answer:
        """Ask once, and read up to `most_bytes` of the answer; none for 0.

        Raises:
            OSError: the server cannot be reached in time.
            ValueError: it is at an address that may not be asked, speaks plain http and may not, or the URL is none.
        """
        if not url.isascii():
            raise ValueError("it is not in ASCII; write an international name as xn--…")
        is_secure = urlsplit(url).scheme == "https"
        if not is_secure and not self._allows_http:
            raise ValueError("it is plain http; use https")
        try:
            sent = {"accept-encoding": "identity", "user-agent": "fal-proxy", **headers}
            request = httpx.Request(method, url, headers=sent, content=body)
        except httpx.InvalidURL:
            raise ValueError("it is no URL") from None
        check_address = partial(self._check_address, is_secure)
        transport = EngineTransport(
            ssl_context=self._verifying_context(), check_address=check_address, look_up=self._resolver.find
        )
        try:
            async with asyncio.timeout(self._seconds):
                reply = await transport.send(request)
                return Answer(reply.status_code, text_of(reply.headers), await _read(reply.body, most_bytes))
        except httpx.TransportError as problem:
            raise OSError(f"the connection failed ({type(problem.__cause__ or problem).__name__})") from problem
        except TimeoutError:
            raise OSError(f"no whole answer within {self._seconds:g} seconds") from None
        finally:
            await transport.aclose()

    def _verifying_context(self) -> ssl.SSLContext:
        if self._ssl_context is None:
            # Reading the authorities of the system takes a while.
            self._ssl_context = httpx.create_ssl_context()
        return self._ssl_context

    def _check_address(self, is_secure: bool, address: str) -> None:
        if self._networks.contains((address, 0)):
            return
        if not is_secure:
            raise ValueError(f"plain http is only for hosts that {self._setting} names; use https")
        if not is_public(address):
            raise ValueError(f"its host has an internal address; {self._setting} can allow it")


async def _read(body: Body, most_bytes: int) -> bytes:
    """Read the first bytes of a body: one more than are asked for if there are more."""
    found = bytearray()
    while most_bytes and len(found) <= most_bytes and (more := await body.read()):
        found += more
    return bytes(found[: most_bytes + 1])
