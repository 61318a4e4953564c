"""Proofs of Firebase App Check: a JWT in which Firebase says that an app of the tenant's project asks.

It is verified as an identity token is, by the keys that Firebase publishes for all projects.
"""

from __future__ import annotations

import math
import ssl
from typing import NamedTuple

from proxy.auth.claims import read_session
from proxy.auth.issuer_keys import RETRY_SECONDS, KeySources
from proxy.auth.key_fetcher import KeyFetcher
from proxy.auth.verified import LEEWAY_SECONDS
from proxy.clock import Clock
from proxy.errors import IdentityUnavailable, InvalidToken, ProofInvalid, ProofUnavailable
from proxy.tenants.identity import Identity
from proxy.tenants.tiers import AppCheckTier

ISSUER = "https://firebaseappcheck.googleapis.com"
#: The operator sets the address of the keys, so it may be an internal one.
_ANYWHERE = ("0.0.0.0/0", "::/0")


class AppToken(NamedTuple):
    """A verified token.

    Attributes:
        name: no other token has it.
        seconds: longer than the token holds, on clocks that differ; the same whenever it is verified.
    """

    name: str
    seconds: int


class AppCheck:
    """Verifies tokens.

    Args:
        url: where Firebase's keys are.
        ssl_context: what verifies their server; httpx's by default, as for fal.
    """

    def __init__(self, url: str, clock: Clock, ssl_context: ssl.SSLContext | None = None) -> None:
        self._url = url
        self._clock = clock
        self._sources = KeySources(KeyFetcher(_ANYWHERE, ssl_context, allows_http=True).fetch, clock)

    async def verify(self, tier: AppCheckTier, value: str) -> AppToken:
        """Verify a token of a tenant's project.

        Raises:
            ProofInvalid: it does not hold.
            ProofUnavailable: Firebase's keys cannot be fetched.
        """
        try:
            return await self._verify(tier, value)
        except InvalidToken as error:
            raise ProofInvalid(f"The proof is no valid token of App Check. {error.message}") from None
        except IdentityUnavailable:
            raise ProofUnavailable(
                "The proof cannot be verified now: the keys of App Check cannot be fetched. Try again shortly.",
                retry_after=RETRY_SECONDS,
            ) from None

    async def _verify(self, tier: AppCheckTier, value: str) -> AppToken:
        # Imported here: what verifies signatures takes memory that most proxies have better uses for.
        from proxy.auth.verification import verify_signature

        identity = self._identity(tier.project)
        issuers = {identity.issuer: [("", identity)]}
        self._sources.replace(issuers)
        signed = await verify_signature(value, issuers, self._sources)
        now = self._clock.now()
        session = read_session(signed.claims, signed.tenant, identity, signed.payload, now)
        if session.expires_at + LEEWAY_SECONDS <= now:
            raise ProofInvalid("The token of App Check has expired; get a new one.")
        if tier.apps is not None and session.subject not in tier.apps:
            raise ProofInvalid("The token of App Check is for another app (sub).")
        jti = signed.claims.get("jti")
        name = f"{identity.issuer} {jti}" if isinstance(jti, str) else session.id
        return AppToken(name, math.ceil(session.ttl_seconds) + 3 * LEEWAY_SECONDS)

    def _identity(self, project: str) -> Identity:
        # Not validated: in a plan file, an address must be https, and the settings allow http on this machine.
        return Identity.model_construct(
            issuer=f"{ISSUER}/{project}", audience=frozenset({f"projects/{project}"}), jwks_url=self._url
        )

    async def close(self) -> None:
        await self._sources.close()
