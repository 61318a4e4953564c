"""How far an account can fall below zero, whatever calls reserve, need and use, and in whatever order they end.

A call reserves `amount`, the most that it can use, and needs `needed` to be left. The rule, for every account at every
moment, with E the largest `amount - needed` of the calls that were let in, and X what calls used beyond their amount:

    used + reserved <= limit + E + X

E is the excess of one call, however many there are at once: not of each. With all calls ended, `reserved` is 0, so the
account is below zero by at most E + X. Below or at zero, no call is let in that reserves anything.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.stores.ledger import Account, Bucket, Charge, Exhausted, Granted, Job, Ledger, Operation, Reserve, Settle
from proxy.stores.sql import SqlStores
from tests.stores.records import grant, job
from tests.support.audit_log import AUTHOR
from tests.support.databases import SqliteDatabases

PROCESSES = 3
_tenants = itertools.count()


class Call(NamedTuple):
    """What a call reserves, what it needs, and what it uses in the end: None if it failed."""

    amount: int
    needed: int
    used: int | None


class End(NamedTuple):
    """The end of one of the calls that run, counted from the oldest."""

    number: int


CALLS = st.integers(1, 60).flatmap(
    lambda most: st.builds(Call, st.just(most), st.integers(1, most), st.none() | st.integers(0, most + 20))
)
#: Each step is one transaction of one process.
STEPS = st.lists(CALLS | st.builds(End, st.integers(0, 9)), min_size=1, max_size=5)
#: In each round, all processes commit at once.
ROUNDS = st.lists(st.lists(STEPS, min_size=1, max_size=PROCESSES), min_size=1, max_size=8)


class History:
    """One account, and what happened on it."""

    def __init__(self, limit: int) -> None:
        self.bucket = Bucket(f"tenant-{next(_tenants)}", "", "tokens", "day", 0)
        self.limit = limit
        self.running: list[tuple[Job, Call]] = []
        self.excess = 0
        self.over = 0

    def operations(self, steps: Sequence[Call | End]) -> list[tuple[Operation, Call]]:
        made: list[tuple[Operation, Call]] = []
        for step in steps:
            if isinstance(step, Call):
                charge = Charge(self.bucket, step.amount, self.limit, needed=step.needed)
                made.append((Reserve(job(charge, tenant=self.bucket.tenant)), step))
            elif self.running:
                ended, call = self.running.pop(step.number % len(self.running))
                made.append((self.end(ended, call), call))
        return made

    def end(self, ended: Job, call: Call) -> Settle:
        self.over += max(0, (call.used or 0) - call.amount)
        return Settle(ended.id, None if call.used is None else {"tokens": call.used}, 1010.0)

    def note_granted(self, operation: Operation, call: Call) -> None:
        if isinstance(operation, Reserve):
            self.running.append((operation.job, call))
            self.excess = max(self.excess, call.amount - call.needed)

    async def read(self, ledger: Ledger) -> Account:
        return (await ledger.accounts([self.bucket])).get(self.bucket, Account())


@asynccontextmanager
async def processes(url: str) -> AsyncIterator[list[SqlStores]]:
    async with AsyncExitStack() as stack:
        opened = [SqlStores(url) for _ in range(PROCESSES)]
        for stores in opened:
            stack.push_async_callback(stores.close)
        yield opened


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return SqliteDatabases(tmp_path_factory.mktemp("below-zero")).migrated()


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(limit=st.integers(1, 150), rounds=ROUNDS)
def test_calls_at_once_go_below_zero_by_the_excess_of_one(
    url: str, limit: int, rounds: list[list[list[Call | End]]]
) -> None:
    async def live() -> None:
        history = History(limit)
        async with processes(url) as opened:
            ledgers = [stores.ledger for stores in opened]
            for steps in rounds:
                before = await history.read(ledgers[0])
                batches = [history.operations(one) for one in steps]
                commits = [
                    ledger.commit([operation for operation, _ in batch])
                    for ledger, batch in zip(ledgers, batches, strict=False)
                ]
                for batch, outcomes in zip(batches, await asyncio.gather(*commits), strict=True):
                    for (operation, call), outcome in zip(batch, outcomes, strict=True):
                        if isinstance(outcome, Granted):
                            history.note_granted(operation, call)
                            # What is used is never less later: an account at zero lets in nothing for good.
                            assert not (isinstance(operation, Reserve) and before.used >= limit)
                after = await history.read(ledgers[1])
                assert after.used + after.reserved <= limit + history.excess + history.over
            await ledgers[2].commit([history.end(*one) for one in history.running])
            last = await history.read(ledgers[0])
            assert last.reserved == 0 and last.used <= limit + history.excess + history.over

    asyncio.run(live())


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(limit=st.integers(1, 150), steps=st.lists(CALLS | st.builds(End, st.integers(0, 9)), min_size=1, max_size=25))
def test_a_call_is_let_in_exactly_if_what_it_needs_is_left(url: str, limit: int, steps: list[Call | End]) -> None:
    """One after the other, E is the excess of the call that was let in last, and of no earlier one."""

    async def live() -> None:
        history, latest = History(limit), 0
        async with processes(url) as opened:
            ledgers = [stores.ledger for stores in opened]
            for number, step in enumerate(steps):
                ledger, before = ledgers[number % PROCESSES], await history.read(ledgers[0])
                for operation, call in history.operations([step]):
                    (outcome,) = await ledger.commit([operation])
                    if isinstance(operation, Reserve):
                        left = limit - before.used - before.reserved
                        assert isinstance(outcome, Granted if call.needed <= left else Exhausted)
                    if isinstance(outcome, Granted) and isinstance(operation, Reserve):
                        history.note_granted(operation, call)
                        latest = call.amount - call.needed
                after = await history.read(ledger)
                assert after.used + after.reserved <= limit + latest + history.over

    asyncio.run(live())


@settings(max_examples=60, deadline=None)
@given(
    limit=st.integers(1, 100),
    credits=st.lists(st.integers(1, 80), min_size=1, max_size=3),
    steps=st.lists(CALLS | st.builds(End, st.integers(0, 9)), min_size=1, max_size=25),
)
@pytest.mark.slow
def test_grants_never_pay_more_than_they_have_and_the_rule_holds(
    url: str, limit: int, credits: list[int], steps: list[Call | End]
) -> None:
    async def live() -> None:
        history = History(limit)
        async with processes(url) as opened:
            ledgers, tenant = [stores.ledger for stores in opened], history.bucket.tenant
            wanted = [grant(amount, tenant=tenant, unit="tokens") for amount in credits]
            grants = [(await opened[0].grants.add(one, by=AUTHOR)).grant for one in wanted]
            for number, step in enumerate(steps):
                ledger = ledgers[number % PROCESSES]
                for operation, call in history.operations([step]):
                    if isinstance(operation, Reserve):
                        operation = Reserve(operation.job, has_grants=True)
                    (outcome,) = await ledger.commit([operation])
                    if isinstance(outcome, Granted) and isinstance(operation, Reserve):
                        history.note_granted(operation, call)
                after = await history.read(ledger)
                assert after.used + after.reserved <= limit + history.excess + history.over
                accounts = await ledger.accounts([one.bucket for one in grants])
                assert all(sum(accounts.get(one.bucket, Account())) <= one.amount for one in grants)

    asyncio.run(live())
