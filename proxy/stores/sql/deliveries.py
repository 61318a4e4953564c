"""Deliveries of alerts in SQL.

A transaction that changes what waits for a receiver locks the receiver's row, and looks at the queue in a later
statement: it sees what the transaction before it has committed. So a receiver for which something waits is always due
at some moment.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import fields
from functools import cache, partial
from typing import Any

from sqlalchemy import Connection, and_, exists, func, select, update

from proxy.stores.alerts import Alert
from proxy.stores.audit import Author, Change
from proxy.stores.deliveries import DEAD, SENT, WAITING, Delivery, Held, Queues
from proxy.stores.sql.audit import record
from proxy.stores.sql.database import Database
from proxy.stores.sql.insertions import insert_of
from proxy.stores.sql.schema import alert_deliveries as deliveries
from proxy.stores.sql.schema import alert_receivers as receivers
from proxy.stores.sql.schema import alerts

_NO_CLAIM = {"claim": "", "claimed_until": 0.0}


class SqlDeliveries:
    """`DeliveryStore` in SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def look(self, now: float, most: int, *, without: Collection[str] = ()) -> Queues:
        is_due = and_(receivers.c.next_at <= now, receivers.c.claimed_until <= now)
        wanted = select(receivers.c.tenant).where(is_due, receivers.c.tenant.not_in(sorted(without)))
        oldest = select(func.min(deliveries.c.since)).where(deliveries.c.state == WAITING)
        async with self._database.reading() as connection:
            due = (await connection.scalars(wanted.order_by(receivers.c.next_at).limit(most))).all()
            return Queues(due, (await connection.execute(oldest)).scalar())

    async def claim(self, receiver: str, claim: str, now: float, until: float) -> Held | None:
        return await self._database.write(partial(_claim, receiver=receiver, claim=claim, now=now, until=until))

    async def record_sent(self, held: Held, now: float) -> bool:
        return await self._database.write(partial(_record_sent, held=held, now=now))

    async def record_failed(self, held: Held, now: float, problem: str, again_at: float, give_up: float) -> int:
        work = partial(_record_failed, held=held, now=now, problem=problem, again_at=again_at, give_up=give_up)
        return await self._database.write(work)

    async def list_of(self, alerts: Collection[str]) -> Sequence[Delivery]:
        async with self._database.reading() as connection:
            found = await connection.execute(_list_of(alerts))
            return [Delivery(**row._mapping) for row in found]

    async def resend(self, alert: str, *, by: Author) -> Sequence[Delivery] | None:
        return await self._database.write(partial(_resend, id_=alert, by=by))

    async def drop_waiting(self, receiver: str, now: float, problem: str) -> int:
        return await self._database.write(partial(_drop_waiting, receiver=receiver, now=now, problem=problem))


def add_deliveries(connection: Connection, pairs: Sequence[tuple[Alert, Collection[str]]]) -> None:
    """Add the deliveries of new alerts, and make their receivers due."""
    values = [
        {
            "alert": alert.id,
            "receiver": receiver,
            **{name: getattr(alert, name) for name in ("tenant", "subject", "at")},
            "state": WAITING,
            "attempts": 0,
            "since": alert.at,
            "changed_at": alert.at,
            "problem": "",
        }
        for alert, whose in pairs
        for receiver in whose
    ]
    if values:
        connection.execute(insert_of(connection.dialect.name, deliveries), values)
        due = {value["receiver"]: value["at"] for value in values}
        make_due(connection, due)


def make_due(connection: Connection, due: dict[str, float]) -> None:
    """Make receivers due at these moments, unless something waits for them already."""
    rows = [{"tenant": name, "next_at": at, "failures": 0, **_NO_CLAIM} for name, at in sorted(due.items())]
    connection.execute(_insert_receivers(connection.dialect.name), rows)


@cache
def _insert_receivers(dialect: str) -> Any:
    statement = insert_of(dialect, receivers)
    next_at = func.coalesce(receivers.c.next_at, statement.excluded.next_at)
    return statement.on_conflict_do_update(index_elements=[receivers.c.tenant], set_={"next_at": next_at})


def _claim(connection: Connection, *, receiver: str, claim: str, now: float, until: float) -> Held | None:
    locked = select(receivers).where(receivers.c.tenant == receiver).with_for_update()
    row = connection.execute(locked).one_or_none()
    if row is None or row.next_at is None or row.next_at > now or row.claimed_until > now:
        return None
    found = connection.execute(_oldest_of(receiver)).one_or_none()
    if found is None:
        _change_receiver(connection, receiver, next_at=None)
        return None
    _change_receiver(connection, receiver, claim=claim, claimed_until=until)
    return Held(receiver, claim, Alert(**found._mapping), row.failures, row.failing_since)


