"""Where slowapi's flood guard counts: sliding windows that are bounded in number.

The storage in memory that limits brings keeps every address that ever asked at a door.
"""

from __future__ import annotations

from limits.storage import MemoryStorage

from proxy.clock import Clock, SystemClock
from proxy.stores.counters import Window
from proxy.stores.memory.windows import SlidingWindows

#: Addresses that are counted at the same time, see `SlidingWindows`.
GENERATION, MOST_BUSY = 8_192, 8_192


class BoundedStorage(MemoryStorage):
    """A storage for the strategy `moving-window`."""

    STORAGE_SCHEME = ["bounded"]  # noqa: RUF012 (limits declares it so)

    def __init__(
        self, uri: str | None = None, wrap_exceptions: bool = False, *, clock: Clock | None = None, **options: str
    ) -> None:
        super().__init__(uri, wrap_exceptions=wrap_exceptions, **options)
        self._clock = clock or SystemClock()
        self._windows = SlidingWindows(GENERATION, MOST_BUSY)

    def __len__(self) -> int:
        return len(self._windows)

    def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Count a visit, unless the window is full."""
        if amount != 1:
            raise ValueError("a visit counts once")
        return self._windows.hit_one(Window(key, limit, expiry), self._clock.now()).refused is None

    def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        """Return when the oldest visit of a window was, and how many there are."""
        times = self._windows.times(Window(key, limit, expiry), now := self._clock.now())
        return times[0] if times else now, len(times)
