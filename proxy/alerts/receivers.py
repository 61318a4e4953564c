"""The receivers of alerts: the operator gets all of them, a tenant its own."""

from __future__ import annotations

from proxy.alerts.webhooks import Receiver
from proxy.auth.tenant_secrets import TenantSecrets
from proxy.settings import Secret, Settings, parse_webhook_secret
from proxy.stores.alerts import Alert
from proxy.stores.deliveries import OPERATOR
from proxy.tenants.directory import Directory
from proxy.tenants.webhook import AlertsWebhook


class Receivers:
    """The receivers that the settings and the tenants name now."""

    def __init__(self, settings: Settings, directory: Directory) -> None:
        self._operator = settings.alerts
        self._secrets = TenantSecrets(settings)
        self._directory = directory

    @property
    def not_here(self) -> tuple[str, ...]:
        """Receivers that this process does not know, although others may."""
        return () if self._operator.url else (OPERATOR,)

    def list_for(self, alert: Alert) -> list[str]:
        """List the receivers of an alert: `OPERATOR`, and the id of its tenant."""
        if alert.details.get("receiver") == "operator":
            # It says that the operator's receiver fails.
            return []
        tenant = self._directory.latest.tenants.get(alert.tenant)
        is_for_tenant = tenant is not None and tenant.alerts_webhook is not None
        return [*([OPERATOR] if self._operator.url else []), *([alert.tenant] if is_for_tenant else [])]

    async def find(self, receiver: str) -> Receiver | None:
        """Find where the webhooks of a receiver go; None if its tenant has none, or is deleted.

        Raises:
            StoreUnavailable: it is not known which tenants there are.
            OSError, ValueError: there is no secret that can be used.
        """
        if receiver == OPERATOR:
            return Receiver(self._operator.url or "", self._operator.secrets)
        tenant = (await self._directory.snapshot()).tenants.get(receiver)
        if tenant is None or tenant.alerts_webhook is None:
            return None
        return Receiver(tenant.alerts_webhook.url, read_webhook_secrets(self._secrets, tenant.alerts_webhook))


def read_webhook_secrets(secrets: TenantSecrets, webhook: AlertsWebhook) -> tuple[Secret, ...]:
    """Read what signs the alerts of a tenant, the newest first.

    Raises:
        ValueError: there is no secret that can be used.
    """
    try:
        return tuple(parse_webhook_secret(one.strip()) for one in secrets.read(webhook).split(","))
    except OSError as problem:
        raise ValueError(f"{webhook.secret_file} cannot be read ({type(problem).__name__})") from None
