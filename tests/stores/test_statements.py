"""Statements on both databases: exact, final once nothing runs, and the same after jobs are removed."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest

from proxy.limits.statements import GRACE_SECONDS, Line, Period, parse_month, read_statement
from proxy.stores.ledger import Accept, Bucket, Charge, Granted, Reserve, Settle
from proxy.stores.removal import FormerTenant
from proxy.stores.sql import SqlStores
from tests.stores.expired import expiry
from tests.stores.records import ACME, PLANS, grant, job
from tests.stores.test_retention import DAY, Population, removed
from tests.support.audit_log import AUTHOR

pytestmark = pytest.mark.anyio

PERIOD = parse_month("1970-01", 0.0)
OVER = PERIOD.until + GRACE_SECONDS


async def lines(stores: SqlStores, tenant: str = "acme", period: Period = PERIOD) -> Mapping[str, Line]:
    return (await read_statement(stores.ledger, stores.statements, tenant, period, OVER)).lines


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
    month = parse_month("1970-02", 9e9)
    moments = (month.since - 1, month.since, month.until - 1, month.until)
    made = [job(submitted_at=at) for at in moments]
    await stores.ledger.commit([Reserve(one) for one in made])
    # Settled in the next month: a call belongs to the month in which it was made.
    await stores.ledger.commit([Settle(one.id, {"usd": 10**6 + 1}, month.until + 60) for one in made])
    assert await lines(stores, period=month) == {"fal-ai/llava-next": Line(2, {"usd": 2_000_002})}
    await stores.usage_rollup.count(10)
    assert await lines(stores, period=month) == {"fal-ai/llava-next": Line(2, {"usd": 2_000_002})}


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


# Grants


def usd(subject: str = "") -> Charge:
    """What a call of ten dollars takes from a quota of four."""
    return Charge(Bucket("acme", subject, "usd", "month", 0), 10 * 10**6, 4 * 10**6)


async def granted(stores: SqlStores, tenant: str = "acme") -> dict[tuple[str, str], int]:
    return dict((await read_statement(stores.ledger, stores.statements, tenant, PERIOD, OVER)).granted)


async def pay_with_grants(stores: SqlStores) -> None:
    """Calls of which grants of the tenant, and of alice, pay six dollars of ten; both get back what was not used."""
    for subject in ("", "alice"):
        await stores.grants.add(grant(30 * 10**6, subject, "usd"), by=AUTHOR)
    calls = [
        (job(usd(), usd("alice"), submitted_at=1000.0), 7 * 10**6 + 1),
        # The quotas have nothing left.
        (job(usd(), submitted_at=2 * DAY), 5 * 10**6),
        (job(usd(), submitted_at=2 * DAY), None),
        (job(usd(), submitted_at=PERIOD.until), 10**6),
    ]
    for one, used in calls:
        assert await stores.ledger.commit([Reserve(one, has_grants=True)]) == [Granted()]
        await stores.ledger.commit([Settle(one.id, None if used is None else {"usd": used}, one.submitted_at + 60)])


async def test_a_statement_says_what_grants_paid(stores: SqlStores) -> None:
    assert await granted(stores) == {}
    await pay_with_grants(stores)
    expected = {("tenant", "usd"): 3 * 10**6 + 1 + 5 * 10**6, ("subject", "usd"): 3 * 10**6 + 1}
    assert await granted(stores) == expected
    assert await granted(stores, "globex") == {}
    # One job after the other is counted, and each is in it once.
    while await stores.usage_rollup.count(1):
        assert await granted(stores) == expected
    assert await removed(stores, "jobs", expiry(jobs=100.0 * DAY), most=10) == 4
    assert await granted(stores) == expected


async def test_jobs_that_are_removed_before_they_are_counted_are_in_it(stores: SqlStores) -> None:
    await pay_with_grants(stores)
    before = await granted(stores)
    assert before and await removed(stores, "jobs", expiry(jobs=100.0 * DAY), most=10) == 4
    assert await granted(stores) == before


async def test_what_grants_paid_stays_with_the_records_of_a_deleted_tenant(stores: SqlStores) -> None:
    await stores.directory.apply(PLANS, [ACME], by=AUTHOR)
    await pay_with_grants(stores)
    before = await granted(stores)
    await stores.usage_rollup.count(1)
    former = FormerTenant("acme~0123456789abcdef", "acme", 5000.0)
    assert await stores.directory.delete_tenant(former, by=AUTHOR)
    while await stores.removal.clear_some(former):
        pass
    assert await granted(stores) == {}
    assert await granted(stores, former.records) == before
