"""Grants in SQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import bindparam, insert, tuple_

from proxy.stores.audit import Author, Change
from proxy.stores.grants import MOST_SPENT, Grant, GrantFilter, GrantHolder, GrantStanding
from proxy.stores.ledger import Account, Job
from proxy.stores.sql.audit import record
from proxy.stores.sql.database import Database
from proxy.stores.sql.directory import bump_version, change_directory, check_not_deleted
from proxy.stores.sql.grant_rows import GRANTS_OF_CALLER, IS_OF_SUBJECTS, IS_OPEN_GRANT, STANDINGS, standing_of
from proxy.stores.sql.schema import grants

_AGE = tuple_(grants.c.created_at, grants.c.id)
_IS_OLDER = tuple_(bindparam("at"), bindparam("id")) > _AGE
_PAGE = (
    STANDINGS.where(grants.c.tenant == bindparam("tenant"))
    .order_by(grants.c.created_at.desc(), grants.c.id.desc())
    .limit(bindparam("most"))
)


class SqlGrants:
    """`GrantStore` in SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, grant: Grant, *, by: Author) -> GrantStanding:
        of_tenant = STANDINGS.where(grants.c.tenant == grant.tenant)
        async with change_directory(self._database) as connection:
            await check_not_deleted(connection, grant.tenant)
            if grant.key_hash is not None:
                given = await connection.execute(of_tenant.where(grants.c.key_hash == grant.key_hash))
                if (row := given.one_or_none()) is not None:
                    return standing_of(row)
            if (await connection.execute(of_tenant.limit(1))).one_or_none() is None:
                # From now on, all processes look for grants where a quota of this tenant is used up.
                await bump_version(connection)
            await connection.execute(insert(grants).values(asdict(grant)))
            # Without the reason: it may name an end user.
            figures = {"unit": grant.unit, "amount": grant.amount, "expires_at": grant.expires_at}
            change = Change("grant.add", grant.tenant, grant.id, grant.subject, after=figures)
            await connection.run_sync(record, by, change)
            return GrantStanding(grant, Account())

    async def find(self, tenant: str, key_hash: str) -> GrantStanding | None:
        wanted = STANDINGS.where(grants.c.tenant == tenant, grants.c.key_hash == key_hash)
        async with self._database.reading() as connection:
            row = (await connection.execute(wanted)).one_or_none()
            return None if row is None else standing_of(row)

    async def list_grants(self, wanted: GrantFilter, most: int) -> Sequence[GrantStanding]:
        statement: Any = _PAGE
        values: dict[str, Any] = {"tenant": wanted.tenant, "most": most}
        if wanted.subjects is not None:
            statement = statement.where(IS_OF_SUBJECTS)
            values["subjects"] = wanted.subjects
        if wanted.open_at is not None:
            statement = statement.where(IS_OPEN_GRANT)
            values["open_at"] = wanted.open_at
        if wanted.after is not None:
            statement = statement.where(_IS_OLDER)
            values["at"], values["id"] = wanted.after
        async with self._database.reading() as connection:
            return [standing_of(row) for row in await connection.execute(statement, values)]

    async def list_spendable(self, job: Job) -> Mapping[GrantHolder, Sequence[GrantStanding]]:
        found: dict[GrantHolder, list[GrantStanding]] = {}
        holders = {"tenant": job.tenant, "subjects": {job.subject, ""}, "open_at": job.submitted_at}
        async with self._database.reading() as connection:
            for row in await connection.execute(GRANTS_OF_CALLER, holders):
                found.setdefault(GrantHolder(row.tenant, row.subject, row.unit), []).append(standing_of(row))
        return {holder: standings[:MOST_SPENT] for holder, standings in found.items()}
