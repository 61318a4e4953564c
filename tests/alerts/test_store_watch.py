"""A store that fails or is slow for long: real ones that are away, frozen, and back again."""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path

import pytest

from proxy.alerts.store_watch import DEGRADED_SECONDS, StoreWatch
from proxy.alerts.watch import AlertWatch
from proxy.errors import StoreUnavailable
from proxy.stores.deliveries import OPERATOR
from proxy.stores.redis.counters import RedisCounters
from tests.alerts.test_delivery import Fleet, deliver, host, trusted
from tests.stores.conftest import OpenStores
from tests.support.clock import MovableClock
from tests.support.redis import Redis
from tests.support.waiting import wait_until_async
from tests.support.webhooks import WebhookHost

__all__ = ["host", "trusted"]
pytestmark = pytest.mark.anyio


async def test_a_database_that_was_away_is_an_alert_when_it_is_back(
    tmp_path: Path,
    open_stores: OpenStores,
    trusted: tuple[WebhookHost, ssl.SSLContext],
    host: WebhookHost,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "proxy.alerts.store_watch")
    folder = tmp_path / "away"
    stores = open_stores(f"sqlite:///{folder}/proxy.db")
    fleet = Fleet(stores, trusted[1])
    watch = StoreWatch({"database": stores.ping}, fleet.clock)
    alerts = AlertWatch(stores.alerts, [watch.take], lambda _: None, lambda _: [OPERATOR])
    await watch.run_once()
    assert watch.take() == [] and not watch.is_degraded("database")
    fleet.clock.advance(DEGRADED_SECONDS)
    await watch.run_once()
    assert watch.is_degraded("database")
    with pytest.raises(StoreUnavailable):
        await alerts.run_once()
    folder.mkdir()
    await stores.prepare()
    fleet.clock.advance(60)
    await watch.run_once()
    assert not watch.is_degraded("database") and watch.take() == []
    await alerts.run_once()
    _, delivery = await fleet.process(operator=f"{host.url}/operator")
    await deliver(delivery)
    (body,) = host.bodies("operator")
    assert body["type"] == "store.degraded" and body["data"]["store"] == "database"
    assert "has no folder: make the folder" in body["data"]["problem"]
    facts = [(one.message, one.__dict__["log_fields"]) for one in caplog.records if one.message.startswith("store")]
    assert [message for message, _ in facts] == ["store degraded", "store recovered"]
    assert facts[1][1] == {"store": "database", "seconds": 90}


@pytest.mark.tools
async def test_a_frozen_redis_is_degraded_until_it_answers(redis: Redis) -> None:
    clock, counters = MovableClock(), RedisCounters(redis.url)
    watch = StoreWatch({"counters": counters.ping}, clock, slow_seconds=0.5)
    try:
        await watch.run_once()
        redis.pause()
        await watch.run_once()
        clock.advance(DEGRADED_SECONDS - 1)
        await watch.run_once()
        assert watch.take() == []
        clock.advance(1)
        await watch.run_once()
        (alert,) = watch.take()
        assert (alert.kind, alert.tenant, alert.details["store"]) == ("store.degraded", "", "counters")
        assert alert.details["problem"]
        redis.resume()

        async def has_recovered() -> bool:
            await watch.run_once()
            return not watch.is_degraded("counters")

        await wait_until_async(has_recovered)
        assert watch.take() == []
    finally:
        redis.resume()
        await watch.close()
        await counters.close()


class SlowStore:
    """Answers when it is let, and counts who asks it."""

    def __init__(self) -> None:
        self.is_open = asyncio.Event()
        self.asked = self.answered = 0

    async def check(self) -> None:
        self.asked += 1
        await self.is_open.wait()
        self.answered += 1


async def test_a_slow_store_is_asked_once_at_a_time_and_trouble_for_a_moment_is_none() -> None:
    clock, store = MovableClock(), SlowStore()
    watch = StoreWatch({"database": store.check}, clock, slow_seconds=0.2)
    for _ in range(3):
        await watch.run_once()
        clock.advance(DEGRADED_SECONDS / 3)
    assert store.asked == 1 and not watch.is_degraded("database")
    store.is_open.set()
    await watch.run_once()
    assert not watch.is_degraded("database")
    store.is_open.clear()
    await watch.run_once()
    clock.advance(DEGRADED_SECONDS - 1)
    await watch.run_once()
    assert not watch.is_degraded("database"), "the good answer between them counts"
    clock.advance(1)
    await watch.run_once()
    (alert,) = watch.take()
    assert alert.details["problem"] == "no answer within 0.2 seconds"
    assert [one.id for one in watch.take()] == [alert.id]
    clock.advance(3600)
    assert [one.id for one in watch.take()] != [alert.id]
    await watch.close()


async def test_a_store_that_answers_too_late_each_time_is_degraded() -> None:
    clock, store = MovableClock(), SlowStore()
    watch = StoreWatch({"database": store.check}, clock, slow_seconds=0.2)
    for _ in range(4):
        await watch.run_once()
        store.is_open.set()
        await wait_until_async(lambda: store.answered == store.asked)
        store.is_open.clear()
        clock.advance(DEGRADED_SECONDS / 3)
    assert (store.asked, watch.is_degraded("database")) == (4, True)
    await watch.close()


async def test_a_silent_store_hides_nothing_about_another() -> None:
    clock, silent, failing = MovableClock(), SlowStore(), SlowStore()

    async def fail() -> None:
        failing.asked += 1
        raise StoreUnavailable("It is away.")

    watch = StoreWatch({"database": silent.check, "counters": fail}, clock, slow_seconds=0.2)
    await watch.run_once()
    clock.advance(DEGRADED_SECONDS)
    await watch.run_once()
    assert {alert.details["store"]: alert.details["problem"] for alert in watch.take()} == {
        "database": "no answer within 0.2 seconds",
        "counters": "It is away.",
    }
    assert failing.asked == 2
    await watch.close()
