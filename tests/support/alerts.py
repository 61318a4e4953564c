"""Alerts in the database of a running proxy."""

from __future__ import annotations

import asyncio
import time

from proxy.stores.alerts import Alert
from proxy.stores.sql import SqlStores


def raise_alert(database_url: str, id_: str, tenant: str, *receivers: str, at: float | None = None) -> None:
    """Add an alert as another process would, with a delivery to each of these receivers."""

    async def add() -> None:
        stores = SqlStores(database_url)
        try:
            alert = Alert(id_, "quota.reached", tenant, time.time() if at is None else at)
            await stores.alerts.add([alert], lambda _: receivers)
        finally:
            await stores.close()

    asyncio.run(add())
