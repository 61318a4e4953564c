"""Rows of grants, with the accounts of what they paid."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ARRAY, ColumnElement, Select, Text, and_, bindparam, func, or_, select, true

from proxy.stores.grants import GRANT_PREFIX, MOST_SPENT, Grant, GrantHolder, GrantStanding
from proxy.stores.ledger import Account
from proxy.stores.sql.schema import grants, quota_usage


def _on_account(figure: ColumnElement[int]) -> ColumnElement[int]:
    """Select a figure of a grant's account, found by the beginning of its key. A join could read all accounts."""
    is_its_account = and_(quota_usage.c.tenant == grants.c.tenant, quota_usage.c.subject == GRANT_PREFIX + grants.c.id)
    return func.coalesce(select(figure).where(is_its_account).correlate(grants).scalar_subquery(), 0)


GRANT_COLUMNS = tuple(column.name for column in grants.c)
#: Whether a grant has something left, and expires after the parameter `open_at`.
IS_OPEN_GRANT = and_(
    or_(grants.c.expires_at.is_(None), grants.c.expires_at > bindparam("open_at")),
    _on_account(quota_usage.c.used + quota_usage.c.reserved) < grants.c.amount,
)
STANDINGS = select(grants, *(_on_account(quota_usage.c[name]).label(name) for name in Account._fields))
_SPENDING_ORDER = (grants.c.expires_at.asc().nulls_last(), grants.c.id)
IS_OF_SUBJECTS = grants.c.subject.in_(bindparam("subjects", expanding=True))
#: The grants that a caller's next calls could spend, in their order. A caller has far fewer.
GRANTS_OF_CALLER = (
    STANDINGS.where(grants.c.tenant == bindparam("tenant"), IS_OF_SUBJECTS, IS_OPEN_GRANT)
    .order_by(*_SPENDING_ORDER)
    .limit(1_000)
)


def _next_grants() -> Select[Any]:
    """Select those that each of some holders spends next, in their order; PostgreSQL takes holders as three arrays."""
    names = GrantHolder._fields
    arrays = (bindparam(f"{name}s", type_=ARRAY(Text)) for name in names)
    held = func.unnest(*arrays).table_valued(*names).render_derived()
    of_holder = select(grants).where(*(grants.c[name] == held.c[name] for name in names), IS_OPEN_GRANT)
    found = of_holder.order_by(*_SPENDING_ORDER).limit(MOST_SPENT).lateral()
    return select(found).select_from(held.join(found, true()))


NEXT_GRANTS = _next_grants()


def grant_of(row: Any) -> Grant:
    return Grant(**{name: getattr(row, name) for name in GRANT_COLUMNS})


def standing_of(row: Any) -> GrantStanding:
    return GrantStanding(grant_of(row), Account(row.used, row.reserved))
