"""The secrets and certificates that a plan file names: they lie in variables and files of each process."""

from __future__ import annotations

from collections.abc import Iterator

from proxy.auth.tenant_secrets import TenantSecrets
from proxy.settings import Settings
from proxy.tenants.plans import PlanFile
from proxy.tenants.tiers import AppAttestTier, PlayIntegrityTier, Tier, VerifiedTier
from proxy.tenants.webhook import AlertsWebhook


def find_unusable(file: PlanFile, settings: Settings) -> Iterator[str]:
    """Yield a sentence for each that cannot be used now. It may be there later: they are read when they are needed."""
    secrets = TenantSecrets(settings)
    for tenant in file.tenants:
        named = [("alerts_webhook", tenant.alerts_webhook)] if tenant.alerts_webhook else []
        for where, one in [*named, *((f"guests.tiers.{tier.proof}", tier) for tier in tenant.guests.tiers)]:
            if problem := _find_problem(one, secrets):
                yield f"PROXY_CONFIG: tenants.{tenant.id}.{where}: {problem}"


def _find_problem(source: AlertsWebhook | Tier, secrets: TenantSecrets) -> str | None:
    try:
        _read(source, secrets)
    except OSError as problem:
        return f"{problem.filename} cannot be read ({type(problem).__name__})"
    except ValueError as problem:
        return str(problem)
    return None


def _read(source: AlertsWebhook | Tier, secrets: TenantSecrets) -> None:
    """Read what a part of the plan file names, in the way in which it is used later.

    Raises:
        OSError, ValueError: it cannot be used.
    """
    # Imported here: most plan files name none, and what reads them takes memory.
    if isinstance(source, AlertsWebhook):
        from proxy.alerts.receivers import read_webhook_secrets

        read_webhook_secrets(secrets, source)
    elif isinstance(source, PlayIntegrityTier):
        from proxy.auth.play_integrity import read_key

        read_key(secrets.read(source))
    elif isinstance(source, VerifiedTier):
        secrets.read(source)
    elif isinstance(source, AppAttestTier):
        from proxy.auth.app_attest import read_root

        read_root(source)
