"""Work on a store that many do at once."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

from proxy.errors import StoreUnavailable

T = TypeVar("T")
_TRIES = 10


async def do_in_turn(work: Callable[[], Awaitable[T]]) -> T:
    """Do it, again if the store has refused it: on a busy machine the turn may come after a caller's patience."""
    for _ in range(_TRIES):
        with contextlib.suppress(StoreUnavailable):
            return await work()
    return await work()
