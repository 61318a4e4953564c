"""All SQL persistence of one process over one engine."""

from __future__ import annotations

from proxy.errors import StoreUnavailable
from proxy.stores.sql import migrate
from proxy.stores.sql.directory import SqlDirectory
from proxy.stores.sql.engine import Transactions, create_engine, reading
from proxy.stores.sql.idempotency import SqlIdempotency
from proxy.stores.sql.ledger import SqlLedger
from proxy.stores.sql.uploads import SqlUploads


class SqlStores:
    """Opens nothing until it is used. `database_url` is `sqlite:///…` or `postgresql://…`."""

    def __init__(self, database_url: str) -> None:
        self._engine = create_engine(database_url)
        self.directory = SqlDirectory(self._engine)
        self._transactions = Transactions(self._engine)
        self.ledger = SqlLedger(self._engine, self._transactions)
        self.idempotency = SqlIdempotency(self._engine)
        self.uploads = SqlUploads(self._engine)

    async def migrate(self) -> str:
        """Bring the database to this version; return the revision.

        Raises:
            StoreUnavailable: the database does not answer.
        """
        async with reading(self._engine):
            pass
        return await migrate.upgrade(self._engine)

    async def prepare(self) -> None:
        """Bring SQLite to this version, as its file is ours alone; another database is only looked at.

        Raises:
            StoreUnavailable: it does not answer, or is at another version.
        """
        if self._engine.dialect.name == "sqlite" and await self._revision() != migrate.newest():
            await self.migrate()
        await self.ping()

    async def ping(self) -> None:
        if await self._revision() != migrate.newest():
            raise StoreUnavailable("The proxy's database is not at this version; run: fal-proxy migrate")

    async def _revision(self) -> str | None:
        async with reading(self._engine) as connection:
            return await migrate.current(connection)

    async def close(self) -> None:
        await self._transactions.close()
        await self._engine.dispose()
