"""`/readyz` costs nothing, however often it is asked: the stores are asked once a second, and not waited for long."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from proxy.errors import StoreUnavailable
from proxy.routes.readiness import ANSWER_SECONDS, NotReady, Readiness
from proxy.stores.memory import MemoryCounters
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
        body = client.get("/readyz").json()
        assert (body["error_type"], body["stores"]) == ("store_unavailable", ["counters"])
        counters.is_down = False
        own.clock.advance(1)
        assert statuses() == [200] * 24 and counters.pings == 3


async def test_a_clock_that_was_set_back_keeps_no_old_answer() -> None:
    counters, clock = WatchedCounters(), MovableClock()
    clock.advance(3600)
    readiness = Readiness({"counters": counters.ping}, clock)
    await readiness.require()
    counters.is_down = True
    clock.advance(-3600)
    with pytest.raises(StoreUnavailable):
        await readiness.require()
    assert counters.pings == 2


async def test_a_check_goes_on_when_one_of_its_callers_gives_up() -> None:
    counters = WatchedCounters()
    readiness = Readiness({"counters": counters.ping}, MovableClock())
    impatient, patient = asyncio.create_task(readiness.require()), asyncio.create_task(readiness.require())
    await asyncio.sleep(0)
    impatient.cancel()
    await patient
    assert impatient.cancelled() or impatient.cancelling()
    assert counters.pings == 1


class SilentStore:
    """A store that answers only when a test lets it."""

    def __init__(self) -> None:
        self.checks = 0
        self.answers = asyncio.Event()

    async def check(self) -> None:
        self.checks += 1
        await self.answers.wait()


async def test_all_stores_that_fail_are_named_and_a_silent_one_is_not_waited_for() -> None:
    silent, counters, clock = SilentStore(), WatchedCounters(), MovableClock()
    counters.is_down = True
    readiness, now = Readiness({"database": silent.check, "counters": counters.ping}, clock), time.monotonic
    for within in (ANSWER_SECONDS + 60, ANSWER_SECONDS):
        began = now()
        with pytest.raises(NotReady) as caught:
            await readiness.require()
        assert caught.value.stores == ["database", "counters"] and now() - began < within
        assert caught.value.message == (
            "The proxy's database did not answer within 2 seconds. The counters do not answer."
        )
        clock.advance(1)
    # It is asked again when it has answered, and not before.
    assert silent.checks == 1
    silent.answers.set()
    counters.is_down = False
    await asyncio.sleep(0)
    await readiness.require()
    assert silent.checks == 2
