"""The budget of refusals: an address that is refused all the time is not heard for a while.

A refusal costs the proxy about what a call does, and no plan counts it. So each address has a number of them, after
which its requests are answered before anything but their credential is looked at. Who shares the address with the one
who used it up is still heard with a good one. A refusal then counts for the credential, which has as many again.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from starlette.types import Scope

from proxy.clock import Clock
from proxy.errors import RateLimited
from proxy.limits.rates import parse_rate
from proxy.log_context import quiet
from proxy.networks import network
from proxy.stores.counters import Window
from proxy.stores.memory.windows import SlidingWindows

#: What a refusal is: the answers that cost nothing otherwise. Those of a limit (402, 429) have their limit.
COUNTED = frozenset({400, 401, 403, 404, 405, 413, 415, 422})
#: Names that are not heard at the same time; more than these, and the longest refused is heard again.
MOST_OVER = 8_192
#: Balancers and monitors ask these, often from the address of a whole network.
_ALWAYS_HEARD = frozenset({"/livez", "/readyz", "/metrics"})
_HOLDER = "refusals_of"
_log = logging.getLogger(__name__)


class RefusalBudget:
    """Counts refusals in this process.

    Args:
        rate: such as `600/minute`; None for no limit.
        recognize: a name for the credential of a request if it is good; None otherwise. It costs little.
        refused: called for each request that is not heard.
    """

    def __init__(
        self,
        rate: str | None,
        clock: Clock,
        recognize: Callable[[Scope], Awaitable[str | None]],
        refused: Callable[[], None] = lambda: None,
    ) -> None:
        self._limit, self._seconds = parse_rate(rate) if rate else (0, 0)
        self._clock = clock
        self._recognize = recognize
        self._refused = refused
        self._windows = SlidingWindows()
        #: Who is not heard, and until when.
        self._over: dict[str, float] = {}

    def is_used_up(self, scope: Scope) -> bool:
        """Return whether the address of a request has used up its budget, so that `check` decides."""
        # As good as always there is none, and then this is all.
        return bool(self._over) and scope["path"] not in _ALWAYS_HEARD and self._wait(network(scope["client"])) > 0

    async def check(self, scope: Scope) -> None:
        """Let a request pass whose address has used up its budget, if its own credential has not.

        Raises:
            RateLimited: it has no good credential, or one whose budget is used up too.
        """
        holder = await self._recognize(scope)
        if holder is not None:
            scope["state"][_HOLDER] = holder
        wait = self._wait(holder or network(scope["client"]))
        if not wait:
            return
        self._refused()
        quiet(scope)
        raise RateLimited(
            "Too many requests from this address were refused; fix them, or try again later.",
            retry_after=wait,
            scope="ip" if holder is None else "session",
        )

    def spend(self, scope: Scope) -> None:
        """Count a refusal."""
        if not self._limit:
            return
        holder = scope["state"].get(_HOLDER)
        name, now = holder or network(scope["client"]), self._clock.now()
        hit = self._windows.hit_one(Window(name, self._limit, self._seconds), now)
        if not hit.remaining[0] and name not in self._over:
            self._make_room(now)
            self._over[name] = now + hit.reset_after[0]
            fields = {"of": "address" if holder is None else "credential", "seconds": round(hit.reset_after[0], 1)}
            _log.warning("refusal budget used up", extra={"log_fields": fields})

    def _wait(self, name: str) -> float:
        """Return for how many seconds a name is not heard; 0 if it is."""
        until = self._over.get(name)
        if until is None:
            return 0.0
        # After a step back of the clock it is not longer than the window.
        wait = min(until - self._clock.now(), self._seconds)
        if wait <= 0:
            del self._over[name]
            return 0.0
        return wait

    def _make_room(self, now: float) -> None:
        if len(self._over) >= MOST_OVER:
            self._over = {name: until for name, until in self._over.items() if until > now}
        if len(self._over) >= MOST_OVER:
            del self._over[next(iter(self._over))]
