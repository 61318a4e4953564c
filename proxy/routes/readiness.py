"""Whether this process can serve, found out once a second at most and within two seconds."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from proxy.clock import Clock
from proxy.errors import ProxyError, StoreUnavailable
from proxy.singleflight import SingleFlight
from proxy.store_check import Check, StoreCheck

#: How long an answer is remembered: every caller may ask, as often as they like.
FRESH_SECONDS = 1.0
#: A store that takes longer is silent. Probes of orchestrators wait for few seconds, and calls meet the same silence.
ANSWER_SECONDS = 2.0


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
        self._checks = {name: StoreCheck(check, ANSWER_SECONDS) for name, check in checks.items()}
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
        found = await asyncio.gather(*(_find_problem(*one) for one in self._checks.items()))
        problems = {name: problem for name, problem in zip(self._checks, found, strict=True) if problem is not None}
        return NotReady(problems) if problems else None


async def _find_problem(name: str, check: StoreCheck) -> ProxyError | None:
    try:
        return await check.find_problem()
    except TimeoutError:
        return StoreUnavailable(f"The proxy's {name} did not answer within {ANSWER_SECONDS:g} seconds.")
