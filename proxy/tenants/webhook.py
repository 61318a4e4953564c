"""Where a tenant gets its alerts, in the form of the plan file."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from proxy.settings import parse_webhook_url
from proxy.tenants.secret_source import SecretSource


class AlertsWebhook(SecretSource):
    """A receiver of a tenant's alerts. `secret_env` names the variable, `secret_file` the file with what signs them."""

    url: Annotated[str, Field(max_length=2000), AfterValidator(parse_webhook_url)]
