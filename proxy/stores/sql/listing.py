"""The statement that lists jobs."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, bindparam, not_, select, tuple_

from proxy.stores.ledger import JobFilter
from proxy.stores.sql.rows import IS_OPEN
from proxy.stores.sql.schema import jobs

_AGE = tuple_(jobs.c.submitted_at, jobs.c.id)
# Values are parameters of statements, not part of them: SQLAlchemy's cache then knows each statement by its form.
_CONDITIONS = {
    "subject": jobs.c.subject == bindparam("subject"),
    "endpoints": jobs.c.endpoint.in_(bindparam("endpoints", expanding=True)),
    "since": jobs.c.submitted_at >= bindparam("since"),
}
_IS_OLDER = tuple_(bindparam("at"), bindparam("id")) > _AGE
_IS_QUEUED = jobs.c.request_id.is_not(None)
_PAGE = select(jobs).order_by(jobs.c.submitted_at.desc(), jobs.c.id.desc()).limit(bindparam("limit"))
_LISTING = _PAGE.where(jobs.c.tenant == bindparam("tenant"))
# Few jobs are open, of all tenants. An index by tenant would lead to all jobs of this one: the conditions hide it.
_OPEN_LISTING = _PAGE.where(IS_OPEN, jobs.c.tenant + "" == bindparam("tenant"))
_OPEN_CONDITIONS = _CONDITIONS | {"subject": jobs.c.subject + "" == bindparam("subject")}


def listing_query(wanted: JobFilter, limit: int) -> tuple[Select[Any], dict[str, Any]]:
    """Return the statement for a listing, and its parameters."""
    values: dict[str, Any] = {"tenant": wanted.tenant, "limit": limit}
    is_open = wanted.is_over is False
    statement = _OPEN_LISTING if is_open else _LISTING
    for name, condition in (_OPEN_CONDITIONS if is_open else _CONDITIONS).items():
        if (value := getattr(wanted, name)) is not None:
            values[name] = value
            statement = statement.where(condition)
    if wanted.is_queued:
        statement = statement.where(_IS_QUEUED)
    if wanted.is_over:
        statement = statement.where(not_(IS_OPEN))
    if wanted.after is not None:
        values["at"], values["id"] = wanted.after
        statement = statement.where(_IS_OLDER)
    return statement, values
