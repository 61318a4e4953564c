"""The connection to PostgreSQL that the ledger's transactions use one after the other.

To take a connection from the pool and to put it back takes as long as a transaction. So the last one is kept, and used
again while it is known to be well. Transactions that run at the same time have others of the pool.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from proxy.stores.sql.committer import LedgerCommitter
from proxy.stores.sql.connection_timeout import ConnectionTimeout
from proxy.stores.transaction import LedgerTransaction

T = TypeVar("T")


class LedgerConnection:
    """Runs the transactions of the ledger, on the connection of the last one where it is free."""

    def __init__(self, engine: AsyncEngine, timeout: ConnectionTimeout) -> None:
        self._engine = engine
        self._timeout = timeout
        self._committer = LedgerCommitter(engine.dialect)
        #: One at the most.
        self._kept: list[AsyncConnection] = []

    async def commit(self, work: Callable[[LedgerTransaction], T]) -> T:
        """Commit `work`, and return what it returns. It may be done twice.

        Raises:
            DriverFailed: PostgreSQL did not commit it, or may have done so.
            SQLAlchemyError, OSError, TimeoutError: there is no connection.
        """
        async with self._lend() as connection:
            return await connection.run_sync(self._committer.commit, work)

    async def try_out(self, work: Callable[[LedgerTransaction], object]) -> None:
        """Do `work` and take it back. Raises as `commit` does."""
        async with self._lend() as connection:
            await connection.run_sync(self._committer.try_out, work)

    async def close(self) -> None:
        while self._kept:
            await self._kept.pop().close()

    @asynccontextmanager
    async def _lend(self) -> AsyncIterator[AsyncConnection]:
        """Lend the kept connection, or one of the pool; a server may be silent, so the wait for it has an end."""
        connection = self._kept.pop() if self._kept else None
        if connection is not None and not self._committer.is_fresh(connection):
            # The pool asks it before it lends it again.
            await connection.close()
            connection = None
        if connection is None:
            async with self._timeout.bound():
                connection = await self._engine.connect()
        try:
            yield connection
        except BaseException:
            await connection.close()
            raise
        self._timeout.note_answer()
        if self._kept:
            await connection.close()
        else:
            self._kept.append(connection)
