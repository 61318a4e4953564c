"""Streams come back to fal apart from each other, not faster than a rate, and not before fal asks for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import orjson
import pytest

from proxy.jobs.opening import Turns
from proxy.stores.ledger import Job
from tests.jobs.hubs import JOB, hub_before
from tests.support.scripted import ScriptedFal, whole_life
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.anyio
COUNT = 40
AT_ONCE = (0.0,) * 7


class BreakableFal(ScriptedFal):
    """A fal that cuts all streams at a test's word, and refuses new ones while a test says so.

    Attributes:
        opened: when each stream was asked for, as times of the event loop.
        refusal: the headers of the 503 with which streams are refused; None while they are not.
    """

    def __init__(self) -> None:
        super().__init__(whole_life()[:1], self._until_cut)
        self.opened: list[float] = []
        self.refusal: dict[str, str] | None = None
        self._cut = asyncio.Event()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.extensions["target"].partition(b"?")[0].endswith(b"/stream"):
            self.opened.append(asyncio.get_running_loop().time())
            if self.refusal is not None:
                return httpx.Response(503, headers=self.refusal, content=orjson.dumps({"detail": "not now"}))
        return await super().handle_async_request(request)

    async def _until_cut(self, _: int, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        cut = self._cut
        yield await anext(pieces)
        await cut.wait()
        raise httpx.ReadError("cut")

    def cut(self) -> None:
        self._cut.set()
        self._cut = asyncio.Event()


def job(number: int) -> Job:
    return JOB._replace(id=str(number), request_id=f"job-{number}")


JSON = {"content-type": "application/json"}


async def test_streams_that_break_at_once_come_back_one_after_the_other() -> None:
    fal = BreakableFal()
    async with hub_before(fal, backoff=AT_ONCE, turns_per_second=20) as bench:
        await asyncio.gather(*(bench.hub.get_or_watch(job(number)) for number in range(COUNT)))
        cut_at = asyncio.get_running_loop().time()
        fal.cut()
        await wait_until_async(lambda: len(fal.opened) == 2 * COUNT)
        again = fal.opened[COUNT:]
    # A turn may come late on a busy machine, and the next one in time; none comes early.
    assert all(opened_at - cut_at > 0.049 * turn for turn, opened_at in enumerate(again))
    assert fal.opened[COUNT - 1] - fal.opened[0] < again[-1] - again[0], "first streams do not wait"


async def test_the_pause_before_a_stream_comes_back_is_random() -> None:
    fal = BreakableFal()
    async with hub_before(fal, backoff=(0.5,) * 7, turns_per_second=100_000) as bench:
        await asyncio.gather(*(bench.hub.get_or_watch(job(number)) for number in range(COUNT)))
        cut_at = asyncio.get_running_loop().time()
        fal.cut()
        await wait_until_async(lambda: len(fal.opened) == 2 * COUNT)
    pauses = [opened - cut_at for opened in fal.opened[COUNT:]]
    assert min(pauses) < 0.25 and max(pauses) - min(pauses) > 0.2


@pytest.mark.parametrize("kind", [JSON, {"content-type": "text/html"}], ids=["fal", "a machine in front of it"])
async def test_a_retry_after_holds_up_all_streams(kind: dict[str, str]) -> None:
    fal = BreakableFal()
    async with hub_before(fal, backoff=AT_ONCE) as bench:
        await bench.hub.get_or_watch(job(0))
        fal.refusal = {**kind, "retry-after": "1"}
        await bench.hub.get_or_watch(job(1))
        refused_at, fal.refusal = fal.opened[-1], None
        fal.cut()
        await wait_until_async(lambda: len(fal.opened) == 4)
    assert min(fal.opened[2:]) - refused_at >= 1


async def test_while_fal_refuses_first_streams_wait_too_and_polls_do_not() -> None:
    fal = BreakableFal()
    async with hub_before(fal, backoff=(60.0,) * 7, turns_per_second=5) as bench:
        fal.refusal = JSON
        assert await bench.hub.get_or_watch(job(0)) is None
        began = asyncio.get_running_loop().time()
        assert await asyncio.gather(*(bench.hub.get_or_watch(job(number)) for number in range(1, 9))) == [None] * 8
        assert asyncio.get_running_loop().time() - began < 1, "they ask fal itself"
        await wait_until_async(lambda: len(fal.opened) == 9)
        assert all(opened_at - fal.opened[0] > 0.19 * turn for turn, opened_at in enumerate(fal.opened[1:]))
        # With the first one that opens, all is as before.
        fal.refusal = None
        assert await bench.hub.get_or_watch(job(9)) is None
        await wait_until_async(lambda: bench.hub.find_cached(job(9)))
        assert await bench.hub.get_or_watch(job(10)) is not None


async def test_tenants_take_turns_and_cancelled_waits_take_none() -> None:
    turns, order = Turns(100), list[str]()

    async def take(tenant: str) -> None:
        await turns.wait(tenant)
        order.append(tenant)

    gone = [asyncio.create_task(take("gone")) for _ in range(1000)]
    waiting = [asyncio.create_task(take("large")) for _ in range(20)] + [asyncio.create_task(take("small"))]
    await asyncio.sleep(0)
    for task in gone:
        task.cancel()
    await asyncio.wait(waiting, timeout=60)
    assert sorted(order) == ["large"] * 20 + ["small"] and order.index("small") <= 1
