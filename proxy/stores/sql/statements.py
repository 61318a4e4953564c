"""What monthly statements ask, in SQL."""

from __future__ import annotations

from sqlalchemy import bindparam, exists, select

from proxy.stores.sql.database import Database
from proxy.stores.sql.schema import jobs
from proxy.stores.sql.transaction import IS_OPEN

# Few jobs are open, of all tenants. Indexes by tenant or time would lead to more: the conditions hide them.
_has_open_jobs = select(
    exists().where(
        IS_OPEN,
        jobs.c.tenant + "" == bindparam("tenant"),
        jobs.c.submitted_at + 0 >= bindparam("since"),
        jobs.c.submitted_at + 0 < bindparam("until"),
    )
)


class SqlStatements:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def has_open_jobs(self, tenant: str, since: float, until: float) -> bool:
        async with self._database.reading() as connection:
            values = {"tenant": tenant, "since": since, "until": until}
            return bool((await connection.execute(_has_open_jobs, values)).scalar())
