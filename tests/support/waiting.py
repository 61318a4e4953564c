"""Wait for what another thread, task or process does."""

from __future__ import annotations

import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

T = TypeVar("T")
#: Long enough for another process to start on a machine with much other work.
DEFAULT_SECONDS = 180.0
#: The first pause, by how much each is longer than the one before, and the longest: a proxy refuses callers who ask it
#: hundreds of times a second.
_FIRST_PAUSE, _GROWTH, _LONGEST_PAUSE = 0.005, 1.5, 0.25
Failure = str | Callable[[], str]


def wait_until(condition: Callable[[], T], failure: Failure = "not so in time", seconds: float = DEFAULT_SECONDS) -> T:
    """Call `condition` until it is true and return what it gave; fail with `failure` after so many seconds."""
    deadline = time.monotonic() + seconds
    pause = _FIRST_PAUSE
    while not (found := condition()):
        assert time.monotonic() < deadline, _text(failure)
        time.sleep(pause)
        pause = min(pause * _GROWTH, _LONGEST_PAUSE)
    return found


async def wait_until_async(
    condition: Callable[[], Awaitable[object] | object],
    failure: Failure = "not so in time",
    seconds: float = DEFAULT_SECONDS,
) -> None:
    """Like `wait_until`, while other tasks run; `condition` may be a coroutine function."""
    deadline = time.monotonic() + seconds
    pause = _FIRST_PAUSE
    while not await _value_of(condition()):
        assert time.monotonic() < deadline, _text(failure)
        await anyio.sleep(pause)
        pause = min(pause * _GROWTH, _LONGEST_PAUSE)


async def _value_of(result: Awaitable[object] | object) -> object:
    return await result if inspect.isawaitable(result) else result


def _text(failure: Failure) -> str:
    return failure if isinstance(failure, str) else failure()
