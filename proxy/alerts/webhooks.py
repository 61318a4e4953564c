"""Alerts as webhooks, signed as Standard Webhooks 1.0 says (https://www.standardwebhooks.com, "Webhook headers")."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import orjson
from standardwebhooks import Webhook

from proxy.clock import Clock, to_iso
from proxy.outbound import OutboundClient
from proxy.settings import Secret
from proxy.stores.alerts import Alert

SEND_SECONDS = 10.0
#: The status with which a receiver says that it wants no more webhooks.
GONE = 410


@dataclass(frozen=True)
class Receiver:
    """Where webhooks go. Each secret signs each webhook, so that a receiver can change its own."""

    url: str
    secrets: Sequence[Secret]


class Refused(Exception):
    """A receiver has not taken a webhook.

    Attributes:
        is_final: whether it wants no more.
    """

    def __init__(self, problem: str, *, is_final: bool = False) -> None:
        super().__init__(problem)
        self.is_final = is_final


class WebhookSender:
    """Sends webhooks.

    Args:
        networks: where receivers may be, beside public addresses.
        ssl_context: what verifies them; httpx's by default, as for fal.
        seconds: for one webhook.
    """

    def __init__(
        self,
        networks: tuple[str, ...],
        clock: Clock,
        ssl_context: ssl.SSLContext | None = None,
        seconds: float = SEND_SECONDS,
    ) -> None:
        setting = "PROXY_ALERTS_NETWORKS"
        self._client = OutboundClient(networks, setting, ssl_context, seconds, allows_http=True)
        self._clock = clock

    async def send(self, receiver: Receiver, alert: Alert) -> None:
        """Send an alert once. Of the answer only the status counts.

        Raises:
            Refused: the receiver has not taken it, or is at an address that may not be asked.
        """
        body = orjson.dumps(compose_body(alert))
        headers = {"content-type": "application/json", "user-agent": "fal-proxy", **self._sign(receiver, alert, body)}
        try:
            answer = await self._client.request("POST", receiver.url, headers, body, most_bytes=0)
        except (OSError, ValueError) as problem:
            raise Refused(str(problem) or type(problem).__name__) from None
        if not 200 <= answer.status < 300:
            note = "; redirects are not followed" if 300 <= answer.status < 400 else ""
            raise Refused(f"the answer is {answer.status}{note}", is_final=answer.status == GONE)

    def _sign(self, receiver: Receiver, alert: Alert, body: bytes) -> dict[str, str]:
        now = datetime.fromtimestamp(int(self._clock.now()), UTC)
        signatures = (Webhook(secret.reveal()).sign(alert.id, now, body.decode()) for secret in receiver.secrets)
        return {
            "webhook-id": alert.id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": " ".join(signatures),
        }


def compose_body(alert: Alert) -> dict[str, object]:
    """Compose what receivers get: `{type, timestamp, data}`."""
    data = {"id": alert.id, "tenant": alert.tenant or None, "subject": alert.subject or None, **alert.details}
    return {"type": alert.kind, "timestamp": to_iso(alert.at, "milliseconds"), "data": data}
