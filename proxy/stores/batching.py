"""Group commit: operations that arrive together share one transaction, and each still gets an outcome of its own.

While one transaction runs, what arrives waits and shares the next one, so a durable ledger costs a fraction of a commit
a call. A transaction that fails is split in halves, down to the operation at fault: only that one fails. A store that
is down is not asked again for each half.

A reservation that cannot be written fails, and its call is refused. What has happened at fal already, that it accepted
a job or that a call is over, is never dropped: it stays in a backlog until the store takes it, and in a spool that
outlives the process. The caller waits for that only so long.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from proxy.errors import StoreUnavailable
from proxy.stores.errors import DataRefused, OutcomeUnknown, TransactionAborted
from proxy.stores.ledger import Accept, Deferred, Granted, Ledger, Operation, Outcome, Reserve, Settle, Stale
from proxy.stores.ledger_metrics import LedgerMetrics
from proxy.stores.spool import Fact, Spool

#: Operations in one transaction. A call has at most 80 accounts: four units, in five windows of its subject, its tenant
#: and the guests, in four of its address, and of its session. An account takes five parameters of a statement, and
#: PostgreSQL's protocol allows 32,767.
MOST_AT_ONCE = 81
#: How soon the backlog is tried again, at first and at the most.
RETRY_SECONDS = (0.1, 2.0)
#: How often it is looked whose time is over. One timer serves all operations.
LOOK_SECONDS = 0.1
#: What waits for longer than this is spooled.
SPOOL_SECONDS = 1.0
#: How long the end of the process waits for each transaction.
CLOSE_SECONDS = 0.5
_UNAVAILABLE = StoreUnavailable("The proxy's database does not answer; try again shortly.")
_log = logging.getLogger(__name__)


class LedgerTimeouts(NamedTuple):
    """How many seconds a caller waits for the ledger."""

    reserve: float = 10.0
    accept: float = 10.0
    #: Its answer is there, and is kept from it meanwhile.
    settle: float = 1.5


@dataclass(slots=True, eq=False)
class _Entry:
    """One operation on its way.

    Attributes:
        done: what the caller waits for; None if no caller does.
        since: when it arrived, by the clock of the event loop.
        is_late: whether the store failed at it, or has kept the caller waiting for too long.
    """

    operation: Operation
    done: asyncio.Future[Outcome | Deferred] | None
    since: float
    is_late: bool = False

    @property
    def is_heard(self) -> bool:
        """Whether a caller still waits for the outcome."""
        return self.done is not None and not self.done.done()

    def resolve(self, outcome: Outcome | Deferred) -> None:
        if self.done is not None and not self.done.done():
            self.done.set_result(outcome)

    def fail(self, problem: StoreUnavailable) -> None:
        if self.done is not None and not self.done.done():
            self.done.set_exception(problem)
        elif not isinstance(self.operation, Reserve):
            fields = {"job": self.operation.job_id, "operation": type(self.operation).__name__.lower()}
            _log.error("ledger operation refused", extra={"log_fields": fields})

    def expire(self, before: float) -> bool:
        """Let a caller go on who has waited for long enough; return whether nothing is left to do."""
        if self.since <= before:
            self.is_late = True
            if isinstance(self.operation, Reserve):
                self.fail(_UNAVAILABLE)
            else:
                self.resolve(Deferred())
        return isinstance(self.operation, Reserve) and not self.is_heard


class LedgerBatcher:
    """Commits operations in groups, in the order of their arrival."""

    def __init__(
        self,
        ledger: Ledger,
        timeouts: LedgerTimeouts | None = None,
        spool: Spool | None = None,
        metrics: LedgerMetrics | None = None,
    ) -> None:
        reserve, accept, settle = timeouts or LedgerTimeouts()
        self._metrics = metrics
        self._ledger = ledger
        self._spool = spool or Spool(None)
        self._spooling: asyncio.Future[int] | None = None
        self._timeouts: dict[type[Operation], float] = {Reserve: reserve, Accept: accept, Settle: settle}
        self._waiting: list[_Entry] = []
        self._batch: list[_Entry] = []
        self._backlog: list[_Entry] = []
        self._worker: asyncio.Task[None] | None = None
        self._watcher: asyncio.TimerHandle | None = None
        self._retrier: asyncio.TimerHandle | None = None
        self._pause = RETRY_SECONDS[0]
        self._commits = 0

    def __len__(self) -> int:
        """Count the operations that wait for a store that does not answer."""
        return sum(entry.is_late for entry in self._list_entries())

    def _list_entries(self) -> Iterator[_Entry]:
        return chain(self._batch, self._backlog, self._waiting)

    def commit(self, operation: Operation) -> asyncio.Future[Outcome | Deferred]:
        """Do one operation; it is on its way when this returns. The future gives its outcome, or raises:

        DataRefused: the database does not take it.
        StoreUnavailable: it could not be written down. Never of an `Accept` or a `Settle`: these are deferred then.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Outcome | Deferred] = loop.create_future()
        self._waiting.append(_Entry(operation, done, loop.time()))
        self._start()
        return done

    def start(self) -> None:
        """Write what a process before this one could not."""
        if found := self._spool.load():
            _log.info("spooled operations found", extra={"log_fields": {"operations": len(found)}})
            self._waiting += [_Entry(fact, None, 0.0, is_late=True) for fact in found]
            self._start()

    async def close(self) -> None:
        """Write what was asked for, to the spool if the store does not answer."""
        self._retry()
        while self._worker is not None and not self._worker.done():
            before = self._commits
            await asyncio.wait({self._worker}, timeout=CLOSE_SECONDS)
            if self._commits == before:
                break
        for timer in (self._watcher, self._retrier):
            if timer is not None:
                timer.cancel()
        if left := await self.spool():
            _log.error("ledger operations lost", extra={"log_fields": {"operations": left}})
        if self._worker is not None:
            self._worker.cancel()

    async def spool(self) -> int:
        """Keep in files what is not written yet; return how many operations could not be kept."""
        if self._spooling is not None:
            await asyncio.wait({self._spooling})
        return self._spool.keep(self._facts(before=math.inf))

    def _facts(self, before: float) -> list[Fact]:
        """List what has happened at fal and arrived before a moment."""
        late = (entry.operation for entry in self._list_entries() if entry.since < before)
        return [operation for operation in late if not isinstance(operation, Reserve)]

    def _start(self) -> None:
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        if self._watcher is None:
            self._watcher = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._watch)

    async def _work(self) -> None:
        while self._waiting:
            await self._coalesce()
            self._batch, self._waiting = self._waiting[:MOST_AT_ONCE], self._waiting[MOST_AT_ONCE:]
            await self._commit(self._batch)
            self._batch = []

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
                outcomes = await self._ledger.commit([entry.operation for entry in part])
            except Exception as problem:
                is_aborted = isinstance(problem, TransactionAborted)
                if isinstance(problem, StoreUnavailable) and not (is_aborted or isinstance(problem, DataRefused)):
                    # It is down, and not at odds with what it was asked for: each half would wait for it again.
                    self._defer(part, problem)
                    self._defer((entry for some in reversed(parts) for entry in some), _UNAVAILABLE)
                    return
                if len(part) > 1:
                    middle = len(part) // 2
                    parts += [part[middle:], part[:middle]]
                elif isinstance(problem, TransactionAborted):
                    self._defer(part, problem)
                else:
                    _fail(part[0], problem)
            else:
                self._resolve(part, outcomes)

    def _resolve(self, part: Sequence[_Entry], outcomes: Sequence[Outcome]) -> None:
        now, metrics = asyncio.get_running_loop().time(), self._metrics
        for entry, outcome in zip(part, outcomes, strict=True):
            if metrics is not None:
                metrics.count(entry.operation, outcome, now - entry.since if entry.since else 0.0)
            if (done := entry.done) is not None and not done.done():
                done.set_result(outcome)
            else:
                self._resolve_unheard(entry.operation, outcome)
        self._commits += 1
        self._pause = RETRY_SECONDS[0]
        if self._backlog:
            self._retry()

    def _resolve_unheard(self, operation: Operation, outcome: Outcome) -> None:
        if isinstance(operation, Reserve):
            if isinstance(outcome, Granted):
                self._waiting.append(_release(operation))
        elif isinstance(operation, Accept) and isinstance(outcome, Stale):
            _log.warning("acceptance came too late", extra={"log_fields": {"job": operation.job_id}})

    def _defer(self, entries: Iterable[_Entry], problem: StoreUnavailable) -> None:
        """Refuse reservations that the store did not take, and keep what has happened already for later."""
        for entry in entries:
            if not isinstance(entry.operation, Reserve):
                entry.is_late = True
                self._backlog.append(entry)
                continue
            entry.fail(problem)
            if isinstance(problem, OutcomeUnknown):
                # Its call is refused, so if it was written down it is to be undone.
                self._backlog.append(_release(entry.operation))
        # What has just arrived waits with the others: asking for it now would only fail again.
        self._backlog += [entry for entry in self._waiting if not isinstance(entry.operation, Reserve)]
        self._waiting = [entry for entry in self._waiting if isinstance(entry.operation, Reserve)]
        if self._backlog and self._retrier is None:
            pause = self._pause * random.uniform(0.5, 1.0)
            self._retrier = asyncio.get_running_loop().call_later(pause, self._retry)
            self._pause = min(2 * self._pause, RETRY_SECONDS[1])

    def _retry(self) -> None:
        """Put the backlog before what waits: it is older."""
        if self._retrier is not None:
            self._retrier.cancel()
            self._retrier = None
        self._waiting[:0], self._backlog = self._backlog, []
        if self._waiting:
            self._start()

    def _watch(self) -> None:
        """Let those go on who have waited for long enough, and spool what has."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        overdue = {kind: now - seconds for kind, seconds in self._timeouts.items()}
        # A reservation without a waiting caller is not made.
        self._waiting = [entry for entry in self._waiting if not entry.expire(overdue[type(entry.operation)])]
        for entry in (*self._batch, *self._backlog):
            entry.expire(overdue[type(entry.operation)])
        if self._spooling is None or self._spooling.done():
            facts = self._facts(before=now - SPOOL_SECONDS)
            if facts or not self._spool.is_empty:
                self._spooling = loop.run_in_executor(None, self._spool.keep, facts)
        is_busy = self._waiting or self._batch or self._backlog or not self._spool.is_empty
        self._watcher = loop.call_later(LOOK_SECONDS, self._watch) if is_busy else None


def _release(operation: Reserve) -> _Entry:
    """Undo a reservation whose caller has been refused."""
    return _Entry(Settle(operation.job.id, None, operation.job.submitted_at), None, 0.0)


def _fail(entry: _Entry, problem: Exception) -> None:
    if not isinstance(problem, StoreUnavailable):
        _log.error("the ledger failed", exc_info=problem)
        problem = StoreUnavailable("The ledger does not answer.")
    entry.fail(problem)
