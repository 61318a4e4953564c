"""Checks of a store, one at a time: a silent store does not collect them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from proxy.errors import ProxyError

#: Raises a ProxyError while a store does not take what calls write.
Check = Callable[[], Coroutine[Any, Any, None]]


class StoreCheck:
    """Runs the check of one store for all who ask.

    Args:
        seconds: how long the store may take to answer, from the start of a check.
    """

    def __init__(self, check: Check, seconds: float) -> None:
        self._check = check
        self._seconds = seconds
        self._checking: asyncio.Task[ProxyError | None] | None = None
        self._give_up_at = 0.0

    async def find_problem(self) -> ProxyError | None:
        """Return why the store does not take what calls write; None if it does.

        A caller joins the check that is under way. The answer to an earlier one counts for nothing: it came too late.

        Raises:
            TimeoutError: the store does not answer in time.
        """
        now = asyncio.get_running_loop().time()
        if self._checking is None or self._checking.done():
            self._checking, self._give_up_at = asyncio.create_task(self._run()), now + self._seconds
        # Left running when time is over: to give up a statement at a silent server takes as long as to wait for it.
        await asyncio.wait({self._checking}, timeout=max(0.0, self._give_up_at - now))
        if not self._checking.done():
            raise TimeoutError
        return self._checking.result()

    async def close(self) -> None:
        """End the check that is under way."""
        if self._checking is not None:
            self._checking.cancel()
            await asyncio.gather(self._checking, return_exceptions=True)

    async def _run(self) -> ProxyError | None:
        try:
            await self._check()
        except ProxyError as problem:
            return problem
        return None
