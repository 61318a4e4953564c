"""Alerts with their deliveries, for operators: listed, and sent again."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

from proxy.errors import BadRequest, NotFound
from proxy.stores.alerts import Alert, AlertStore
from proxy.stores.audit import Author
from proxy.stores.deliveries import Delivery, DeliveryStore

LONGEST_ID = 32


class AlertFilter(NamedTuple):
    """The alerts to list: those of a tenant, with a delivery in a state, older than one that its time and id name."""

    tenant: str | None = None
    delivery: str | None = None
    before: tuple[float, str] | None = None


class DeliveredAlert(NamedTuple):
    """An alert, and the state of each of its deliveries."""

    alert: Alert
    deliveries: list[Delivery]

    def describe(self) -> dict[str, Any]:
        """Describe the alert as operators see it."""
        return {**self.alert.describe(), "deliveries": [one.describe() for one in self.deliveries]}


class AlertList:
    """The alerts of all processes."""

    def __init__(self, alerts: AlertStore, deliveries: DeliveryStore) -> None:
        self._alerts = alerts
        self._deliveries = deliveries

    async def list_newest(self, most: int, wanted: AlertFilter) -> list[DeliveredAlert]:
        """List alerts, the newest first."""
        found = await self._alerts.list_newest(most, **wanted._asdict())
        by_alert: defaultdict[str, list[Delivery]] = defaultdict(list)
        for one in await self._deliveries.list_of([alert.id for alert in found]):
            by_alert[one.alert].append(one)
        return [DeliveredAlert(alert, by_alert[alert.id]) for alert in found]

    async def resend(self, id_: str, *, by: Author) -> list[Delivery]:
        """Send an alert again to all of its receivers; its deliveries.

        Raises:
            NotFound: there is no such alert.
            BadRequest: it had no receiver when it was raised.
        """
        is_id = len(id_) <= LONGEST_ID and id_.isascii() and id_.isalnum()
        found = await self._deliveries.resend(id_, by=by) if is_id else None
        if found is None:
            raise NotFound("There is no such alert; GET /v1/admin/alerts lists them.")
        if not found:
            raise BadRequest("The alert had no receiver when it was raised, so there is nothing to send again.")
        return list(found)
