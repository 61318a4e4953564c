"""Requests to URLs that tenants' settings name: to public addresses, a bounded time and size, and no redirect.

aiohttp asks a resolver of ours where to connect to, so an address is judged before anything is sent to it.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from proxy.networks import TrustedNetworks
from proxy.tenants.addresses import is_public


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
    """

    def __init__(
        self,
        networks: tuple[str, ...],
        setting: str,
        ssl_context: ssl.SSLContext | None,
        seconds: float,
        *,
        allows_http: bool = False,
    ) -> None:
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
            ValueError: it is at an address that may not be asked, speaks plain http and may not, or is not in ASCII.
        """
        if not url.isascii():
            # aiohttp maps other characters to ASCII first: the host that was looked at here would not be the one asked.
            raise ValueError("it is not in ASCII; write an international name as xn--…")
        parts = urlsplit(url)
        if parts.scheme != "https" and not self._allows_http:
            raise ValueError("it is plain http; use https")
        check, host = partial(self._check_address, parts.scheme == "https"), parts.hostname or ""
        if ":" in host or host.replace(".", "").isdigit():
            # aiohttp takes it for an address, and does not ask the resolver.
            check(host)
        try:
            async with asyncio.timeout(self._seconds), self._open_session(check) as session:
                sent = {"accept-encoding": "identity", **headers}
                async with session.request(method, url, headers=sent, data=body, allow_redirects=False) as answer:
                    return Answer(answer.status, answer.headers, await _read(answer.content, most_bytes))
        except aiohttp.ClientError as problem:
            raise OSError(f"the connection failed ({type(problem).__name__})") from problem
        except TimeoutError:
            raise OSError(f"no whole answer within {self._seconds:g} seconds") from None

    def _open_session(self, check: Callable[[str], None]) -> aiohttp.ClientSession:
        if self._ssl_context is None:
            # Imported here: reading the authorities of the system takes a while.
            import httpx

            self._ssl_context = httpx.create_ssl_context()
        connector = aiohttp.TCPConnector(ssl=self._ssl_context, resolver=_Resolver(check), use_dns_cache=False)
        return aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False, trust_env=False
        )

    def _check_address(self, is_secure: bool, address: str) -> None:
        if self._networks.contains((address, 0)):
            return
        if not is_secure:
            raise ValueError(f"plain http is only for hosts that {self._setting} names; use https")
        if not is_public(address):
            raise ValueError(f"its host has an internal address; {self._setting} can allow it")


class _Resolver(AbstractResolver):
    """Refuses a name that leads to an address that may not be asked."""

    def __init__(self, check: Callable[[str], None]) -> None:
        self._check = check
        self._resolver = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        for one in found:
            self._check(one["host"])
        return found

    async def close(self) -> None:
        await self._resolver.close()


async def _read(content: aiohttp.StreamReader, most_bytes: int) -> bytes:
    body = b""
    while most_bytes and len(body) <= most_bytes and (more := await content.read(most_bytes + 1 - len(body))):
        body += more
    return body
