"""Identity tokens: JWTs that an app's own identity provider issues to its users (RFC 7519, 8725).

A token that was verified is remembered by its hash, so that the next call costs one look-up.
"""

from __future__ import annotations

import hashlib

from cachetools import LRUCache

from proxy.auth.issuer_keys import KeySources
from proxy.auth.verified import TokenExpired, Verified
from proxy.clock import Clock
from proxy.errors import InvalidToken
from proxy.tenants.caller import Session
from proxy.tenants.directory import Issuers, Snapshot

MAX_TOKEN_LENGTH = 8192
#: Tokens that are not verified again.
KEPT = 4096


def is_identity_token(text: str) -> bool:
    """Return whether a credential has the form of a JWT: three parts, of which the first is an object.

    A session has two parts, and a dot before them if it is packed.
    """
    return text.count(".") == 2 and text.startswith("e")


class IdentityTokens:
    """Verifies identity tokens, and gives what they say in the form of a session."""

    def __init__(self, sources: KeySources, clock: Clock) -> None:
        self._sources = sources
        self._clock = clock
        self._verified: LRUCache[bytes, Verified] = LRUCache(KEPT)
        self._issuers: Issuers = {}

    async def verify(self, token: str, snapshot: Snapshot, *, grace_seconds: float = 0.0) -> Session:
        """Return what a token says, if a tenant accepts it and it expired no longer ago than `grace_seconds`.

        Raises:
            InvalidToken: no tenant accepts it (also TokenExpired).
            IdentityUnavailable: the keys of its issuer cannot be had.
        """
        if snapshot.issuers is not self._issuers:
            self._issuers = snapshot.issuers
            self._verified.clear()
            self._sources.replace(snapshot.issuers)
        verified = self._recall(token)
        if verified is None:
            verified = await self._verify(token)
        if verified.has_expired(self._clock.now(), grace_seconds):
            raise TokenExpired("The token has expired; get a new one from its issuer.")
        return verified.session

    def recall(self, token: str, *, grace_seconds: float = 0.0) -> Session:
        """Recall what a token says that was verified before and expired no longer ago than `grace_seconds`.

        Raises:
            InvalidToken: it is not known.
        """
        verified = self._recall(token)
        if verified is None or verified.has_expired(self._clock.now(), grace_seconds):
            raise InvalidToken("The token is not known.")
        return verified.session

    async def close(self) -> None:
        await self._sources.close()

    def _recall(self, token: str) -> Verified | None:
        if len(token) > MAX_TOKEN_LENGTH or not token.isascii():
            raise InvalidToken(f"A token has at most {MAX_TOKEN_LENGTH} characters, all of them ASCII.")
        verified = self._verified.get(_digest(token))
        # Once an issuer withdraws a key, what was verified by its keys is verified again.
        return verified if verified is not None and verified.source.cached is verified.keys else None

    async def _verify(self, token: str) -> Verified:
        if not self._issuers:
            raise InvalidToken("No tenant accepts identity tokens.")
        # Imported here: what verifies signatures takes memory that a proxy without issuers has better uses for.
        from proxy.auth.verification import verify

        issuers = self._issuers
        verified = await verify(token, issuers, self._sources, self._clock)
        if issuers is self._issuers:
            self._verified[_digest(token)] = verified
        return verified


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
