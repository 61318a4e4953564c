"""A tenant that uses far more than usual, seen in the sums of what a real ledger has settled."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from proxy.alerts.spend_watch import FACTOR, LEAST_HOURS, WEEK_HOURS, SpendWatch
from proxy.alerts.watch import AlertWatch
from proxy.jobs.retention import Cleaner
from proxy.stores.alerts import Alert
from proxy.stores.ledger import Bucket, Charge, Job, Reserve, Settle
from proxy.stores.sql import SqlStores, schema
from proxy.tenants.directory import Directory
from proxy.tenants.plans import Plan, PlanFile, Tenant
from tests.stores.conftest import OpenStores
from tests.stores.expired import count
from tests.stores.records import job
from tests.support.audit_log import AUTHOR
from tests.support.clock import MovableClock
from tests.support.query_plans import query_plans

pytestmark = pytest.mark.anyio
HOUR, MICRO = 3600, 10**6


class Spending:
    """A ledger, and who looks at what it counts."""

    def __init__(self, stores: SqlStores) -> None:
        self.stores = stores
        self.clock = MovableClock()
        # Half past an hour.
        self.clock.set("2099-01-10T12:30:00Z")
        self.now = int(self.clock.now() // HOUR)
        self.directory = Directory(stores.directory, self.clock)
        self.watch = SpendWatch(stores.spend, self.directory, self.clock)

    async def name_tenants(self, *names: str) -> None:
        plan = Plan(endpoints=frozenset({"fal-ai/llava-next"}))
        tenants = tuple(Tenant(id=name, plan="free") for name in names)
        await self.directory.apply(PlanFile(plans={"free": plan}, tenants=tenants), by=AUTHOR)

    async def use(self, hour: int, usd: float = 0.0, tenant: str = "acme", calls: int = 1) -> None:
        """Make calls in an hour, counted from the current one, that use so much together."""
        at = self.clock.now() + hour * HOUR
        jobs = [self._job(tenant, at) for _ in range(calls)]
        await self.stores.ledger.commit([Reserve(one) for one in jobs])
        used = {"usd": round(usd * MICRO / calls), "requests": MICRO}
        await self.stores.ledger.commit([Settle(one.id, used, at) for one in jobs])

    def _job(self, tenant: str, at: float) -> Job:
        bucket = Bucket(tenant, "", "usd", "day", int(at // 86_400) * 86_400)
        return job(Charge(bucket, 1, 10**12), tenant=tenant, submitted_at=at, checked_at=at, expires_at=at + 60)

    async def use_usually(self, usd: float, tenant: str = "acme", hours: int = LEAST_HOURS) -> None:
        """Use so much in some hours of the days before; in half of them a little more, and in one a lot."""
        for number in range(hours):
            await self.use(-2 - 5 * number, usd * (20 if number == 0 else 1), tenant)

    async def look(self) -> Sequence[Alert]:
        while await self.stores.usage_rollup.count(100):
            pass
        await self.watch.run_once()
        return self.watch.take()


@pytest.fixture
async def spending(stores: SqlStores) -> Spending:
    found = Spending(stores)
    await found.name_tenants("acme", "globex")
    return found


async def test_an_hour_far_above_the_median_is_an_alert(spending: Spending) -> None:
    await spending.use_usually(0.5)
    await spending.use_usually(0.5, "globex")
    await spending.use(0, FACTOR * 0.5)
    assert await spending.look() == [], "it is not above"
    await spending.use(0, 0.01)
    (alert,) = await spending.look()
    assert (alert.kind, alert.tenant, alert.subject) == ("spend.rate", "acme", "")
    assert alert.details == {"unit": "usd", "hour": "2099-01-10T12:00:00+00:00", "amount": 2.01, "usual": 0.5}


async def test_several_processes_raise_one_alert_an_hour(
    spending: Spending, database_url: str, open_stores: OpenStores
) -> None:
    await spending.use_usually(0.5)
    await spending.use(0, 9.0)
    assert await spending.look()
    raised: list[str] = []
    watches = []
    for stores in (spending.stores, open_stores(database_url)):
        watch = SpendWatch(stores.spend, spending.directory, spending.clock)
        watches.append((watch, AlertWatch(stores.alerts, [watch.take], raised.append)))
    for _ in range(2):
        await asyncio.gather(*(watch.run_once() for watch, _ in watches))
        await asyncio.gather(*(alerts.run_once() for _, alerts in watches))
        await spending.use(0, 1.0)
        await spending.stores.usage_rollup.count(100)
    assert raised == ["spend.rate"]
    spending.clock.advance(HOUR)
    await spending.use(0, 9.0)
    await spending.stores.usage_rollup.count(100)
    await watches[0][0].run_once()
    await watches[0][1].run_once()
    assert raised == ["spend.rate"] * 2, "the next hour is another alert"


async def test_calls_that_are_counted_late_still_show(spending: Spending) -> None:
    await spending.use_usually(0.5)
    await spending.use(-1, 9.0)
    (alert,) = await spending.look()
    assert alert.details["hour"] == "2099-01-10T11:00:00+00:00"


async def test_a_small_spend_is_no_alert_however_fast_it_grew(spending: Spending) -> None:
    await spending.use_usually(0.01)
    await spending.use(0, 0.99)
    assert await spending.look() == []
    await spending.use(0, 0.02)
    assert [alert.details["unit"] for alert in await spending.look()] == ["usd"]


async def test_requests_count_too(spending: Spending) -> None:
    await spending.use_usually(0.0)
    await spending.use(0, calls=99)
    assert await spending.look() == []
    await spending.use(0)
    (alert,) = await spending.look()
    assert (alert.details["unit"], alert.details["amount"], alert.details["usual"]) == ("requests", 100.0, 1.0)


async def test_without_enough_hours_there_is_nothing_usual(spending: Spending) -> None:
    await spending.use_usually(0.5, hours=LEAST_HOURS - 1)
    await spending.use(-2 - WEEK_HOURS, 0.5)
    await spending.use(0, 900.0)
    assert await spending.look() == [], "one of the hours is more than a week ago"


async def test_a_tenant_that_is_gone_raises_nothing(spending: Spending) -> None:
    await spending.use_usually(0.5, "former")
    await spending.use(0, 9.0, "former")
    assert await spending.look() == []


async def test_sums_are_kept_for_little_more_than_a_week(spending: Spending, database_url: str) -> None:
    await spending.use_usually(0.5)
    await spending.use(-8 * 24 - 1, 0.5)
    await spending.look()
    assert await count(database_url, schema.spend_hours) == LEAST_HOURS + 1
    await Cleaner(spending.stores.retention, spending.clock, 90 * 86_400.0, 90 * 86_400.0).run_once()
    assert await count(database_url, schema.spend_hours) == LEAST_HOURS


async def test_a_look_reads_no_more_than_the_hours_that_it_needs(spending: Spending) -> None:
    for number in range(60):
        await spending.use(-2 - number, 0.5, f"t-{number % 3}")
    await spending.use_usually(0.5)
    await spending.use(0, 9.0)
    while await spending.stores.usage_rollup.count(100):
        pass
    with query_plans() as plans:
        await spending.watch.run_once()
    assert len(plans) == 2
    assert [plan for plan in plans if plan.whole_tables] == []
    with query_plans() as plans:
        await spending.watch.run_once()
    assert len(plans) == 1, "what is usual is read once an hour"
