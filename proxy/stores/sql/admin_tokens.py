"""Named tokens of the admin API in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import delete, select

from proxy.clock import to_iso
from proxy.stores.admin_tokens import NamedToken
from proxy.stores.audit import Author, Change
from proxy.stores.sql.audit import record
from proxy.stores.sql.database import Database
from proxy.stores.sql.directory import change_directory
from proxy.stores.sql.insertions import insert_missing
from proxy.stores.sql.schema import admin_tokens

_by_name = select(admin_tokens).order_by(admin_tokens.c.name)


class SqlAdminTokens:
    """`AdminTokenStore` in SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def load(self) -> Sequence[NamedToken]:
        async with self._database.reading() as connection:
            return [NamedToken(**row._mapping) for row in await connection.execute(_by_name)]

    async def add(self, token: NamedToken, most: int, *, by: Author) -> bool:
        async with change_directory(self._database) as connection:
            names = {row.name for row in await connection.execute(_by_name)}
            if token.name in names or len(names) >= most:
                return False
            # A version that does not wait for others may take the name meanwhile.
            added = await connection.execute(insert_missing(connection.dialect.name, admin_tokens), asdict(token))
            if not added.rowcount:
                return False
            change = Change("admin_token.create", target=token.id, after=_describe(token))
            await connection.run_sync(record, by, change)
            return True

    async def revoke(self, name: str, *, by: Author) -> bool:
        is_meant = admin_tokens.c.name == name
        async with change_directory(self._database) as connection:
            token = (await connection.execute(select(admin_tokens).where(is_meant))).one_or_none()
            if token is None:
                return False
            await connection.execute(delete(admin_tokens).where(is_meant))
            change = Change("admin_token.revoke", target=token.id, before=_describe(token))
            await connection.run_sync(record, by, change)
            return True


def _describe(token: Any) -> dict[str, str]:
    return {"name": token.name, "role": token.role, "expires_at": to_iso(token.expires_at)}
