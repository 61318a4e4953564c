"""Whether this process can serve, found out once a second at most and within two seconds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from proxy.clock import Clock
from proxy.errors import ProxyError, StoreUnavailable
from proxy.singleflight import SingleFlight

#: How long an answer is remembered: every caller may ask, as often as they like.
FRESH_SECONDS = 1.0
#: A store that takes longer is silent. Probes of orchestrators wait for few seconds, and calls meet the same silence.
ANSWER_SECONDS = 2.0

#: Raises a ProxyError while a store does not take what calls write.
Check = Callable[[], Coroutine[Any, Any, None]]


class NotReady(StoreUnavailable):
    """Names all stores that do not take what calls write."""

    def __init__(self, problems: Mapping[str, ProxyError]) -> None:
        super().__init__(" ".join(problem.message for problem in problems.values()))
        self.stores = list(problems)

    def body(self) -> dict[str, Any]:
        return {**super().body(), "stores": self.stores}


class Readiness:
    """Checks the stores, and remembers the result for a second, failures too; callers in between share it."""

    def __init__(self, checks: Mapping[str, Check], clock: Clock) -> None:
        """Take the checks of the stores, by the names of the stores."""
        self._stores = {name: _Store(name, check) for name, check in checks.items()}
        self._clock = clock
        self._rounds: SingleFlight[NotReady | None] = SingleFlight()
        self._checked_at = float("-inf")
        self._problem: NotReady | None = None

    async def require(self) -> None:
        """Return if the stores answered less than a second ago.

        Raises:
            NotReady: some did not.
        """
        # A clock that was set back would otherwise keep an old answer for as long.
        if not 0 <= self._clock.now() - self._checked_at < FRESH_SECONDS:
            self._problem = await self._rounds.run("stores", self._check_all)
            self._checked_at = self._clock.now()
        if self._problem is not None:
            raise self._problem.with_traceback(None)

    async def _check_all(self) -> NotReady | None:
        """Check all stores side by side: a silent one hides nothing about the others."""
        found = await asyncio.gather(*(store.find_problem() for store in self._stores.values()))
        problems = {name: problem for name, problem in zip(self._stores, found, strict=True) if problem is not None}
        return NotReady(problems) if problems else None


class _Store:
    """Checks one store, with one check at a time: a silent store does not collect them."""

    def __init__(self, name: str, check: Check) -> None:
        self._name = name
        self._check = check
        self._checking: asyncio.Task[ProxyError | None] | None = None
        self._give_up_at = 0.0

    async def find_problem(self) -> ProxyError | None:
        now = asyncio.get_running_loop().time()
        if self._checking is None or self._checking.done():
            self._checking, self._give_up_at = asyncio.create_task(self._run_check()), now + ANSWER_SECONDS
        # Left running when time is over: to give up a statement at a silent server takes as long as to wait for it.
        await asyncio.wait({self._checking}, timeout=max(0.0, self._give_up_at - now))
        if not self._checking.done():
            return StoreUnavailable(f"The proxy's {self._name} did not answer within {ANSWER_SECONDS:g} seconds.")
        return self._checking.result()

    async def _run_check(self) -> ProxyError | None:
        try:
            await self._check()
        except ProxyError as problem:
            return problem
        return None
