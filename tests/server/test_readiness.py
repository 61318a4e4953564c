"""`/readyz` costs nothing, however often it is asked: the stores are asked once a second."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from proxy.errors import StoreUnavailable
from proxy.routes.readiness import Readiness
from proxy.stores.counters import MemoryCounters
from tests.support.clock import MovableClock
from tests.support.sandbox import SandboxControl
from tests.support.stack import proxy_in_front_of

pytestmark = pytest.mark.anyio


class WatchedCounters(MemoryCounters):
    """Counters that count how often they are asked whether they answer, and can be down."""

    def __init__(self) -> None:
        super().__init__()
        self.pings = 0
        self.is_down = False

    async def ping(self) -> None:
        self.pings += 1
        await asyncio.sleep(0.05)
        if self.is_down:
            raise StoreUnavailable("The counters do not answer.")


def test_the_stores_are_asked_once_a_second(sandbox: SandboxControl, tmp_path: Path) -> None:
    counters = WatchedCounters()
    with (
        proxy_in_front_of(sandbox, tmp_path, counters=counters) as own,
        own.client("") as client,
        ThreadPoolExecutor(8) as pool,
    ):

        def statuses() -> list[int]:
            return list(pool.map(lambda _: client.get("/readyz").status_code, range(24)))

        assert statuses() == [200] * 24 and counters.pings == 1
        counters.is_down = True
        assert statuses() == [200] * 24 and counters.pings == 1
        own.clock.advance(1)
        assert statuses() == [503] * 24 and counters.pings == 2
        assert client.get("/readyz").json()["error_type"] == "store_unavailable"
        counters.is_down = False
        own.clock.advance(1)
        assert statuses() == [200] * 24 and counters.pings == 3


async def test_a_clock_that_was_set_back_keeps_no_old_answer() -> None:
    counters, clock = WatchedCounters(), MovableClock()
    clock.advance(3600)
    readiness = Readiness(counters.ping, clock)
    await readiness.require()
    counters.is_down = True
    clock.advance(-3600)
    with pytest.raises(StoreUnavailable):
        await readiness.require()
    assert counters.pings == 2


async def test_a_check_goes_on_when_one_of_those_who_wait_gives_up() -> None:
    counters = WatchedCounters()
    readiness = Readiness(counters.ping, MovableClock())
    impatient, patient = asyncio.create_task(readiness.require()), asyncio.create_task(readiness.require())
    await asyncio.sleep(0)
    impatient.cancel()
    await patient
    assert impatient.cancelled() or impatient.cancelling()
    assert counters.pings == 1
