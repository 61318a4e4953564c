"""The garbage collector looks at few objects at a time, whatever a process remembers, and frees all cycles at last."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator

import pytest

from proxy.server.garbage import BUSY, LEAST_SECONDS, MOST_SECONDS, YOUNG_OBJECTS, FrozenGarbage

#: Keeps many objects, and says how many of them the largest collection had to look at.
KEEP_MANY = """
import gc
from proxy.server.tuning import tune_runtime

looked_at = []

def note(phase, info):
    if phase == "start":
        looked_at.append(sum(len(gc.get_objects(one)) for one in range(info["generation"] + 1)))

tune_runtime()
gc.callbacks.append(note)
kept = [[number] for number in range(300_000)]
print(len(looked_at), max(looked_at), len(gc.get_objects()))
"""


class Cycle:
    def __init__(self) -> None:
        self.itself = self


class Time:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_collections_look_at_new_objects_only() -> None:
    ran = subprocess.run([sys.executable, "-c", KEEP_MANY], capture_output=True, text=True, check=True)
    collections, most, left = map(int, ran.stdout.split())
    assert collections > 300_000 // YOUNG_OBJECTS // 2
    assert most <= 2 * YOUNG_OBJECTS
    assert left <= 2 * YOUNG_OBJECTS


def frozen_cycle() -> weakref.ref[Cycle]:
    """A cycle that nothing refers to, among frozen objects."""
    cycle = Cycle()
    found = weakref.ref(cycle)
    gc.freeze()
    return found


@pytest.fixture
def cycle() -> Iterator[weakref.ref[Cycle]]:
    found = frozen_cycle()
    gc.collect()
    assert found() is not None
    yield found
    gc.unfreeze()


def look(garbage: FrozenGarbage, clock: Time, processor: Time, *, seconds: float, share: float) -> bool:
    """Look once, after so many seconds in which the process had work for a share of the time."""
    clock.now += seconds
    processor.now += seconds * share
    return garbage.look()


def test_frozen_cycles_are_collected_in_a_quiet_moment(cycle: weakref.ref[Cycle]) -> None:
    clock, processor = Time(), Time()
    garbage = FrozenGarbage(clock, processor)
    assert not look(garbage, clock, processor, seconds=LEAST_SECONDS - 1, share=0.0)
    assert not look(garbage, clock, processor, seconds=2, share=2 * BUSY)
    assert cycle() is not None
    assert look(garbage, clock, processor, seconds=1, share=BUSY / 2)
    assert cycle() is None
    assert not look(garbage, clock, processor, seconds=1, share=0.0)


def test_frozen_cycles_of_a_process_that_is_always_busy_are_collected_too(cycle: weakref.ref[Cycle]) -> None:
    clock, processor = Time(), Time()
    garbage = FrozenGarbage(clock, processor)
    assert not look(garbage, clock, processor, seconds=MOST_SECONDS - 1, share=1.0)
    assert cycle() is not None
    assert look(garbage, clock, processor, seconds=1, share=1.0)
    assert cycle() is None


def test_what_a_collection_keeps_is_frozen_again(cycle: weakref.ref[Cycle]) -> None:
    clock, processor = Time(), Time()
    kept = [[number] for number in range(1000)]
    assert look(FrozenGarbage(clock, processor), clock, processor, seconds=LEAST_SECONDS, share=0.0)
    assert cycle() is None
    assert gc.get_freeze_count() > len(kept)
    assert not any(one is kept for one in gc.get_objects())
