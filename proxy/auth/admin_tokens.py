"""The tokens that open the admin API: the one of the settings, and named ones with a role and an expiry.

A named token is `fpa_<id>_<secret>`. Only a hash of the secret is kept, as of a tenant key.
"""

from __future__ import annotations

import asyncio
import enum
import hmac
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from proxy.clock import Clock
from proxy.errors import BadRequest, NotAllowed, StoreUnavailable, Unauthenticated
from proxy.settings import Secret
from proxy.stores.admin_tokens import AdminTokenStore, NamedToken
from proxy.stores.audit import Author
from proxy.tenants.keys import hash_secret

PREFIX = "fpa_"
#: The name of the token of the settings, which is always an admin's.
SETTING = "PROXY_ADMIN_TOKEN"
#: A token that was revoked elsewhere counts here for as long as this at the most.
MAX_AGE_SECONDS = 2.0
#: For this long after a failure, the database is not asked again.
RETRY_SECONDS = 1.0
#: Named tokens that there can be at once, expired ones included.
MOST_TOKENS = 200
DEFAULT_DAYS, MOST_DAYS = 90, 3650
_DAY_SECONDS = 86_400.0
_TOKEN = re.compile(r"Bearer fpa_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")


class Role(enum.IntEnum):
    """What a token may do; each role may do what those before it may."""

    #: Read.
    VIEWER = 1
    #: Change what is neither a key nor a plan.
    OPERATOR = 2
    #: Change everything.
    ADMIN = 3

    def __str__(self) -> str:
        return self.name.lower()


class TokenHolder(NamedTuple):
    """Who asks the admin API.

    Attributes:
        name: of the token, as the audit log has it.
        id: of a named token; '' for the one of the settings.
    """

    name: str
    role: Role
    id: str = ""

    @classmethod
    def of_setting(cls) -> TokenHolder:
        """Return the holder of the token of the settings."""
        return cls(SETTING, Role.ADMIN)


class AdminTokens:
    """Tells who asks the admin API, and makes and revokes named tokens.

    Args:
        setting: the token of the settings, or none.
    """

    def __init__(self, setting: Secret | None, store: AdminTokenStore, clock: Clock) -> None:
        self._setting = setting
        self._store = store
        self._clock = clock
        self._named: Mapping[str, NamedToken] = {}
        self._read_at = self._failed_at = float("-inf")
        self._reading = asyncio.Lock()

    def replace_setting(self, setting: Secret | None) -> None:
        """Take another token of the settings from now on."""
        self._setting = setting

    async def authenticate(self, authorization: Sequence[str]) -> TokenHolder:
        """Tell whose token the `Authorization` headers of a request have.

        Raises:
            NotAllowed: there is no token that opens the admin API.
            Unauthenticated: it is none of them, or not sent once.
            StoreUnavailable: it may be a named one, and the database does not answer.
        """
        given = authorization[0] if len(authorization) == 1 else ""
        setting = f"Bearer {self._setting.reveal()}" if self._setting else None
        if setting is not None and hmac.compare_digest(given.encode(), setting.encode()):
            return TokenHolder.of_setting()
        match = _TOKEN.fullmatch(given)
        named = await self._load() if match or self._setting is None else {}
        if self._setting is None and not named:
            raise NotAllowed("The admin API is closed: PROXY_ADMIN_TOKEN is not set, and there is no named token.")
        token = named.get(match[1]) if match else None
        if match is None or token is None or not hmac.compare_digest(hash_secret(match[2]), token.secret_hash):
            raise Unauthenticated("The admin API needs 'Authorization: Bearer <admin token>'.")
        return self._holder_of(token)

    async def find_holder(self, id_: str) -> TokenHolder:
        """Tell who holds a named token that was presented earlier.

        Raises:
            Unauthenticated: it is revoked or has expired.
            StoreUnavailable: the database does not answer.
        """
        token = (await self._load()).get(id_)
        if token is None:
            raise Unauthenticated("This admin token is revoked.")
        return self._holder_of(token)

    def hash_setting(self) -> str | None:
        """Hash the token of the settings as it is now; None if there is none."""
        return hash_secret(self._setting.reveal()) if self._setting else None

    def _holder_of(self, token: NamedToken) -> TokenHolder:
        if token.expires_at <= self._clock.now():
            raise Unauthenticated("This admin token has expired.")
        return TokenHolder(f"token:{token.name}", Role[token.role.upper()], token.id)

    async def _load(self) -> Mapping[str, NamedToken]:
        """Load the named tokens by id; a reading serves for `MAX_AGE_SECONDS`.

        Raises:
            StoreUnavailable: the database does not answer, or did not within the last `RETRY_SECONDS`, so that
                callers who queue for it wait for one failure only.
        """
        async with self._reading:
            now = self._clock.now()
            if 0 <= now - self._read_at < MAX_AGE_SECONDS:
                return self._named
            if 0 <= now - self._failed_at < RETRY_SECONDS:
                raise StoreUnavailable("The proxy's database does not answer; try again shortly.")
            try:
                self._named = {token.id: token for token in await self._store.load()}
            except StoreUnavailable:
                self._failed_at = self._clock.now()
                raise
            self._read_at = now
            return self._named

    async def list_named(self) -> Sequence[NamedToken]:
        """List the named tokens, without their secrets."""
        return await self._store.load()

    async def create(self, name: str, role: Role, expires_at: float | None, *, by: Author) -> tuple[str, NamedToken]:
        """Make a named token: the text to show once, and what is kept of it.

        Raises:
            BadRequest: there is one of that name, there are too many, or it would end too early or too late.
        """
        ends = by.at + DEFAULT_DAYS * _DAY_SECONDS if expires_at is None else expires_at
        if not by.at < ends <= by.at + MOST_DAYS * _DAY_SECONDS:
            raise BadRequest(f"expires_at must be a moment within the next {MOST_DAYS} days.")
        id_, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
        token = NamedToken(id_, name, str(role), hash_secret(secret), by.at, ends)
        if not await self._store.add(token, MOST_TOKENS, by=by):
            raise BadRequest(f"There is a token {name} already, or there are {MOST_TOKENS}; revoke one first.")
        self._read_at = float("-inf")
        return f"{PREFIX}{id_}_{secret}", token

    async def revoke(self, name: str, *, by: Author) -> bool:
        """Revoke a named token here at once, and elsewhere soon; False if there is none."""
        is_known = await self._store.revoke(name, by=by)
        self._read_at = float("-inf")
        return is_known
