"""Fresh databases of either kind; one that is at this version is a copy, as migrating each would cost the most."""

from __future__ import annotations

import itertools
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from anyio.from_thread import start_blocking_portal

from proxy.stores.sql import SqlStores
from tests.support.postgres import Postgres


@cache
def migrated_sqlite() -> bytes:
    """A SQLite file that is at this version, with no rows."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "proxy.db")
        _migrate(f"sqlite:///{path}")
        return path.read_bytes()


class Databases(Protocol):
    def empty(self) -> str:
        """The URL of a database with nothing in it."""

    def migrated(self) -> str:
        """The URL of a database that is at this version, with no rows."""


class SqliteDatabases:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count()

    def empty(self) -> str:
        return f"sqlite:///{self._new_path()}"

    def migrated(self) -> str:
        path = self._new_path()
        path.write_bytes(migrated_sqlite())
        return f"sqlite:///{path}"

    def _new_path(self) -> Path:
        return self._folder / f"proxy-{next(self._numbers)}.db"


class PostgresDatabases:
    def __init__(self, server: Postgres) -> None:
        self._server = server
        self._template: str | None = None

    def empty(self) -> str:
        return self._server.url(self._server.create_database())

    def migrated(self) -> str:
        if self._template is None:
            self._template = self._server.create_database()
            _migrate(self._server.url(self._template))
        return self._server.url(self._server.create_database(self._template))


def _migrate(url: str) -> None:
    async def migrate() -> None:
        stores = SqlStores(url)
        await stores.migrate()
        await stores.close()

    # In a thread, as the test may itself run in an event loop.
    with start_blocking_portal() as portal:
        portal.call(migrate)
