"""Sliding windows in memory, bounded in number.

A window is kept as the times of its hits. Names that are seen once are most of all names, and cost one number; what is
near its limit is kept longest. When more names come than are kept, those that used least of their limit are forgotten
first: they get back a few hits, and a caller who is refused stays refused.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from itertools import islice

from proxy.stores.counters import Hit, Window

#: Windows with a single hit: two generations, of which the older one is dropped when the younger one is full.
GENERATION = 32_768
#: Windows with more hits, or with a limit of which one hit is half.
MOST_BUSY = 32_768
#: New busy windows between two sweeps of those that have ended.
SWEEP_EVERY = 4_096
#: A list takes a tenth of the memory of a deque while it is short.
_SHORT = 64

Times = list[float] | deque[float]


class SlidingWindows:
    """Counts hits. Nothing here awaits, so every step is atomic.

    A hit from the future (the clock was set back) counts as one of now: no window refuses longer than it is long.
    """

    def __init__(self, generation: int = GENERATION, most_busy: int = MOST_BUSY) -> None:
        self._generation = generation
        self._most_busy = most_busy
        self._young: dict[str, float] = {}
        self._old: dict[str, float] = {}
        #: With the limit and the seconds that each had last, for the sweep.
        self._busy: dict[str, tuple[Times, int, int]] = {}
        self._until_sweep = SWEEP_EVERY

    def __len__(self) -> int:
        return len(self._young) + len(self._old) + len(self._busy)

    def hit_one(self, window: Window, now: float) -> Hit:
        """Take one hit as `hit` does, without the lists: polls have one window, and are nine calls in ten."""
        key, limit, seconds = window
        busy = self._busy.get(key)
        times = self._seen_once(key) if busy is None else busy[0]
        if times and times[0] <= (ended := now - seconds):
            _drop_ended(times, ended)
        if times and times[-1] > now:
            _clamp(times, now)
        count = len(times)
        if count >= limit:
            return Hit(0, times[-limit] + seconds - now, (0,), (times[0] + seconds - now,))
        if busy is None or count == _SHORT:
            self._add(window, times, now)
        else:
            times.append(now)
        return Hit(None, 0.0, (limit - count - 1,), (times[0] + seconds - now,))

    def hit(self, windows: Sequence[Window], now: float, *, counts: bool = True) -> Hit:
        """Count one hit in every window, or in none if one of them is full or it is only tried."""
        found: list[Times] = []
        refused, wait = None, 0.0
        for window in windows:
            times = self.times(window, now)
            if len(times) >= window[1] and (longer := times[-window[1]] + window[2] - now) > wait:
                refused, wait = len(found), longer
            found.append(times)
        counts = counts and refused is None
        left, resets = [], []
        for window, times in zip(windows, found, strict=True):
            key, limit, seconds = window
            if counts:
                if len(times) == _SHORT or key not in self._busy:
                    self._add(window, times, now)
                else:
                    times.append(now)
            count = len(times)
            left.append(limit - count if count < limit else 0)
            resets.append(times[0] + seconds - now if times else 0.0)
        return Hit(refused, wait, tuple(left), tuple(resets))

    def times(self, window: Window, now: float) -> Times:
        """Return the hits of a window that still count."""
        key, _, seconds = window
        busy = self._busy.get(key)
        times = self._seen_once(key) if busy is None else busy[0]
        if times:
            if times[0] <= (ended := now - seconds):
                _drop_ended(times, ended)
            if times and times[-1] > now:
                _clamp(times, now)
        return times

    def _seen_once(self, key: str) -> Times:
        at = self._young.get(key)
        if at is None:
            at = self._old.get(key)
        return [] if at is None else [at]

    def _add(self, window: Window, times: Times, now: float) -> None:
        """Append a hit to what `times` gave, and keep it in its place."""
        times.append(now)
        key, limit, seconds = window
        if key in self._busy:
            if len(times) > _SHORT and isinstance(times, list):
                self._busy[key] = (deque(times), limit, seconds)
        elif len(times) == 1 and limit > 2:
            self._old.pop(key, None)
            self._young[key] = now
            if len(self._young) >= self._generation:
                self._old, self._young = self._young, {}
        else:
            self._old.pop(key, None)
            self._young.pop(key, None)
            self._busy[key] = (times, limit, seconds)
            self._until_sweep -= 1
            if self._until_sweep <= 0 or len(self._busy) >= self._most_busy:
                self._sweep(now)

    def _sweep(self, now: float) -> None:
        """Forget the windows that have ended; while there are still too many, the idlest, then the oldest."""
        self._until_sweep = SWEEP_EVERY
        busy = {key: kept for key, kept in self._busy.items() if kept[0] and kept[0][-1] > now - kept[2]}
        most = self._most_busy * 3 // 4
        if len(busy) > most:
            busy = {key: kept for key, kept in busy.items() if 2 * len(kept[0]) >= kept[1]}
        if len(busy) > most:
            busy = dict(list(busy.items())[-most:])
        self._busy = busy


def _drop_ended(times: Times, ended: float) -> None:
    """Remove the hits until a moment, of which there is one at least: mostly a few, and all of a minute after a pause.

    One by one, a hundred thousand hits would hold up all calls for 60 ms.
    """
    if times[-1] <= ended:
        times.clear()
    elif len(times) > _SHORT and times[_SHORT] <= ended:
        kept = list(islice(times, bisect_right(times, ended), None))
        times.clear()
        times.extend(kept)
    else:
        while times[0] <= ended:
            del times[0]


def _clamp(times: Times, now: float) -> None:
    for at in range(len(times) - 1, -1, -1):
        if times[at] <= now:
            return
        times[at] = now
