"""Waiting for what other processes do."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import anyio


async def until(happened: Callable[[], Awaitable[bool]], failure: str, seconds: float = 60) -> None:
    """Ask again and again, for as long as it may take another process on a busy machine."""
    deadline = time.monotonic() + seconds
    while True:
        if await happened():
            return
        assert time.monotonic() < deadline, failure
        await anyio.sleep(0.02)