def _oldest_of(receiver: str) -> Any:
    is_meant = and_(deliveries.c.state == WAITING, deliveries.c.receiver == receiver)
    joined = deliveries.join(alerts, alerts.c.id == deliveries.c.alert)
    return select(alerts).select_from(joined).where(is_meant).order_by(deliveries.c.at, deliveries.c.alert).limit(1)


def _is_held(connection: Connection, held: Held) -> bool:
    """Lock the row of a receiver; return whether the claim still counts."""
    claim = select(receivers.c.claim).where(receivers.c.tenant == held.receiver).with_for_update()
    return bool(connection.scalar(claim) == held.claim)


def _record_sent(connection: Connection, *, held: Held, now: float) -> bool:
    if not _is_held(connection, held):
        return False
    _change_delivery(connection, held, state=SENT, changed_at=now, problem="")
    values = {"failures": 0, "failing_since": None, **_NO_CLAIM}
    _change_receiver(connection, held.receiver, next_at=_next_at(connection, held.receiver, now), **values)
    return True


def _record_failed(
    connection: Connection, *, held: Held, now: float, problem: str, again_at: float, give_up: float
) -> int:
    if not _is_held(connection, held):
        return 0
    _change_delivery(connection, held, changed_at=now, problem=problem)
    dropped = _bury(connection, held.receiver, now, deliveries.c.since <= give_up)
    values = {"failures": held.failures + 1, "failing_since": held.failing_since or now, **_NO_CLAIM}
    _change_receiver(connection, held.receiver, next_at=_next_at(connection, held.receiver, again_at), **values)
    return dropped


def _list_of(ids: Collection[str]) -> Any:
    columns = [deliveries.c[one.name] for one in fields(Delivery)]
    return select(*columns).where(deliveries.c.alert.in_(ids)).order_by(deliveries.c.alert, deliveries.c.receiver)


def _resend(connection: Connection, *, id_: str, by: Author) -> Sequence[Delivery] | None:
    alert = connection.execute(select(alerts).where(alerts.c.id == id_)).one_or_none()
    if alert is None:
        return None
    whose = connection.scalars(select(deliveries.c.receiver).where(deliveries.c.alert == id_)).all()
    if whose:
        make_due(connection, dict.fromkeys(whose, by.at))
        is_meant = receivers.c.tenant.in_(whose)
        connection.execute(update(receivers).where(is_meant).values(next_at=by.at, failures=0))
        again = {"state": WAITING, "since": by.at, "changed_at": by.at, "problem": ""}
        connection.execute(update(deliveries).where(deliveries.c.alert == id_).values(**again))
        record(connection, by, Change("alert.resend", alert.tenant, id_, alert.subject))
    return [Delivery(**row._mapping) for row in connection.execute(_list_of([id_]))]


def _drop_waiting(connection: Connection, *, receiver: str, now: float, problem: str) -> int:
    connection.execute(select(receivers).where(receivers.c.tenant == receiver).with_for_update())
    dropped = _bury(connection, receiver, now, problem=problem)
    _change_receiver(connection, receiver, next_at=None, failures=0, failing_since=None)
    return dropped


def _bury(connection: Connection, receiver: str, now: float, *which: Any, **values: Any) -> int:
    is_meant = and_(deliveries.c.receiver == receiver, deliveries.c.state == WAITING, *which)
    return connection.execute(update(deliveries).where(is_meant).values(state=DEAD, changed_at=now, **values)).rowcount


def _next_at(connection: Connection, receiver: str, moment: float) -> float | None:
    waits = exists().where(deliveries.c.receiver == receiver, deliveries.c.state == WAITING)
    return moment if connection.scalar(select(waits)) else None


def _change_delivery(connection: Connection, held: Held, **values: Any) -> None:
    is_meant = and_(deliveries.c.alert == held.alert.id, deliveries.c.receiver == held.receiver)
    more = {"attempts": deliveries.c.attempts + 1}
    connection.execute(update(deliveries).where(is_meant).values(**more, **values))


def _change_receiver(connection: Connection, receiver: str, **values: Any) -> None:
    connection.execute(update(receivers).where(receivers.c.tenant == receiver).values(**values))
