"""Thresholds of quotas, learned from a real ledger, and alerts that are raised once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from proxy.alerts.breakers import BreakerWatch
from proxy.alerts.quota_watch import QuotaWatch
from proxy.alerts.watch import ADDED_AT_ONCE, AlertWatch
from proxy.errors import StoreUnavailable
from proxy.limits.accounts import ALL_GUESTS
from proxy.numbers import MOST
from proxy.stores.alerts import Alert
from proxy.stores.ledger import ADDRESS_PREFIX, SESSION_PREFIX, Accept, Bucket, Charge, Reserve, Settle
from proxy.stores.sql import SqlStores
from proxy.tenants.directory import Snapshot
from proxy.tenants.plans import Plan, Tenant
from proxy.upstream.guard import Guard
from proxy.upstream.refusals import Reason
from tests.stores.conftest import OpenStores
from tests.stores.records import REQUESTS, job
from tests.support.clock import MovableClock

pytestmark = pytest.mark.anyio
GUEST = "guest-0123456789abcdef"
SNAPSHOT = Snapshot(
    plans={
        "watched": Plan(endpoints=frozenset({"fal-ai/llava-next"}), alerts=(50, 80, 100)),
        "plain": Plan(endpoints=frozenset({"fal-ai/llava-next"})),
    },
    tenants={"acme": Tenant(id="acme", plan="watched"), "globex": Tenant(id="globex", plan="plain")},
)


class Watched:
    """A ledger, and who looks at what it commits."""

    def __init__(self, stores: SqlStores) -> None:
        self.stores = stores
        self.quotas = QuotaWatch(MovableClock())
        self.quotas.learn(SNAPSHOT)
        stores.ledger.listen(self.quotas.note)

    async def use(
        self, amount: int, bucket: Bucket = REQUESTS, limit: int = 10, reserves: int = 0, **more: Any
    ) -> None:
        """Make a call that uses so much of an account, and reserves more."""
        one = job(Charge(bucket, reserves or amount, limit, **more), tenant=bucket.tenant)
        await self.stores.ledger.commit([Reserve(one)])
        await self.stores.ledger.commit([Settle(one.id, {bucket.unit: amount}, 1010.0)])

    def percents(self) -> list[int]:
        return [alert.details["percent"] for alert in self.quotas.take()]


@pytest.fixture
def watched(stores: SqlStores) -> Watched:
    return Watched(stores)


async def test_a_job_that_fal_accepts_in_between_changes_no_account(watched: Watched) -> None:
    ledger, one = watched.stores.ledger, job(Charge(REQUESTS, 5, 10))
    await ledger.commit([Reserve(one)])
    await ledger.commit([Accept(one.id, "fal-1", one.expires_at)])
    assert watched.percents() == []
    await ledger.commit([Settle(one.id, {"requests": 5}, 1010.0)])
    assert watched.percents() == [50]


async def test_a_watch_that_fails_is_no_trouble_of_the_calls(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("a fault of the watch")

    watched.stores.ledger.listen(fail)
    await watched.use(5)
    assert watched.percents() == [50]
    assert "a listener of the ledger failed" in caplog.text


async def test_a_threshold_is_reached_by_what_is_booked(watched: Watched) -> None:
    await watched.use(4, reserves=10)
    assert watched.percents() == []
    await watched.use(1)
    assert watched.percents() == [50] and watched.percents() == []
    await watched.use(4)
    assert watched.percents() == [50, 80]
    await watched.use(1)
    (alert, *_, last) = watched.quotas.take()
    assert (alert.kind, alert.tenant, alert.subject) == ("quota.reached", "acme", "")
    assert last.details == {
        "per": "tenant",
        "unit": "requests",
        "window": "day",
        "percent": 100,
        "limit": 10 / 10**6,
        "resets_at": "1970-01-03T00:00:00+00:00",
    }


async def test_a_quota_is_used_up_when_a_call_is_refused_because_of_it(watched: Watched) -> None:
    await watched.use(7)
    assert watched.percents() == [50]
    await watched.stores.ledger.commit([Reserve(job(Charge(REQUESTS, 4, 10)))])
    assert watched.percents() == [50, 80, 100]


async def test_a_quota_that_only_warns_has_thresholds_too(watched: Watched) -> None:
    await watched.use(5, limit=MOST, warns_at=10)
    assert watched.percents() == [50]
    await watched.use(500, limit=MOST, warns_at=None, bucket=REQUESTS._replace(unit="tokens"))
    assert watched.percents() == [], "there is no limit"


@pytest.mark.parametrize(
    ("subject", "per"),
    [
        ("alice", "subject"),
        (ALL_GUESTS, "guests"),
        (f"{ADDRESS_PREFIX}0123", None),
        (f"{SESSION_PREFIX}0123", None),
        (GUEST, None),
    ],
)
async def test_strangers_raise_no_alerts_of_their_own(watched: Watched, subject: str, per: str | None) -> None:
    await watched.use(5, bucket=REQUESTS._replace(subject=subject))
    found = [(alert.details["per"], alert.subject) for alert in watched.quotas.take()]
    assert found == ([] if per is None else [(per, "alice" if per == "subject" else "")])


async def test_a_tenant_without_thresholds_has_none(watched: Watched) -> None:
    await watched.use(10, bucket=REQUESTS._replace(tenant="globex"))
    await watched.stores.ledger.commit([Reserve(job(Charge(REQUESTS._replace(tenant="globex"), 4, 10)))])
    assert watched.percents() == []


async def test_several_processes_raise_each_alert_once(
    stores: SqlStores, database_url: str, open_stores: OpenStores, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "proxy.alerts.watch")
    alerts = [Alert(f"a-{number:04}", "quota.reached", "acme", float(number)) for number in range(ADDED_AT_ONCE + 20)]
    counted: list[str] = []
    processes = [
        AlertWatch(one.alerts, [lambda: alerts], counted.append) for one in (stores, *(open_stores(database_url),) * 3)
    ]
    for _ in range(2):
        await asyncio.gather(*(process.run_once() for process in processes))
    assert counted == ["quota.reached"] * len(alerts)
    logged = [record.__dict__["log_fields"]["id"] for record in caplog.records if record.message == "alert"]
    assert sorted(logged) == [alert.id for alert in alerts]
    assert list(await stores.alerts.list_newest(1000)) == alerts[::-1]


async def test_alerts_wait_for_the_database(tmp_path: Path, open_stores: OpenStores) -> None:
    folder = tmp_path / "later"
    stores, seen = open_stores(f"sqlite:///{folder}/proxy.db"), [[Alert("one", "quota.reached", "acme", 1.0)], [], []]
    counted: list[str] = []
    process = AlertWatch(stores.alerts, [lambda: seen.pop(0)], counted.append)
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await process.run_once()
    folder.mkdir()
    await stores.prepare()
    await process.run_once()
    assert counted == ["quota.reached"] and not seen


async def test_an_open_breaker_is_one_alert_an_hour() -> None:
    clock = MovableClock()
    clock.set("2099-01-10T12:34:30Z")
    guard = Guard(clock, probe_seconds=1)
    watch = BreakerWatch(guard, clock)
    assert watch.take() == []
    guard.note(Reason.ACCOUNT_LOCKED)
    first = _ids(watch.take())
    clock.advance(60)
    assert _ids(watch.take()) == first
    clock.advance(3600)
    (later,) = watch.take()
    assert later.kind == "upstream.account_locked" and later.id not in first
    guard.forget_account()
    assert watch.take() == []


def _ids(alerts: Sequence[Alert]) -> list[str]:
    return [alert.id for alert in alerts]
