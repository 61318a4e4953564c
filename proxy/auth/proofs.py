"""What a guest proves before it gets a session: the tier that it asks for, and that its proof holds and is new."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from proxy.auth.app_attest import AppAttest
from proxy.auth.app_challenges import AppChallenges
from proxy.auth.app_check import AppCheck
from proxy.auth.play_integrity import PlayIntegrity
from proxy.auth.proof_of_work import EXPIRY_SECONDS, ProofOfWork
from proxy.auth.sessions import Sessions
from proxy.auth.siteverify import Siteverify
from proxy.auth.tenant_secrets import TenantSecrets
from proxy.clock import Clock, to_iso
from proxy.errors import NotFound, ProofInvalid, ProofRequired
from proxy.settings import Settings
from proxy.stores.counters import Counters, Window
from proxy.tenants.plans import Tenant
from proxy.tenants.tiers import (
    AppAttestTier,
    AppCheckTier,
    ChallengeTier,
    PlayIntegrityTier,
    PowTier,
    Tier,
    VerifiedTier,
)

#: An attestation of App Attest has some 8,000 characters.
MAX_PROOF_LENGTH = 16_384
#: For how long most proofs are remembered: longer than one holds, on clocks that differ.
REMEMBERED_SECONDS = 2 * EXPIRY_SECONDS


class Proof(BaseModel):
    """A proof as a guest sends it."""

    model_config = ConfigDict(extra="forbid", strict=True)
    kind: str = Field(min_length=1, max_length=40)
    value: str = Field(min_length=1, max_length=MAX_PROOF_LENGTH)


def choose_tier(tiers: Sequence[Tier], proof: Proof | None) -> Tier | None:
    """Choose the tier that a guest asks for among those of its tenant; None if there are no tiers.

    Raises:
        ProofRequired: every tier wants a proof, and there is none.
        ProofInvalid: no tier takes a proof of this kind.
    """
    by_kind: dict[str, Tier] = {tier.proof: tier for tier in tiers}
    open_tier = by_kind.pop("none", None)
    kinds = " or ".join(by_kind)
    if proof is None:
        if tiers and open_tier is None:
            raise ProofRequired(f"Guests of this tenant need a proof of the kind {kinds}.")
        return open_tier
    if (tier := by_kind.get(proof.kind)) is None:
        accepted = f"send one of the kind {kinds}" if kinds else "send none"
        raise ProofInvalid(f"Guests of this tenant give no proof of this kind; {accepted}.")
    return tier


class GuestProofs:
    """Gives challenges, and takes each proof once.

    Args:
        ssl_context: what verifies the servers of other services; httpx's by default, as for fal.
    """

    def __init__(
        self,
        settings: Settings,
        sessions: Sessions,
        counters: Counters,
        clock: Clock,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._work = ProofOfWork(sessions, clock)
        self._challenges = AppChallenges(sessions, clock)
        secrets = TenantSecrets(settings)
        self._siteverify = Siteverify(settings, secrets, ssl_context)
        self._app_attest = AppAttest(self._challenges, clock)
        self._play_integrity = PlayIntegrity(secrets, self._challenges, clock)
        self._app_check = AppCheck(settings.verifiers.app_check, clock, ssl_context)
        self._counters = counters
        self._clock = clock

    def make_challenge(self, tenant: Tenant, origin: str, kind: str) -> dict[str, Any]:
        """Make a challenge for a page or an app of a tenant.

        Raises:
            NotFound: the tenant has no tier of this kind, or its proof needs no challenge.
        """
        tier = tenant.guests.find_tier(kind)
        if isinstance(tier, PowTier):
            return self._work.make_challenge(tenant.id, origin, tier.difficulty)
        if isinstance(tier, ChallengeTier):
            text, expires_at = self._challenges.make(kind, tenant.id, origin)
            return {"challenge": text, "expires_at": to_iso(expires_at)}
        raise NotFound("Guests of this tenant give no proof of this kind (kind) that needs a challenge.")

    async def redeem(self, tenant: Tenant, tier: Tier, origin: str, proof: Proof) -> None:
        """Verify a proof and use it up, so that it counts once.

        Raises:
            ProofInvalid: it does not hold, or was used before.
            ProofUnavailable, StoreUnavailable: whether it holds, or was used, is not known.
        """
        seconds = REMEMBERED_SECONDS
        if isinstance(tier, VerifiedTier):
            name = await self._siteverify.verify(tier, origin, proof.value)
        elif isinstance(tier, AppCheckTier):
            name, seconds = await self._app_check.verify(tier, proof.value)
        elif isinstance(tier, AppAttestTier):
            name = self._app_attest.verify(tier, tenant.id, origin, proof.value)
        elif isinstance(tier, PlayIntegrityTier):
            name = self._play_integrity.verify(tier, tenant.id, origin, proof.value)
        else:
            name = self._work.verify(tenant.id, origin, proof.value)
        digest = hashlib.blake2b(f"{proof.kind}:{name}".encode(), digest_size=16).hexdigest()
        once = Window(f"proof:{digest}", 1, seconds)
        hit = await self._counters.hit((once,), self._clock.now())
        if hit.refused is not None:
            raise ProofInvalid("The proof was used before; each counts once.")

    async def close(self) -> None:
        await self._app_check.close()
