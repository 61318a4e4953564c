"""The secrets of tenants that the plan file names, as the settings or a file hold them."""

from __future__ import annotations

import logging
from pathlib import Path

from proxy.errors import ProofUnavailable
from proxy.settings import IN_QUOTES, Secret, Settings, is_quoted
from proxy.tenants.secret_source import SecretSource

MAX_SECRET_BYTES = 1024
RETRY_SECONDS = 5.0
_log = logging.getLogger(__name__)


class TenantSecrets:
    """Reads secrets when they are needed: a file can be replaced while the proxy runs."""

    def __init__(self, settings: Settings) -> None:
        self._named = settings.named_secrets
        self._own = frozenset(settings.secrets)

    def read(self, source: SecretSource) -> str:
        """Read the secret that a form names.

        Raises:
            OSError, ValueError: there is none that can be used.
        """
        if source.secret_file is None:
            secret = self._named.get(source.secret_env or "", Secret(""))
        else:
            with Path(source.secret_file).open("rb") as file:
                # What is no UTF-8 is no secret either; the error of a strict reading would quote it.
                secret = Secret(file.read(MAX_SECRET_BYTES + 1).decode("utf-8-sig", "replace").strip())
        if not secret or len(secret.reveal()) > MAX_SECRET_BYTES:
            raise ValueError(f"there is no secret in {source.secret_file or source.secret_env}")
        if is_quoted(secret.reveal()):
            raise ValueError(f"{source.secret_file or source.secret_env}: {IN_QUOTES}")
        if secret in self._own:
            raise ValueError("the secret is one of the proxy's own, which no other service may see")
        return secret.reveal()


def report_unverified(kind: str, problem: Exception, says: str) -> ProofUnavailable:
    """Log for the operator why a proof cannot be verified, and return the error for the guest."""
    fields = {"kind": kind, "problem": str(problem) or type(problem).__name__}
    _log.warning("proof not verified", extra={"log_fields": fields})
    return ProofUnavailable(f"The proof cannot be verified now: {says}. Try again shortly.", retry_after=RETRY_SECONDS)
