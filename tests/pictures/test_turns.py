"""Pictures wait in turn: no party waits for all pictures of another, and no more wait than fit."""

from __future__ import annotations

import asyncio

import pytest

from proxy.errors import Overloaded
from proxy.pictures.turns import MOST_WAITING, MOST_WAITING_OF_ONE, RETRY_SECONDS, Turns

pytestmark = pytest.mark.anyio


class Crowd:
    """Parties that take turns, each until it is let go."""

    def __init__(self, most_at_once: int) -> None:
        self.turns = Turns(most_at_once)
        self.order: list[str] = []
        self._go_on = asyncio.Semaphore(0)

    async def work(self, party: str) -> None:
        async with self.turns.take(party):
            self.order.append(party)
            await self._go_on.acquire()

    async def start(self, party: str) -> asyncio.Task[None]:
        task = asyncio.create_task(self.work(party))
        await asyncio.sleep(0)
        return task

    async def end_one(self) -> None:
        self._go_on.release()
        for _ in range(5):
            await asyncio.sleep(0)


async def test_no_more_pictures_are_cleaned_at_once_than_allowed() -> None:
    crowd = Crowd(2)
    tasks = [await crowd.start("acme") for _ in range(3)]
    assert crowd.order == ["acme"] * 2
    await crowd.end_one()
    assert crowd.order == ["acme"] * 3
    for _ in range(2):
        await crowd.end_one()
    assert all(task.done() for task in tasks)


async def test_parties_take_turns() -> None:
    crowd = Crowd(1)
    tasks = [await crowd.start(party) for party in ("acme", "acme", "acme", "acme", "beta", "gamma", "beta")]
    for _ in tasks:
        await crowd.end_one()
    assert crowd.order == ["acme", "acme", "beta", "gamma", "acme", "beta", "acme"]


async def test_more_are_refused_with_a_time_to_try_again() -> None:
    crowd = Crowd(1)
    tasks = [await crowd.start("acme") for _ in range(1 + MOST_WAITING_OF_ONE)]
    with pytest.raises(Overloaded) as refused:
        await crowd.work("acme")
    assert (refused.value.scope, refused.value.retry_after) == ("tenant", RETRY_SECONDS)
    # Another party has room, until there is none.
    more = MOST_WAITING - MOST_WAITING_OF_ONE
    tasks += [await crowd.start(f"party-{at}") for at in range(more)]
    with pytest.raises(Overloaded) as refused:
        await crowd.work("beta")
    assert (refused.value.scope, refused.value.retry_after) == (None, RETRY_SECONDS)
    for _ in tasks:
        await crowd.end_one()
    assert all(task.done() for task in tasks) and len(crowd.order) == len(tasks)


async def test_a_waiting_request_that_leaves_makes_room_for_the_next() -> None:
    crowd = Crowd(1)
    first, waiting = await crowd.start("acme"), [await crowd.start("acme") for _ in range(MOST_WAITING_OF_ONE)]
    waiting[0].cancel()
    await asyncio.gather(waiting[0], return_exceptions=True)
    waiting[0] = await crowd.start("acme")
    # It leaves in the moment in which it gets its turn: the next one gets it.
    first.cancel()
    await asyncio.sleep(0)
    waiting[1].cancel()
    await asyncio.gather(first, waiting[1], return_exceptions=True)
    for _ in waiting:
        await crowd.end_one()
    assert all(task.done() for task in waiting) and len(crowd.order) == MOST_WAITING_OF_ONE
    # All turns are free again.
    await crowd.start("beta")
    assert crowd.order[-1] == "beta"
    await crowd.end_one()
