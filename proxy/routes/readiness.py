"""Whether this process can serve, found out once a second at most."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from proxy.clock import Clock
from proxy.errors import ProxyError
from proxy.jobs.singleflight import SingleFlight

#: How long an answer is remembered: anybody may ask, and as often as they like.
FRESH_SECONDS = 1.0


class Readiness:
    """Checks the stores, and remembers for a second what came out, failures too; all who ask meanwhile share it."""

    def __init__(self, check: Callable[[], Awaitable[None]], clock: Clock) -> None:
        """`check` raises a ProxyError while the stores do not answer."""
        self._check = check
        self._clock = clock
        self._checks: SingleFlight[ProxyError | None] = SingleFlight()
        self._checked_at = float("-inf")
        self._problem: ProxyError | None = None

    async def require(self) -> None:
        """Return if the stores answered less than a second ago.

        Raises:
            ProxyError: they did not.
        """
        # A clock that was set back would otherwise keep an old answer for as long.
        if not 0 <= self._clock.now() - self._checked_at < FRESH_SECONDS:
            self._problem = await self._checks.run("stores", self._run_check)
            self._checked_at = self._clock.now()
        if self._problem is not None:
            raise self._problem.with_traceback(None)

    async def _run_check(self) -> ProxyError | None:
        try:
            await self._check()
        except ProxyError as problem:
            return problem
        return None
