"""What calls usually use, on every kind of database."""

from __future__ import annotations

import anyio
import pytest

from proxy.limits.learned import LEAST_CALLS, MOST_CLASSES, Learned
from proxy.limits.learned_keeper import FORGOTTEN_SECONDS, LearnedKeeper
from proxy.stores.learned import LearnedUse
from proxy.stores.ledger import SizeClass
from proxy.stores.sql import SqlStores
from tests.support.clock import MovableClock

pytestmark = pytest.mark.anyio
SMALL, LARGE = SizeClass("fal-ai/one", 0, 7), SizeClass("fal-ai/one", 12, 7)
AMOUNTS = {"tokens": 64_000_000, "compute_seconds": 60_000_000, "usd": 0}


def seconds(learned: Learned, size: SizeClass) -> int:
    return learned.needs(size, AMOUNTS, 0)["compute_seconds"]


async def test_what_one_process_learned_the_next_one_knows(stores: SqlStores) -> None:
    clock, first = MovableClock(), Learned()
    keeper = LearnedKeeper(first, stores.learned, clock)
    for _ in range(LEAST_CALLS):
        first.add(SMALL, {"compute_seconds": 5, "tokens": 9})
    await keeper.run_once()
    assert not first.list_changed()
    next_one = Learned()
    await LearnedKeeper(next_one, stores.learned, clock).run_once()
    assert seconds(next_one, SMALL) == 5 and next_one.needs(SMALL, AMOUNTS, 0)["tokens"] == 9
    assert seconds(next_one, LARGE) == AMOUNTS["compute_seconds"]


async def test_a_row_is_replaced_and_keeps_what_the_newer_one_does_not_know(stores: SqlStores) -> None:
    await stores.learned.save([LearnedUse(LARGE, None, 7), LearnedUse(SMALL, 3, None)], 100.0, 0.0)
    await stores.learned.save([LearnedUse(SMALL, None, 8), LearnedUse(LARGE, 1, 2)], 200.0, 0.0)
    assert sorted(await stores.learned.load(0.0, 10)) == [LearnedUse(SMALL, 3, 8), LearnedUse(LARGE, 1, 2)]


async def test_the_newest_rows_are_read_and_old_ones_removed(stores: SqlStores) -> None:
    clock = MovableClock()
    old = clock.now() - FORGOTTEN_SECONDS - 1
    await stores.learned.save([LearnedUse(LARGE, 1, 1)], old, 0.0)
    await stores.learned.save([LearnedUse(SMALL, 2, 2)], clock.now(), 0.0)
    assert await stores.learned.load(0.0, 1) == [LearnedUse(SMALL, 2, 2)]
    learned = Learned()
    keeper = LearnedKeeper(learned, stores.learned, clock)
    await keeper.run_once()
    assert (seconds(learned, SMALL), seconds(learned, LARGE)) == (2, AMOUNTS["compute_seconds"])
    for _ in range(LEAST_CALLS):
        learned.add(SMALL, {"compute_seconds": 4})
    await keeper.run_once()
    assert await stores.learned.load(0.0, MOST_CLASSES) == [LearnedUse(SMALL, 2, 4)]


async def test_processes_may_write_at_once(stores: SqlStores) -> None:
    sizes = [SizeClass(f"fal-ai/{number}", 0, 0) for number in range(50)]
    async with anyio.create_task_group() as group:
        for number in range(6):
            uses = [LearnedUse(size, number, number) for size in (sizes if number % 2 else sizes[::-1])]
            group.start_soon(stores.learned.save, uses, 100.0, 0.0)
    found = await stores.learned.load(0.0, MOST_CLASSES)
    assert {use.size for use in found} == set(sizes) and all(use.tokens == use.compute_seconds for use in found)
