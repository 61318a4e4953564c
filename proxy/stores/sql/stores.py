"""All SQL persistence of one process over one engine."""

from __future__ import annotations

import logging

from proxy.errors import StoreUnavailable
from proxy.settings import StoreSettings
from proxy.stores.sql import migrate, probe
from proxy.stores.sql.database import Database
from proxy.stores.sql.directory import SqlDirectory
from proxy.stores.sql.engine import LOCK_SECONDS
from proxy.stores.sql.idempotency import SqlIdempotency
from proxy.stores.sql.ledger import SqlLedger
from proxy.stores.sql.retention import SqlRetention
from proxy.stores.sql.uploads import SqlUploads

_log = logging.getLogger(__name__)


class SqlStores:
    """Opens nothing until it is used.

    Args:
        database_url: `sqlite:///…` or `postgresql://…`.
        lock_seconds: how long to wait for a database that others keep busy.
        sqlite_sync: whether the commits of a SQLite file wait for the disk (`full`) or not (`normal`).
    """

    def __init__(self, database_url: str, lock_seconds: float = LOCK_SECONDS, *, sqlite_sync: str = "normal") -> None:
        self._database = Database(database_url, lock_seconds, is_durable=sqlite_sync == "full")
        self._served = {migrate.newest()}
        self.directory = SqlDirectory(self._database)
        self.ledger = SqlLedger(self._database)
        self.idempotency = SqlIdempotency(self._database)
        self.uploads = SqlUploads(self._database)
        self.retention = SqlRetention(self._database)

    @classmethod
    def of(cls, settings: StoreSettings) -> SqlStores:
        """The stores that the settings name."""
        return cls(settings.database_url.reveal(), sqlite_sync=settings.sqlite_sync)

    async def migrate(self) -> str:
        """Bring the database to this version; return the revision it is at.

        Raises:
            StoreUnavailable: the database does not answer, or was made by a version that cannot run beside this one.
        """
        async with self._database.migrating() as connection:
            return await migrate.upgrade(connection)

    async def prepare(self) -> None:
        """Bring SQLite to this version, as its file is ours alone; another database is only looked at.

        Raises:
            StoreUnavailable: it does not answer, or this version cannot use it.
        """
        if self._database.engine.dialect.name == "sqlite" and await self._revision() != migrate.newest():
            await self.migrate()
        await self._check_revision()

    async def ping(self) -> None:
        await self._check_revision()
        await self._database.try_out(probe.write)

    async def _check_revision(self) -> None:
        async with self._database.reading() as connection:
            revision = await migrate.current(connection)
            if revision in self._served:
                return
            if revision is None or not await migrate.is_served(connection, revision):
                raise StoreUnavailable("The proxy's database is not at this version; run: fal-proxy migrate")
        self._served.add(revision)
        fields = {"revision": revision, "newest_known": migrate.newest()}
        _log.warning("the database is at another revision of this release", extra={"log_fields": fields})

    async def _revision(self) -> str | None:
        async with self._database.reading() as connection:
            return await migrate.current(connection)

    async def close(self) -> None:
        await self._database.close()
