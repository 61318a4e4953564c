"""The quotas groups what arrives: calls share transactions, and each still gets an outcome of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from proxy.errors import QuotaExceeded
from proxy.limits.quotas import Quotas
from proxy.stores.batching import MOST_AT_ONCE
from proxy.stores.errors import DataRefused
from proxy.stores.ledger import Charge, Operation, Outcome
from proxy.stores.sql import SqlStores
from proxy.stores.sql.ledger import SqlLedger
from tests.stores.records import REQUESTS, job
from tests.support.clock import MovableClock
from tests.support.databases import Databases, SqliteDatabases

pytestmark = pytest.mark.anyio


class CountedLedger(SqlLedger):
    """The real one, with the sizes of its transactions."""

    sizes: list[int]

    async def commit(self, operations: Sequence[Operation]) -> list[Outcome]:
        self.sizes.append(len(operations))
        return await super().commit(operations)


@pytest.fixture
async def ledger(sqlite_databases: SqliteDatabases) -> AsyncIterator[CountedLedger]:
    stores = SqlStores(sqlite_databases.migrated())
    ledger = CountedLedger(stores._database)
    ledger.sizes = []
    yield ledger
    await stores.close()


async def test_calls_that_arrive_one_turn_after_another_share_a_transaction(ledger: CountedLedger) -> None:
    quotas = Quotas(ledger, MovableClock())

    async def arriving(turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        await quotas.reserve(job())

    await asyncio.gather(*(arriving(turns) for turns in range(5)))
    assert ledger.sizes == [5]


async def test_a_transaction_does_not_grow_without_end(ledger: CountedLedger) -> None:
    quotas = Quotas(ledger, MovableClock())
    await asyncio.gather(*(quotas.reserve(job()) for _ in range(2 * MOST_AT_ONCE + 1)))
    assert max(ledger.sizes) == MOST_AT_ONCE and sum(ledger.sizes) == 2 * MOST_AT_ONCE + 1


async def accept(quotas: Quotas, request_id: str) -> None:
    mine = job(Charge(REQUESTS, 1, 100))
    await quotas.reserve(mine)
    await quotas.accept(mine, request_id)


async def test_a_call_with_data_that_the_database_rejects_fails_alone(databases: Databases) -> None:
    """Such as an id that fal gives out twice."""
    stores = SqlStores(databases.migrated())
    quotas = Quotas(stores.ledger, MovableClock())
    ids = ["a", "b", "c", "a", "d"]
    outcomes = await asyncio.gather(*(accept(quotas, id_) for id_ in ids), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [type(None)] * 3 + [DataRefused, type(None)]
    too_much = job(Charge(REQUESTS, 2**63, 2**64))
    outcomes = await asyncio.gather(quotas.reserve(too_much), accept(quotas, "e"), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [DataRefused, type(None)]
    assert (await stores.ledger.accounts([REQUESTS]))[REQUESTS].reserved == 6
    await stores.close()


async def test_a_refused_call_refuses_no_other_in_its_transaction(ledger: CountedLedger) -> None:
    quotas = Quotas(ledger, MovableClock())
    reservations = (quotas.reserve(job(Charge(REQUESTS, 1, 3))) for _ in range(5))
    outcomes = await asyncio.gather(*reservations, return_exceptions=True)
    assert ledger.sizes == [5]
    assert [type(outcome) for outcome in outcomes] == [type(None)] * 3 + [QuotaExceeded] * 2
