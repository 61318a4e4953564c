"""Work that all its callers share, results that are kept, and streams that are counted."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from proxy.errors import BadUpstream, RateLimited
from proxy.jobs.results import LARGEST_BYTES, ResultCache
from proxy.limits.streams import OpenStreams
from proxy.singleflight import SingleFlight
from proxy.upstream.relay import BufferedResponse

pytestmark = pytest.mark.anyio


class Work:
    """Waits until it is let go; counts."""

    def __init__(self, answer: Any = "answer") -> None:
        self.begun = self.cancelled = 0
        self.go = asyncio.Event()
        self.answer = answer

    async def __call__(self) -> Any:
        self.begun += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            await asyncio.sleep(0)
            raise
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_all_share_one_piece_of_work_and_its_answer() -> None:
    single, work = SingleFlight[Any](), Work()
    asking = [asyncio.create_task(single.run("key", work)) for _ in range(20)]
    await turn()
    work.go.set()
    assert await asyncio.gather(*asking) == ["answer"] * 20 and work.begun == 1
    assert await single.run("key", work) == "answer" and work.begun == 2


async def test_all_share_one_failure() -> None:
    single, work = SingleFlight[Any](), Work(BadUpstream("broken"))
    work.go.set()
    outcomes = await asyncio.gather(*(single.run("key", work) for _ in range(3)), return_exceptions=True)
    assert work.begun == 1 and all(isinstance(one, BadUpstream) for one in outcomes)


async def test_work_goes_on_while_anyone_waits_and_ends_with_the_last_one() -> None:
    single, work = SingleFlight[Any](), Work()
    first, second = (asyncio.create_task(single.run("key", work)) for _ in range(2))
    await turn()
    first.cancel()
    await turn()
    assert not work.cancelled
    second.cancel()
    await turn()
    assert work.cancelled == 1


async def test_a_caller_who_comes_while_work_is_cancelled_starts_it_again() -> None:
    single, given_up, work = SingleFlight[Any](), Work(), Work()
    leaving = asyncio.create_task(single.run("key", given_up))
    await turn()
    leaving.cancel()
    asking = asyncio.create_task(single.run("key", work))
    await turn()
    assert given_up.cancelled == 1
    # The old work has ended by now: the new one is still the only one.
    another = asyncio.create_task(single.run("key", work))
    await turn()
    work.go.set()
    assert await asyncio.gather(asking, another) == ["answer"] * 2 and work.begun == 1


@pytest.mark.parametrize(
    ("status", "size", "is_kept"),
    [(200, 10, True), (422, 10, True), (200, LARGEST_BYTES, True), (200, LARGEST_BYTES + 1, False),
     (400, 10, False), (499, 10, False), (503, 10, False)],
)  # fmt: skip
async def test_results_that_stay_the_same_are_kept(status: int, size: int, is_kept: bool) -> None:
    results, work = ResultCache(), Work(BufferedResponse(status, {}, b"x" * size))
    work.go.set()
    for _ in range(3):
        assert (await results.get("id", work)).status == status
    assert work.begun == (1 if is_kept else 3) and (results.find_cached("id") is not None) == is_kept


@pytest.mark.parametrize("turns", range(8))
async def test_a_caller_who_asks_while_the_first_is_answered_does_not_ask_fal(turns: int) -> None:
    results, work = ResultCache(), Work(BufferedResponse(200, {}, b"x"))
    first = asyncio.create_task(results.get("id", work))
    await turn()
    work.go.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    await asyncio.gather(first, results.get("id", work))
    assert work.begun == 1


async def test_all_results_together_are_bounded() -> None:
    results = ResultCache()
    for number in range(600):
        work = Work(BufferedResponse(200, {}, b"x" * LARGEST_BYTES))
        work.go.set()
        await results.get(str(number), work)
    assert results.find_cached("0") is None and results.find_cached("599") is not None


def caller(session: str = "", key: str = "", tenant: str = "acme", share: float | None = None) -> Any:
    return SimpleNamespace(
        session=SimpleNamespace(id=session) if session else None,
        key_id=key,
        tenant=SimpleNamespace(id=tenant),
        terms=SimpleNamespace(share=share),
    )


async def test_streams_are_counted_by_session_and_together() -> None:
    streams = OpenStreams(3, 2, lambda: 3)
    give_back = streams.take(caller("a"))
    streams.take(caller("a"))
    with pytest.raises(RateLimited, match="This session has 2 streams open") as refused:
        streams.take(caller("a"))
    assert refused.value.scope == "session" and refused.value.retry_after == 1
    streams.take(caller(key="k"))
    with pytest.raises(RateLimited, match="This server has 3 streams open"):
        streams.take(caller("b"))
    give_back()
    streams.take(caller("a"))
    assert streams.total == 3


async def test_streams_of_a_tenant_and_of_its_guests_are_bounded() -> None:
    streams = OpenStreams(20, 20, lambda: 8)
    guest = caller("g", share=0.25)
    ends = [streams.take(guest) for _ in range(2)]
    with pytest.raises(RateLimited, match="All guests of this tenant together have 2 streams open") as refused:
        streams.take(caller("another", share=0.25))
    assert refused.value.scope == "tenant"
    ends += [streams.take(caller("a")) for _ in range(6)]
    for one in (caller("a"), guest):
        with pytest.raises(RateLimited, match="This tenant has 8 streams open") as refused:
            streams.take(one)
        assert refused.value.scope == "tenant"
    streams.take(caller("g", tenant="globex", share=0.25))
    for end in ends:
        end()
    assert streams.total == 1
    assert [streams.take(caller("h", share=1.0)) for _ in range(8)]
