"""Group commit: operations that arrive together share one transaction, and each still gets an outcome of its own.

While one transaction runs, what arrives waits and shares the next one, so a durable ledger costs a fraction of a commit
a call. A transaction that fails is split in halves, down to the operation at fault: only that one fails. A store that
is down is not asked again for each half.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from proxy.errors import StoreUnavailable
from proxy.stores.base import DataRefused, Ledger, Operation, Outcome

#: Operations in one transaction. A call has at most 48 accounts (four units, four windows; subject, tenant and guests),
#: an account takes seven parameters of a statement, and PostgreSQL's protocol allows 32,767.
MOST_AT_ONCE = 97
_log = logging.getLogger(__name__)

_Entry = tuple[Operation, asyncio.Future[Outcome]]


class LedgerBatcher:
    """Commits operations in groups, in the order of their arrival."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._waiting: list[_Entry] = []
        self._worker: asyncio.Task[None] | None = None

    async def commit(self, operation: Operation) -> Outcome:
        """Do one operation.

        Raises:
            DataRefused: the database does not take it.
            StoreUnavailable: it could not be written down.
        """
        done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting.append((operation, done))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await done

    async def close(self) -> None:
        """Wait until everything that was asked for is written."""
        if self._worker is not None:
            await self._worker

    async def _work(self) -> None:
        while self._waiting:
            await self._coalesce()
            batch, self._waiting = self._waiting[:MOST_AT_ONCE], self._waiting[MOST_AT_ONCE:]
            await self._commit(batch)

    async def _coalesce(self) -> None:
        """Wait while every turn of the event loop brings more: under load most of a transaction is its own cost,
        and calls that are about to join it are served sooner by one than by several."""
        seen = 0
        while seen < len(self._waiting) < MOST_AT_ONCE:
            seen = len(self._waiting)
            await asyncio.sleep(0)

    async def _commit(self, batch: list[_Entry]) -> None:
        """Commit a batch, or what is left of it without the operations that fail alone."""
        parts = [batch]
        while parts:
            part = parts.pop()
            try:
                outcomes = await self._ledger.commit([operation for operation, _ in part])
            except Exception as problem:
                if is_down := _is_down(problem):
                    part = [entry for some in (part, *reversed(parts)) for entry in some]
                    parts.clear()
                if is_down or len(part) == 1:
                    _fail(part, problem)
                else:
                    middle = len(part) // 2
                    parts += [part[middle:], part[:middle]]
            else:
                _resolve(part, outcomes)


def _is_down(problem: Exception) -> bool:
    """Whether the store failed, and not what it was asked for: each half would wait for it again."""
    return isinstance(problem, StoreUnavailable) and not isinstance(problem, DataRefused)


def _resolve(part: Sequence[_Entry], outcomes: Sequence[Outcome]) -> None:
    for (_, done), outcome in zip(part, outcomes, strict=True):
        if not done.done():
            done.set_result(outcome)


def _fail(part: Sequence[_Entry], problem: Exception) -> None:
    if not isinstance(problem, StoreUnavailable):
        _log.error("the ledger failed", exc_info=problem)
        problem = StoreUnavailable("The ledger does not answer.")
    for _, done in part:
        if not done.done():
            done.set_exception(problem)
