"""What this process knows of fal's health, and which new calls it keeps back for that.

Three sizes of breaker: the account, which fal may lock; a host of fal's, which may be out of reach; and an endpoint at
a host, which may fail alone. Polls, results, cancels and files pass all of them.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Hashable
from contextlib import suppress
from time import perf_counter
from typing import Any

from proxy.clock import Clock, SystemClock, to_iso
from proxy.errors import ProxyError, UpstreamUnavailable
from proxy.targets import Target
from proxy.upstream.breaker import Breaker, Evidence
from proxy.upstream.refusals import LOCKS, Reason, failure_of_lock
from proxy.upstream.slow_start import PATIENCE_SECONDS, SlowStart

#: The breaker of the whole account.
ACCOUNT = "account"
#: What callers of a locked account are asked to wait where there are no probes.
_LOCKED_SECONDS = 5.0


class Guard:
    """Remembers fal's refusals and failures, and refuses new calls while they would fare no better.

    Attributes:
        breakers: those with something to remember, by name; empty while fal is well, and then nothing else is to be
            asked here.
    """

    def __init__(
        self,
        clock: Clock | None = None,
        count: Callable[[str], None] = lambda _: None,
        probe_seconds: float = 0,
        waited: Callable[[float], None] = lambda _seconds: None,
    ) -> None:
        """Make a guard that knows of no refusal yet.

        Args:
            count: called with the reason of each refusal.
            probe_seconds: the first pause before a probe; 0 to keep no call back.
            waited: called with the seconds that a call was kept waiting.
        """
        self.breakers: dict[str, Breaker] = {}
        self._clock = clock or SystemClock()
        self._count = count
        self._probe_seconds = probe_seconds
        self._waited = waited
        self._last: dict[Reason, float] = {}
        self._waiting = 0
        self._slow_starts: defaultdict[str, dict[str, SlowStart]] = defaultdict(dict)

    def slow_start(self, target: Target) -> SlowStart | None:
        """Return the count that a new call has to be in; None for calls that are not kept back."""
        host = target.kind.intake
        if host is None or not self._probe_seconds:
            return None
        of_host = self._slow_starts[host]
        return of_host.get(target.endpoint) or of_host.setdefault(target.endpoint, SlowStart())

    async def admit(self, target: Target, caller: Hashable) -> bool:
        """Wait for the turn of a new call. Whether it is a probe.

        Raises:
            UpstreamAccountLocked, UpstreamUnavailable: it may not be sent.
        """
        slow_start = self.slow_start(target)
        if slow_start is not None and slow_start.is_full:
            await self._wait(slow_start, target)
        return self._take_probe(target, caller)

    async def _wait(self, slow_start: SlowStart, target: Target) -> None:
        started = perf_counter()
        self._waiting += 1
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE_SECONDS):
                    while slow_start.is_full and not self.is_shut(target):
                        await slow_start.news()
        finally:
            self._waiting -= 1
        self._waited(perf_counter() - started)

    def check(self, target: Target, caller: Hashable, *, claims: bool = True) -> None:
        """Refuse a new call that would not be sent, before anything is taken for it.

        Of the callers who come when a probe is due, one passes. If its call does not follow within a second, another
        one does. Without `claims` the caller is not kept as that one: no call of it follows.

        Raises:
            UpstreamAccountLocked, UpstreamUnavailable: it may not be sent.
        """
        now = self._clock.now()
        shut = [breaker for breaker in self._of(target) if breaker.is_open]
        for breaker in shut:
            if (wait := max(breaker.wait(now, caller), breaker.claimed_seconds(now, caller))) > 0:
                raise _refusal(breaker, wait)
        for breaker in shut if claims else ():
            breaker.claim_probe(now, caller)

    def is_shut(self, target: Target) -> bool:
        """Return whether new calls to a target are kept back, but for a probe now and then."""
        return any(breaker.is_open for breaker in self._of(target))

    def _take_probe(self, target: Target, caller: Hashable) -> bool:
        now = self._clock.now()
        shut = [breaker for breaker in self._of(target) if breaker.is_open]
        for breaker in shut:
            if (wait := breaker.wait(now, caller)) > 0:
                raise _refusal(breaker, wait)
        for breaker in shut:
            breaker.take_probe(now, caller)
        return bool(shut)

    def note(self, reason: Reason) -> None:
        """Remember that fal refused a call, or failed; a locked account takes no new calls."""
        now = self._clock.now()
        self._last[reason] = now
        self._count(reason.value)
        if reason in LOCKS and self._probe_seconds:
            self._breaker(ACCOUNT).open(now, reason.value)

    def fail(self, evidence: Evidence | None, target: Target, caller: Hashable) -> None:
        """Learn from a call that failed."""
        if evidence is Evidence.HOST:
            self.note(Reason.UNREACHABLE)
        host = target.kind.intake
        if evidence is None or host is None or not self._probe_seconds:
            return
        name = host if evidence is Evidence.HOST else _name(host, target)
        self._breaker(name).fail(self._clock.now(), caller if evidence is Evidence.DOUBTFUL else None)

    def succeed(self, target: Target, *, is_probe: bool) -> None:
        """Learn from a call that fal took."""
        now = self._clock.now()
        for breaker in self._of(target):
            breaker.succeed(now, is_probe=is_probe)
            if breaker.is_idle(now):
                del self.breakers[breaker.name]

    def forget_account(self) -> None:
        """Let calls through to an account that was locked: the key may be another account's now."""
        self.breakers.pop(ACCOUNT, None)

    def locked_seconds(self) -> float:
        """Return when to try again while the account is locked."""
        breaker = self.breakers.get(ACCOUNT)
        return _LOCKED_SECONDS if breaker is None else max(1.0, breaker.wait(self._clock.now(), None))

    def open_names(self) -> list[str]:
        """List what takes no new calls: `account`, a host, or a host and an endpoint."""
        return sorted(breaker.name for breaker in self.breakers.values() if breaker.is_open)

    def report(self) -> dict[str, Any]:
        """Report to operators what is closed, and when each refusal was last met."""
        return {"closed": self.open_names(), "last": {str(reason): to_iso(at) for reason, at in self._last.items()}}

    def describe(self) -> dict[str, Any]:
        """Describe the key to operators: whether it takes calls, what is closed, who waits, and the last refusal."""
        closed = self.open_names()
        state = "unavailable" if ACCOUNT in closed else "degraded" if closed else "healthy"
        last = max(self._last.items(), key=lambda one: one[1], default=None)
        refusal = None if last is None else {"reason": str(last[0]), "at": to_iso(last[1])}
        return {"state": state, "closed": closed, "waiting": self._waiting, "last_refusal": refusal}

    def _of(self, target: Target) -> list[Breaker]:
        """List the breakers that a call has to pass."""
        host = target.kind.intake
        if host is None:
            return []
        names = {ACCOUNT, host, _name(host, target)}
        return [breaker for name, breaker in self.breakers.items() if name in names]

    def _breaker(self, name: str) -> Breaker:
        return self.breakers.setdefault(name, Breaker(name, self._probe_seconds))


def _name(host: str, target: Target) -> str:
    return f"{host} {target.endpoint}" if target.endpoint else host


def _refusal(breaker: Breaker, wait: float) -> ProxyError:
    if breaker.name == ACCOUNT:
        return failure_of_lock(wait)
    return UpstreamUnavailable("fal is failing; nothing was sent to it.", retry_after=wait, scope="upstream")
