"""Fetching a key set from its issuer: https, from public addresses, a bounded time and size, no redirect.

aiohttp asks a resolver of ours where to connect to, so an address is judged before anything is sent to it.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from proxy.networks import TrustedNetworks
from proxy.tenants.addresses import is_public
from proxy.tenants.key_set import MAX_BYTES

FETCH_SECONDS = 5.0


class KeyFetcher:
    """Fetches key sets.

    Args:
        networks: where they may be, beside public addresses.
        ssl_context: what verifies servers; httpx's by default, as for fal.
        seconds: for a whole fetch.
    """

    def __init__(
        self, networks: tuple[str, ...], ssl_context: ssl.SSLContext | None = None, seconds: float = FETCH_SECONDS
    ) -> None:
        self._networks = TrustedNetworks(networks)
        self._ssl_context = ssl_context
        self._seconds = seconds

    async def fetch(self, url: str) -> bytes:
        """Give what lies at a URL.

        Raises:
            OSError: it cannot be reached in time.
            ValueError: it lies at an internal address, or is too large or another answer than 200.
        """
        host = urlsplit(url).hostname or ""
        if ":" in host or host.replace(".", "").isdigit():
            # aiohttp takes it for an address, and does not ask the resolver.
            self._check_address(host)
        try:
            async with asyncio.timeout(self._seconds), self._open_session() as session:
                return await _read(session, url)
        except aiohttp.ClientError as problem:
            raise OSError(f"the connection failed ({type(problem).__name__})") from problem
        except TimeoutError:
            raise OSError(f"no whole answer within {self._seconds:g} seconds") from None

    def _open_session(self) -> aiohttp.ClientSession:
        if self._ssl_context is None:
            # Imported here: reading the authorities of the system takes a while.
            import httpx

            self._ssl_context = httpx.create_ssl_context()
        connector = aiohttp.TCPConnector(
            ssl=self._ssl_context, resolver=_Resolver(self._check_address), use_dns_cache=False
        )
        return aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False, trust_env=False
        )

    def _check_address(self, address: str) -> None:
        if not is_public(address) and not self._networks.contains((address, 0)):
            raise ValueError("its host has an internal address; PROXY_ISSUER_NETWORKS can allow it")


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


async def _read(session: aiohttp.ClientSession, url: str) -> bytes:
    headers = {"accept": "application/json", "accept-encoding": "identity"}
    async with session.get(url, headers=headers, allow_redirects=False) as answer:
        if answer.status != 200:
            raise ValueError(f"the answer is {answer.status}; it must be 200, and redirects are not followed")
        if answer.headers.get("content-encoding", "identity") != "identity":
            raise ValueError("the answer is compressed, which was not asked for")
        body = await answer.content.read(MAX_BYTES + 1)
        while len(body) <= MAX_BYTES and (more := await answer.content.read(MAX_BYTES + 1 - len(body))):
            body += more
    if len(body) > MAX_BYTES:
        raise ValueError(f"the answer has more than {MAX_BYTES} bytes")
    return body
