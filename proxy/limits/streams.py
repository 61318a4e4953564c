"""How many event streams are open: each holds a connection, so that one caller, or one tenant, cannot take them all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from proxy.errors import RateLimited
from proxy.tenants.caller import Caller
from proxy.tenants.terms import share_of

#: When a stream will end is not known; this is a moment to try again.
RETRY_SECONDS = 1.0


class _Bound(NamedTuple):
    """How many streams may be open under one name, and how a refusal speaks of them."""

    name: str
    most: int
    refusal: str
    scope: str | None


class OpenStreams:
    """Counts the open event streams of this process.

    Args:
        most: of all callers together.
        most_per_session: of one session, or of one tenant key.
        most_per_tenant: of all sessions of one tenant, now; its guests have their share of these.
    """

    def __init__(self, most: int, most_per_session: int, most_per_tenant: Callable[[], int]) -> None:
        self._most = most
        self._most_per_session = most_per_session
        self._most_per_tenant = most_per_tenant
        self._open: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return self._open[""]

    def take(self, caller: Caller) -> Callable[[], None]:
        """Count one more stream; what is returned is to be called once, at its end.

        Raises:
            RateLimited: there are as many as may be.
        """
        bounds = self._bounds_of(caller)
        for name, most, refusal, scope in bounds:
            if self._open[name] >= most:
                raise RateLimited(refusal.format(most), retry_after=RETRY_SECONDS, scope=scope)
        names = [bound.name for bound in bounds]
        self._open.update(names)
        return lambda: self._give_back(names)

    def _bounds_of(self, caller: Caller) -> list[_Bound]:
        session = f"session:{caller.session.id}" if caller.session else f"key:{caller.key_id}"
        tenant, most_per_tenant, share = caller.tenant.id, self._most_per_tenant(), caller.terms.share
        bounds = [
            _Bound(session, self._most_per_session, _REFUSALS["session"], "session"),
            _Bound("", self._most, _REFUSALS["server"], None),
            _Bound(f"tenant:{tenant}", most_per_tenant, _REFUSALS["tenant"], "tenant"),
        ]
        if share is not None:
            guests = share_of(most_per_tenant, share)
            bounds.append(_Bound(f"guests:{tenant}", guests, _REFUSALS["guests"], "tenant"))
        return bounds

    def _give_back(self, names: list[str]) -> None:
        self._open.subtract(names)
        for name in names:
            if not self._open[name]:
                del self._open[name]


_REFUSALS = {
    "session": "This session has {} streams open, which is all it may; close one.",
    "guests": "All guests of this tenant together have {} streams open, which is all they may; come back.",
    "tenant": "This tenant has {} streams open, which is all it may; come back.",
    "server": "This server has {} streams open, which is all it may; come back.",
}
