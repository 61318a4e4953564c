"""All SQL persistence of one process over one engine."""

from __future__ import annotations

import logging

from proxy.settings import StoreSettings
from proxy.stores.errors import SchemaMismatch, SchemaTooNew
from proxy.stores.sql import migrate, probe
from proxy.stores.sql.admin_tokens import SqlAdminTokens
from proxy.stores.sql.alerts import SqlAlerts
from proxy.stores.sql.audit import SqlAudit
from proxy.stores.sql.database import Database
from proxy.stores.sql.deliveries import SqlDeliveries
from proxy.stores.sql.directory import SqlDirectory
from proxy.stores.sql.engine import LOCK_SECONDS
from proxy.stores.sql.grants import SqlGrants
from proxy.stores.sql.idempotency import SqlIdempotency
from proxy.stores.sql.learned import SqlLearned
from proxy.stores.sql.ledger import SqlLedger
from proxy.stores.sql.removal import SqlRemoval
from proxy.stores.sql.retention import SqlRetention
from proxy.stores.sql.spend import SqlSpend
from proxy.stores.sql.statements import SqlStatements
from proxy.stores.sql.uploads import SqlUploads
from proxy.stores.sql.usage_rollup import SqlUsageRollup
from proxy.telemetry.instruments import Distributions

_log = logging.getLogger(__name__)


class SqlStores:
    """Opens nothing until it is used.

    Args:
        database_url: `sqlite:///…` or `postgresql://…`.
        lock_seconds: how long to wait for a database that others keep busy.
        sqlite_sync: whether the commits of a SQLite file wait for the disk (`full`) or not (`normal`).
        seconds: gets how long each transaction takes.
        migrates: whether `prepare` brings the schema to this version; by default that of a SQLite file only.
    """

    def __init__(
        self,
        database_url: str,
        lock_seconds: float = LOCK_SECONDS,
        *,
        sqlite_sync: str = "normal",
        seconds: Distributions | None = None,
        migrates: bool | None = None,
    ) -> None:
        is_durable = sqlite_sync == "full"
        self._database = Database(database_url, lock_seconds, is_durable=is_durable, seconds=seconds)
        self._migrates = self._database.dialect.name == "sqlite" if migrates is None else migrates
        self._served = {migrate.newest()}
        self.directory = SqlDirectory(self._database)
        self.admin_tokens = SqlAdminTokens(self._database)
        self.audit = SqlAudit(self._database)
        self.ledger = SqlLedger(self._database)
        self.grants = SqlGrants(self._database)
        self.learned = SqlLearned(self._database)
        self.idempotency = SqlIdempotency(self._database)
        self.uploads = SqlUploads(self._database)
        self.alerts = SqlAlerts(self._database)
        self.deliveries = SqlDeliveries(self._database)
        self.spend = SqlSpend(self._database)
        self.retention = SqlRetention(self._database)
        self.removal = SqlRemoval(self._database)
        self.statements = SqlStatements(self._database)
        self.usage_rollup = SqlUsageRollup(self._database)

    @classmethod
    def of(
        cls, settings: StoreSettings, seconds: Distributions | None = None, *, lock_seconds: float = LOCK_SECONDS
    ) -> SqlStores:
        """Make the stores that the settings name."""
        url, sync = settings.database_url.reveal(), settings.sqlite_sync
        return cls(url, lock_seconds, sqlite_sync=sync, seconds=seconds, migrates=settings.migrates)

    async def migrate(self) -> str:
        """Bring the database to this version; return the revision it is at.

        Raises:
            SchemaTooNew: the database was made by a version that this one cannot run beside.
            StoreUnavailable: it does not answer.
        """
        async with self._database.migrating() as connection:
            return await migrate.upgrade(connection)

    async def prepare(self) -> None:
        """Bring the database to this version if it is to be, and make sure that this version can use it.

        Raises:
            SchemaMismatch: it cannot.
            StoreUnavailable: the database does not answer.
        """
        if self._migrates and await self._revision() != migrate.newest():
            await self.migrate()
        await self.check_revision()

    async def ping(self) -> None:
        """Do what calls do, and take it back.

        Raises:
            StoreUnavailable: a table is missing, or the database takes no writes.
        """
        await self.check_revision()
        async with self._database.reading() as connection:
            await connection.execute(probe.EVERY_TABLE)
        await self._database.try_out(probe.book_call)

    async def check_revision(self) -> None:
        """Make sure that this version can use the database as it is.

        Raises:
            SchemaMismatch: it cannot.
            StoreUnavailable: the database does not answer.
        """
        async with self._database.reading() as connection:
            revision = await migrate.current(connection)
            if revision in self._served:
                return
            if revision is None or not await migrate.is_served(connection, revision):
                raise _mismatch(revision)
        self._served.add(revision)
        fields = {"revision": revision, "newest_known": migrate.newest()}
        _log.warning("the database is at another revision of this release", extra={"log_fields": fields})

    async def _revision(self) -> str | None:
        async with self._database.reading() as connection:
            return await migrate.current(connection)

    async def close(self) -> None:
        await self._database.close()


def _mismatch(revision: str | None) -> SchemaMismatch:
    """Say what to do about a schema that this version cannot use."""
    if revision is not None and migrate.release_of(revision) > migrate.release_of(migrate.newest()):
        return SchemaTooNew(
            "The proxy's database is of a newer version; run that one ('fal-proxy migrate' never goes back)"
        )
    return SchemaMismatch("The proxy's database is not at this version; run: fal-proxy migrate")
