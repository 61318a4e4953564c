"""What monthly statements ask, in SQL."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from sqlalchemy import JSON, Text, bindparam, cast, exists, null, select, type_coerce, union_all

from proxy.stores.grants import sum_granted
from proxy.stores.sql.database import Database
from proxy.stores.sql.rows import IS_OPEN
from proxy.stores.sql.schema import grant_days, jobs
from proxy.stores.sql.usage import MILLION, day_of
from proxy.stores.transaction import unpack_charges

# Few jobs are open or still to be counted, of all tenants. Indexes by tenant or time would lead to more: the conditions
# hide them.
_IS_MEANT = (
    jobs.c.tenant + "" == bindparam("tenant"),
    jobs.c.submitted_at + 0 >= bindparam("since"),
    jobs.c.submitted_at + 0 < bindparam("until"),
)
_has_open_jobs = select(exists().where(IS_OPEN, *_IS_MEANT))
_no_document = type_coerce(null(), JSON)
#: One statement: a job that is counted meanwhile is in one of its parts.
_granted = union_all(
    select(
        *(grant_days.c[name] for name in ("window", "unit", "paid_whole", "paid_rest")),
        _no_document.label("charges"),
        _no_document.label("used"),
    ).where(
        grant_days.c.tenant == bindparam("tenant"),
        grant_days.c.day >= bindparam("first"),
        grant_days.c.day < bindparam("end"),
    ),
    select(null(), null(), null(), null(), jobs.c.charges, jobs.c.used).where(
        jobs.c.state == "settled", cast(jobs.c.charges, Text).like('% grant"%'), *_IS_MEANT
    ),
)


class SqlStatements:
    """`StatementStore` in SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def has_open_jobs(self, tenant: str, since: float, until: float) -> bool:
        async with self._database.reading() as connection:
            values = {"tenant": tenant, "since": since, "until": until}
            return bool((await connection.execute(_has_open_jobs, values)).scalar())

    async def sum_grants(self, tenant: str, since: float, until: float) -> Mapping[tuple[str, str], int]:
        days = {"first": day_of(since), "end": day_of(until)}
        paid: Counter[tuple[str, str]] = Counter()
        async with self._database.reading() as connection:
            values = {"tenant": tenant, "since": since, "until": until, **days}
            for row in await connection.execute(_granted, values):
                if row.charges is None:
                    paid[row.window, row.unit] += row.paid_whole * MILLION + row.paid_rest
                else:
                    paid.update(sum_granted(unpack_charges(tenant, row.charges), row.used))
        return paid
