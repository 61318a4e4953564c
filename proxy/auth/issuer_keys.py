"""The key sets of issuers: fetched when they are needed, by one fetch for all who wait, and kept through an outage."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import NamedTuple
from urllib.parse import urlsplit

import orjson

from proxy.clock import Clock
from proxy.errors import IdentityUnavailable
from proxy.tenants.directory import Issuers
from proxy.tenants.identity import Identity
from proxy.tenants.key_set import KeySet

#: A key set of this age is fetched again, while calls go on with it.
FRESH_SECONDS = 600.0
#: How long one counts that cannot be fetched again.
KEPT_SECONDS = 86_400.0
#: Between two fetches of a set in use: anyone can send a token that names an unknown key.
PAUSE_SECONDS = 30.0
#: Between two fetches while there is no set to go on with.
RETRY_SECONDS = 5.0
Fetch = Callable[[str], Awaitable[bytes]]
_log = logging.getLogger(__name__)


class RemoteKeys:
    """The key set at one URL.

    Args:
        fetch: gives what lies at a URL, or raises an OSError or a ValueError that says what is wrong.
    """

    def __init__(self, url: str, fetch: Fetch, clock: Clock) -> None:
        self._url = url
        self._fetch = fetch
        self._clock = clock
        self._body = b""
        self._key_set: KeySet | None = None
        self._fetched_at = self._tried_at = float("-inf")
        self._fetching: asyncio.Task[None] | None = None

    @property
    def cached(self) -> KeySet | None:
        """The set that was fetched last, however old."""
        return self._key_set

    async def get(self) -> KeySet:
        """Give the set; wait for it only if there is none that counts.

        Raises:
            IdentityUnavailable: it cannot be fetched.
        """
        if self._age() >= KEPT_SECONDS:
            await self._refresh(RETRY_SECONDS)
        elif not 0 <= self._age() < FRESH_SECONDS:
            self._begin(PAUSE_SECONDS)
        if self._key_set is None or self._age() >= KEPT_SECONDS:
            raise IdentityUnavailable(
                "The keys of the token's issuer cannot be fetched; try again shortly.", retry_after=RETRY_SECONDS
            )
        return self._key_set

    async def get_newer(self) -> KeySet:
        """Give the set after a look for a key that is not in it, at most every `PAUSE_SECONDS`.

        Raises:
            IdentityUnavailable: the last fetch failed, so it is unknown whether there is such a key.
        """
        await self._refresh(PAUSE_SECONDS)
        if self._key_set is None or self._fetched_at != self._tried_at:
            wait = self._tried_at + PAUSE_SECONDS - self._clock.now()
            raise IdentityUnavailable(
                "The token's key is unknown, and its issuer's keys cannot be fetched now.", retry_after=wait
            )
        return self._key_set

    async def close(self) -> None:
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait({self._fetching})

    def _age(self) -> float:
        return self._clock.now() - self._fetched_at

    async def _refresh(self, pause: float) -> None:
        self._begin(pause)
        if self._fetching is not None:
            # Shielded: other calls wait for the same set, even if some are cancelled.
            await asyncio.shield(self._fetching)

    def _begin(self, pause: float) -> None:
        """Begin a fetch, unless one is under way or was tried less than `pause` seconds ago."""
        now = self._clock.now()
        # A clock that was set back would otherwise put the next fetch off for as long.
        is_due = not 0 <= now - self._tried_at < pause
        if is_due and (self._fetching is None or self._fetching.done()):
            self._tried_at = now
            self._fetching = asyncio.create_task(self._fetch_set(now))

    async def _fetch_set(self, now: float) -> None:
        try:
            body = await self._fetch(self._url)
            if body != self._body:
                # The same object otherwise: what was verified by it need not be verified again.
                self._key_set, self._body = KeySet(orjson.loads(body)), body
        except (OSError, ValueError) as problem:
            fields = {"host": urlsplit(self._url).hostname, "problem": str(problem) or type(problem).__name__}
            _log.warning("key set not fetched", extra={"log_fields": fields})
        else:
            self._fetched_at = now


class LocalKeys(NamedTuple):
    """A key set that the plan file holds."""

    cached: KeySet

    async def get(self) -> KeySet:
        return self.cached

    async def get_newer(self) -> KeySet:
        return self.cached


KeySource = RemoteKeys | LocalKeys


class KeySources:
    """Where the keys of each issuer are. Issuers with one URL share what was fetched from it."""

    def __init__(self, fetch: Fetch, clock: Clock) -> None:
        self._fetch = fetch
        self._clock = clock
        self._remote: dict[str, RemoteKeys] = {}

    def replace(self, issuers: Issuers) -> None:
        """Use these issuers from now on, and forget what was fetched for others."""
        listed = [identity.jwks_url for accepted in issuers.values() for _, identity in accepted]
        urls = {url for url in listed if url is not None}
        self._remote = {url: self._remote.get(url) or RemoteKeys(url, self._fetch, self._clock) for url in urls}

    def find(self, identity: Identity) -> KeySource:
        """Find where the keys of a known issuer are."""
        return LocalKeys(identity.key_set) if identity.jwks_url is None else self._remote[identity.jwks_url]

    async def close(self) -> None:
        for keys in self._remote.values():
            await keys.close()
