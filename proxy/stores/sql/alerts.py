"""Alerts in SQL."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from functools import partial

from sqlalchemy import ColumnElement, Connection, and_, select, tuple_

from proxy.stores.alerts import Alert
from proxy.stores.sql.database import Database
from proxy.stores.sql.deliveries import add_deliveries
from proxy.stores.sql.insertions import insert_missing
from proxy.stores.sql.schema import alert_deliveries
from proxy.stores.sql.schema import alerts as rows


class SqlAlerts:
    """`AlertStore` in SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(
        self, alerts: Collection[Alert], find_receivers: Callable[[Alert], Collection[str]] = lambda _: ()
    ) -> set[str]:
        # In the order of their keys: two processes that add the same ones do not wait for each other in a circle.
        pairs = [(alert, tuple(find_receivers(alert))) for alert in sorted(alerts, key=lambda alert: alert.id)]
        return await self._database.write(partial(_add, pairs=pairs))

    async def list_newest(
        self,
        most: int,
        *,
        before: tuple[float, str] | None = None,
        tenant: str | None = None,
        delivery: str | None = None,
    ) -> Sequence[Alert]:
        wanted = select(rows).order_by(rows.c.at.desc(), rows.c.id.desc()).limit(most)
        if before is not None:
            wanted = wanted.where(tuple_(rows.c.at, rows.c.id) < before)
        if tenant is not None:
            wanted = wanted.where(rows.c.tenant == tenant)
        if delivery is not None:
            wanted = wanted.where(rows.c.id.in_(select(alert_deliveries.c.alert).where(_is_in_state(delivery, before))))
        async with self._database.reading() as connection:
            return [Alert(**row._mapping) for row in await connection.execute(wanted)]


def _is_in_state(state: str, before: tuple[float, str] | None) -> ColumnElement[bool]:
    """Make the condition of deliveries in a state, of alerts that are no newer than a page needs."""
    is_meant = alert_deliveries.c.state == state
    return is_meant if before is None else and_(is_meant, alert_deliveries.c.at <= before[0])


def _add(connection: Connection, *, pairs: Sequence[tuple[Alert, Collection[str]]]) -> set[str]:
    statement = insert_missing(connection.dialect.name, rows)
    added = [pair for pair in pairs if connection.execute(statement, asdict(pair[0])).rowcount]
    add_deliveries(connection, added)
    return {alert.id for alert, _ in added}
