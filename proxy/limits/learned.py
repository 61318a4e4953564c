"""What calls usually use, learned from those that ended: the 99th percentile of calls that are alike.

A call reserves the most that it can use. It needs no more than this to be left, so that a caller with a small quota is
not refused for the sake of a worst case. Memory is bounded: so many classes, and so many figures of each.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping
from typing import Any

from proxy.numbers import MOST
from proxy.stores.learned import LearnedUse
from proxy.stores.ledger import SizeClass

#: Calls before anything is learned of them, and the latest of them that count.
LEAST_CALLS, LATEST_CALLS = 50, 100
#: After so many calls the percentile is computed again.
CALLS_BETWEEN = 10
PERCENTILE = 0.99
#: Classes that are remembered; those that no call ended in for the longest time are forgotten first.
MOST_CLASSES = 1000
_DATA = "data:"


def size_of(endpoint: str, body: Mapping[str, Any], tokens: int) -> SizeClass:
    """Return the class of a call with this input and this token ceiling. A picture behind a URL has no size here."""
    size = 0
    for value in body.values():
        if value.__class__ is str:
            size += len(value) if value.startswith(_DATA) else 0
        elif value.__class__ is list:
            size += sum(len(one) for one in value if isinstance(one, str) and one.startswith(_DATA))
    return SizeClass(endpoint, max(size, _count_pixels(body)).bit_length() // 2, tokens.bit_length())


def _count_pixels(body: Mapping[str, Any]) -> int:
    """Count the pixels of the picture that an input asks for."""
    size = body.get("image_size")
    given = size if isinstance(size, dict) else body
    width, height = given.get("width"), given.get("height")
    return min(max(0, width * height), MOST) if isinstance(width, int) and isinstance(height, int) else 0


class _Figures:
    """What the latest calls of a class used of one unit, in millionths.

    Attributes:
        usual: the percentile of these; None as long as they are too few.
    """

    __slots__ = ("_count", "_latest", "usual")

    def __init__(self, usual: int | None = None) -> None:
        self.usual = usual
        self._count = 0
        self._latest = array("q")

    def add(self, used: int) -> bool:
        """Add the figure of a call; return whether the percentile was computed again."""
        if self._count < LATEST_CALLS:
            self._latest.append(used)
        else:
            self._latest[self._count % LATEST_CALLS] = used
        self._count += 1
        if self._count < LEAST_CALLS or self._count % CALLS_BETWEEN:
            return False
        ordered = sorted(self._latest)
        self.usual = ordered[math.ceil(PERCENTILE * len(ordered)) - 1]
        return True


class Learned:
    """What calls usually use, by their class."""

    def __init__(self) -> None:
        self._classes: dict[SizeClass, dict[str, _Figures]] = {}
        self._changed: set[SizeClass] = set()

    def add(self, size: SizeClass | None, reported: Mapping[str, int]) -> None:
        """Learn from a call that ended: what fal reported, in millionths of `tokens` and `compute_seconds`."""
        if size is None or not reported:
            return
        known = self._classes.pop(size, None)
        if known is None:
            known = {}
            self._make_room()
        # The class of the latest call is the last.
        self._classes[size] = known
        for unit, used in reported.items():
            figures = known.get(unit) or known.setdefault(unit, _Figures())
            if figures.add(used):
                self._changed.add(size)

    def needs(self, size: SizeClass, amounts: Mapping[str, int], price: float) -> Mapping[str, int]:
        """Return what must be left for a call of a class that reserves `amounts`; `price` is that of a second."""
        known = self._classes.get(size)
        if known is None:
            return amounts
        needed = dict(amounts)
        for unit, figures in known.items():
            if (usual := figures.usual) is not None:
                needed[unit] = min(amounts[unit], max(1, usual))
                if unit == "compute_seconds":
                    needed["usd"] = min(amounts["usd"], max(1, math.ceil(usual * price)))
        return needed

    def restore(self, uses: Iterable[LearnedUse]) -> None:
        """Begin with what was learned before; what was learned here counts more."""
        for use in uses:
            if use.size not in self._classes and len(self._classes) < MOST_CLASSES:
                units = {"tokens": use.tokens, "compute_seconds": use.compute_seconds}
                self._classes[use.size] = {unit: _Figures(most) for unit, most in units.items() if most is not None}

    def list_changed(self) -> list[LearnedUse]:
        """List what was learned since it was marked as saved."""
        return [self._describe(size) for size in self._changed]

    def mark_saved(self, uses: Iterable[LearnedUse]) -> None:
        self._changed.difference_update(use.size for use in uses)

    def _describe(self, size: SizeClass) -> LearnedUse:
        known = self._classes[size]
        tokens, seconds = (known[unit].usual if unit in known else None for unit in ("tokens", "compute_seconds"))
        return LearnedUse(size, tokens, seconds)

    def _make_room(self) -> None:
        if len(self._classes) >= MOST_CLASSES:
            oldest = next(iter(self._classes))
            del self._classes[oldest]
            self._changed.discard(oldest)
