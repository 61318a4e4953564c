"""Statements on both databases: exact, final once nothing runs, and the same after jobs are removed."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest

from proxy.limits.statements import GRACE_SECONDS, Line, parse_month, read_statement
from proxy.stores.ledger import Accept, Reserve, Settle
from proxy.stores.sql import SqlStores
from tests.stores.expired import expiry
from tests.stores.records import job
from tests.stores.test_retention import DAY, Population, removed

pytestmark = pytest.mark.anyio

PERIOD = parse_month("1970-01", 0.0)
OVER = PERIOD.until + GRACE_SECONDS


async def lines(stores: SqlStores, tenant: str = "acme") -> Mapping[str, Line]:
    return (await read_statement(stores.ledger, stores.statements, tenant, PERIOD, OVER)).lines


async def is_final(stores: SqlStores, now: float = OVER) -> bool:
    return (await read_statement(stores.ledger, stores.statements, "acme", PERIOD, now)).is_final


async def test_a_statement_is_the_same_after_jobs_are_counted_and_removed(stores: SqlStores) -> None:
    await Population(random.Random(3), 120).write(stores)
    before = await lines(stores), await lines(stores, "globex")
    assert all(before) and before[0] != before[1]
    assert await stores.usage_rollup.count(30) == 30
    assert (await lines(stores), await lines(stores, "globex")) == before
    assert await removed(stores, "jobs", expiry(jobs=20.0 * DAY), most=200)
    assert (await lines(stores), await lines(stores, "globex")) == before


async def test_only_calls_of_the_month_are_in_it(stores: SqlStores) -> None:
    moments = (-1.0, 0.0, PERIOD.until - 1, PERIOD.until)
    made = [job(submitted_at=at) for at in moments]
    await stores.ledger.commit([Reserve(one) for one in made])
    # Settled in the next month: a call belongs to the month in which it was made.
    await stores.ledger.commit([Settle(one.id, {"usd": 10**6 + 1}, PERIOD.until + 60) for one in made])
    assert await lines(stores) == {"fal-ai/llava-next": Line(2, {"usd": 2_000_002})}
    await stores.usage_rollup.count(10)
    assert await lines(stores) == {"fal-ai/llava-next": Line(2, {"usd": 2_000_002})}


async def test_a_month_is_final_once_it_is_over(stores: SqlStores) -> None:
    for now, expected in ((PERIOD.until - 1, False), (PERIOD.until, False), (OVER - 1, False), (OVER, True)):
        assert await is_final(stores, now) is expected, now


@pytest.mark.parametrize("used", [{"usd": 5}, None], ids=["settled", "released"])
async def test_a_month_is_not_final_while_a_call_of_it_runs(stores: SqlStores, used: dict[str, int] | None) -> None:
    late, others = job(submitted_at=PERIOD.until - 1), (job(submitted_at=PERIOD.until), job(tenant="globex"))
    await stores.ledger.commit([Reserve(one) for one in (late, *others)])
    assert not await is_final(stores)
    await stores.ledger.commit([Accept(late.id, "fals", OVER + DAY)])
    assert not await is_final(stores)
    await stores.ledger.commit([Settle(late.id, used, OVER)])
    assert await is_final(stores)
