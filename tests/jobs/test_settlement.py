"""What fal reports of a call's use: booked if it can be, ignored and logged if it cannot."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from proxy.catalog import built_in
from proxy.jobs.settlement import MOST_SECONDS, Settlement, UsageReport
from proxy.limits.accounts import Payer
from proxy.limits.learned import LEAST_CALLS
from proxy.limits.leases import Leases
from proxy.limits.quotas import MILLION, Quotas, new_job
from proxy.stores.ledger import Job, SizeClass
from proxy.stores.ledger_metrics import LedgerMetrics
from proxy.stores.memory.counters import MemoryCounters
from proxy.stores.sql import SqlStores
from proxy.telemetry.metrics import Metrics
from proxy.tenants.plans import Plan, Quota
from proxy.tenants.terms import user_terms
from tests.support.clock import MovableClock
from tests.support.databases import SqliteDatabases
from tests.support.limited import COUNTING, NEXT

pytestmark = pytest.mark.anyio

RESERVED = {"requests": MILLION, "tokens": 256 * MILLION, "compute_seconds": 60 * MILLION, "usd": 0}
PLAN = Plan(
    endpoints=frozenset({COUNTING}),
    quotas=tuple(Quota(per="tenant", unit=unit, limit=10**12, window="day") for unit in ("tokens", "compute_seconds")),
)
NO_SECONDS: list[Any] = ["", "nan", "inf", "-1", "1e400", "9" * 5000, "1_0", "²", " 1", "86401", "soon"]
NO_NUMBERS: list[Any] = [True, -1, -0.5, 1e300, 10**30, "7", [7], {"a": 7}]


@dataclass
class Till:
    settlement: Settlement
    quotas: Quotas
    stores: SqlStores
    clock: MovableClock
    metrics: Metrics

    def count_operations(self) -> float:
        """How many operations the ledger did."""
        return self.metrics.registry.get_sample_value("fal_proxy_queue_seconds_count", {"queue": "ledger"}) or 0

    async def reserved(self, endpoint: str = COUNTING) -> Job:
        job = new_job(user_terms(PLAN), Payer("acme", "alice"), "run", endpoint, RESERVED, self.clock.now())
        await self.quotas.reserve(job)
        return job

    async def booked(self, job: Job) -> dict[str, float]:
        """What the ledger says that the job used, and that its accounts say the same."""
        found = await self.stores.ledger.get(job.id)
        assert found is not None and found.state == "settled"
        accounts = await self.stores.ledger.accounts([charge.bucket for charge in job.charges])
        for charge in job.charges:
            assert accounts[charge.bucket].reserved == 0
            assert accounts[charge.bucket].used == found.used[charge.bucket.unit]
        return {unit: amount / MILLION for unit, amount in found.used.items()}


@pytest.fixture
async def till(sqlite_databases: SqliteDatabases) -> AsyncIterator[Till]:
    stores, clock, metrics = SqlStores(sqlite_databases.migrated()), MovableClock(), Metrics()
    quotas = Quotas(stores.ledger, clock, metrics=LedgerMetrics(metrics))
    yield Till(
        Settlement(quotas, Leases(MemoryCounters(), stores.ledger, clock), built_in(), clock),
        quotas,
        stores,
        clock,
        metrics,
    )
    await quotas.close()
    await stores.close()


def ignored_reports(log: pytest.LogCaptureFixture) -> list[str]:
    return [record.log_fields["what"] for record in log.records if record.message == "usage report ignored"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("units", NO_SECONDS)
async def test_impossible_billable_units_are_ignored(till: Till, units: str, caplog: pytest.LogCaptureFixture) -> None:
    job = await till.reserved()
    await till.settlement.charge_call(job, UsageReport(200, units, {}), till.clock.monotonic())
    assert (await till.booked(job))["compute_seconds"] == 60
    assert ignored_reports(caplog) == ["seconds"]
    assert all(len(str(record.log_fields)) < 200 for record in caplog.records if hasattr(record, "log_fields"))


@pytest.mark.parametrize(("units", "seconds"), [("0", 0), ("1.5", 1.5), ("1e-05", 0.00001), ("86400", MOST_SECONDS)])
async def test_billable_units_that_fal_reports_are_booked(
    till: Till, units: str, seconds: float, caplog: pytest.LogCaptureFixture
) -> None:
    job = await till.reserved()
    await till.settlement.record_result(job, 200, units, {})
    assert (await till.booked(job))["compute_seconds"] == seconds
    assert not ignored_reports(caplog)


async def test_reported_use_is_learned_once_and_unreported_use_never(till: Till) -> None:
    size = SizeClass(COUNTING, 0, 9)

    async def ended(units: str | None, tokens: int | None) -> None:
        job = (await till.reserved())._replace(size=size)
        for _ in range(2):
            stats = {} if tokens is None else {"stats": {"num_output_tokens": tokens}}
            await till.settlement.record_result(job, 200, units, stats)

    learned = till.quotas.learned
    for _ in range(LEAST_CALLS):
        await ended(None, None)
        await till.settlement.charge((await till.reserved())._replace(size=size))
        await till.settlement.free((await till.reserved())._replace(size=size))
    for _ in range(LEAST_CALLS - 1):
        await ended("1.5", 7)
    assert learned.needs(size, RESERVED, 0) == RESERVED
    await ended("1.5", 7)
    assert learned.needs(size, RESERVED, 0) == {**RESERVED, "compute_seconds": 1_500_000, "tokens": 7_000_000}


async def test_reports_at_the_same_moment_are_booked_once(till: Till) -> None:
    """The stream of a job and its result say together that it is over: the first report is booked, and no other."""
    job = await till.reserved(NEXT)
    by_stream = {"status": "COMPLETED", "metrics": {"inference_time": 2.5}}
    reports = [
        till.settlement.record_status(job, by_stream),
        till.settlement.record_result(job, 200, "7", {}),
        till.settlement.charge(job, seconds=9),
    ]
    await asyncio.gather(*reports)
    assert (await till.booked(job))["compute_seconds"] == 2.5
    assert till.count_operations() == 2


async def test_a_report_that_is_given_up_is_booked_and_holds_up_no_other(till: Till) -> None:
    job = await till.reserved()
    given_up, other = (asyncio.create_task(till.settlement.charge(job, seconds=seconds)) for seconds in (2, 9))
    await asyncio.sleep(0)
    given_up.cancel()
    await other
    assert given_up.cancelled() and (await till.booked(job))["compute_seconds"] == 2


async def test_without_units_the_duration_of_a_run_is_booked(till: Till) -> None:
    job = await till.reserved()
    started = till.clock.monotonic()
    till.clock.advance(7)
    await till.settlement.charge_call(job, UsageReport(200, None, {}), started)
    assert (await till.booked(job))["compute_seconds"] == 7


@pytest.mark.parametrize("step", [-3600, 3600])
async def test_a_clock_that_is_set_makes_no_run_longer_or_shorter(till: Till, step: float) -> None:
    """As when a machine wakes up, or its clock is corrected while a call is at fal."""
    job = await till.reserved()
    started = till.clock.monotonic()
    till.clock.advance(7)
    till.clock.set_by(step)
    await till.settlement.charge_call(job, UsageReport(200, None, {}), started)
    assert (await till.booked(job))["compute_seconds"] == 7


@pytest.mark.parametrize("step", [-3600, 3600])
async def test_a_clock_that_is_set_makes_no_stream_longer_or_shorter(till: Till, step: float) -> None:
    job = await till.reserved()
    async with till.settlement.charging_stream(job) as reports:
        till.clock.advance(7)
        till.clock.set_by(step)
        reports.append(UsageReport(200, None, {}))
    assert (await till.booked(job))["compute_seconds"] == 7


async def test_a_clock_that_is_set_back_puts_no_renewal_of_a_lease_off(till: Till) -> None:
    """Redis ends leases by a clock of its own."""
    job = await till.reserved()
    await till.settlement.renew_lease(job)
    assert till.settlement.is_lease_fresh(job)
    till.clock.advance(-3600)
    assert not till.settlement.is_lease_fresh(job)
    await till.settlement.renew_lease(job)
    assert till.settlement.is_lease_fresh(job)


@pytest.mark.parametrize("seconds", [*NO_NUMBERS, MOST_SECONDS + 1])
async def test_an_impossible_inference_time_is_ignored(
    till: Till, seconds: object, caplog: pytest.LogCaptureFixture
) -> None:
    job = await till.reserved(NEXT)
    await till.settlement.record_status(job, {"status": "COMPLETED", "metrics": {"inference_time": seconds}})
    assert (await till.booked(job))["compute_seconds"] == 60
    assert ignored_reports(caplog) == ["seconds"]


@pytest.mark.parametrize("seconds", [0, 2, 2.5, MOST_SECONDS])
async def test_an_inference_time_that_fal_reports_is_booked(
    till: Till, seconds: float, caplog: pytest.LogCaptureFixture
) -> None:
    job = await till.reserved(NEXT)
    await till.settlement.record_status(job, {"status": "COMPLETED", "metrics": {"inference_time": seconds}})
    assert (await till.booked(job))["compute_seconds"] == seconds
    assert not ignored_reports(caplog)


@pytest.mark.parametrize("tokens", [*NO_NUMBERS, 1_000_001, 1.5])
async def test_impossible_token_counts_are_ignored(
    till: Till, tokens: object, caplog: pytest.LogCaptureFixture
) -> None:
    job = await till.reserved()
    await till.settlement.record_result(job, 200, "1", {"stats": {"num_output_tokens": tokens}})
    assert (await till.booked(job))["tokens"] == 256
    assert ignored_reports(caplog) == ["tokens"]


@pytest.mark.parametrize("tokens", [0, 7, 7.0, 1_000_000])
async def test_tokens_that_fal_reports_are_booked(till: Till, tokens: float, caplog: pytest.LogCaptureFixture) -> None:
    job = await till.reserved()
    answer = {"stats": {"num_output_tokens": tokens}}
    await till.settlement.charge_call(job, UsageReport(200, "1", answer), till.clock.monotonic())
    assert (await till.booked(job))["tokens"] == tokens
    assert not ignored_reports(caplog)


@pytest.fixture(autouse=True)
def _capture_logs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
