"""The garbage collector, set so that it does not hold up calls.

A collection takes as long as there are objects to look at, 60 ms and more for what a busy process remembers of its
jobs, and nothing else runs meanwhile. Calls leave hardly any cycles behind, which only the collector could free
(`tests/server/test_hang_ups.py`). So it looks at new objects only, some thousand at a time, and once at each. What is
still there then is frozen: reference counts free it as before, but collections pass it over. Cycles among frozen
objects are collected when the process has little to do.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

#: New objects before a collection looks at them, which takes a millisecond or two. With hundreds of calls at a time the
#: number of objects goes up and down by thousands, so fewer would be looked at while most of their calls go on.
YOUNG_OBJECTS = 10_000
#: Cycles among frozen objects are collected so often at the most; at least so often, if the process is always busy.
LEAST_SECONDS, MOST_SECONDS = 600.0, 7_200.0
#: The share of a processor with which a process is busy.
BUSY = 0.05


@contextmanager
def collections_paused() -> Iterator[None]:
    """Import and build in the block without garbage collections, and leave out later what it made.

    Nearly all of it stays. Collections would look at it again and again, which takes a quarter of the time of a start,
    and find 1 MiB; `FrozenGarbage` finds it later.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def freeze_survivors() -> None:
    """Collect garbage now, and from now on freeze what survives the collections of new objects."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS)
    if _freeze_after not in gc.callbacks:
        gc.callbacks.append(_freeze_after)


def _freeze_after(phase: str, _: Mapping[str, Any]) -> None:
    if phase == "stop":
        gc.freeze()


class FrozenGarbage:
    """Collects the cycles among frozen objects, in moments in which the process has little to do.

    Args:
        clock: seconds.
        processor_clock: seconds of processor time that the process has used.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        processor_clock: Callable[[], float] = time.process_time,
    ) -> None:
        self._clock = clock
        self._processor_clock = processor_clock
        self._collected_at = self._looked_at = clock()
        self._used = processor_clock()

    def look(self) -> bool:
        """Collect them if it is time to; return whether it was. To be called about once a second."""
        now, used = self._clock(), self._processor_clock()
        is_busy = used - self._used > BUSY * (now - self._looked_at)
        self._looked_at, self._used = now, used
        if now - self._collected_at < (MOST_SECONDS if is_busy else LEAST_SECONDS):
            return False
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        self._collected_at = now
        return True
