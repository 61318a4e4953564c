"""The secrets with which proofs of a tenant's guests are verified, as the settings or a file hold them."""

from __future__ import annotations

import logging
from pathlib import Path

from proxy.errors import ProofUnavailable
from proxy.settings import Secret, Settings
from proxy.tenants.tiers import SecretTier

MAX_SECRET_BYTES = 1024
RETRY_SECONDS = 5.0
_log = logging.getLogger(__name__)


class TenantSecrets:
    """Reads secrets when they are needed: a file can be replaced while the proxy runs."""

    def __init__(self, settings: Settings) -> None:
        self._named = settings.named_secrets
        self._own = frozenset(settings.secrets)

    def read(self, tier: SecretTier) -> str:
        """The secret that a tier names.

        Raises:
            OSError, ValueError: there is none that can be used.
        """
        if tier.secret_file is None:
            secret = self._named.get(tier.secret_env or "", Secret(""))
        else:
            with Path(tier.secret_file).open("rb") as file:
                # What is no UTF-8 is no secret either; the error of a strict reading would quote it.
                secret = Secret(file.read(MAX_SECRET_BYTES + 1).decode(errors="replace").strip())
        if not secret or len(secret.reveal()) > MAX_SECRET_BYTES:
            raise ValueError(f"there is no secret in {tier.secret_file or tier.secret_env}")
        if secret in self._own:
            raise ValueError("the secret is one of the proxy's own, which no other service may see")
        return secret.reveal()


def unverified(kind: str, problem: Exception, says: str) -> ProofUnavailable:
    """Log why a proof is not verified, which is the operator's to know, and give the error for the guest."""
    fields = {"kind": kind, "problem": str(problem) or type(problem).__name__}
    _log.warning("proof not verified", extra={"log_fields": fields})
    return ProofUnavailable(f"The proof cannot be verified now: {says}. Try again shortly.", retry_after=RETRY_SECONDS)
