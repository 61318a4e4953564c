"""Rate limits: sliding windows for address, session, subject, tenant and its guests, decided together.

A call that one scope refuses spends nothing in the others. Status polls have a budget of their own, so that watching
jobs does not use up the right to submit them. The per-IP flood guard of the doors that open without a session is
slowapi's; this file and its storage are the only users of slowapi and limits.

By default, slowapi reads `.env` and `RATELIMIT_*` variables, and skips a limit whose key is empty; both are prevented
here. It counts in the memory of each process: it blunts a flood, and rations nothing.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Awaitable, Callable
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import limits
from slowapi import Limiter
from slowapi.errors import RateLimitExceeded as RateLimitExceeded
from starlette.requests import Request
from starlette.types import Scope

from proxy.clock import Clock
from proxy.errors import RateLimited, StoreUnavailable
from proxy.limits.flood_store import BoundedStorage
from proxy.networks import network
from proxy.stores.counters import Counters, Hit, Window
from proxy.stores.uploads import Upload
from proxy.telemetry.log_limit import LogLimit
from proxy.tenants.caller import Caller
from proxy.tenants.terms import ScopedRate, Terms

#: Minting is what a tenant's own backend does, for all of its users from one address.
MINT_LIMIT = "1200/minute"
GUEST_LIMIT = "60/minute"
ADMIN_LIMIT = "300/minute"
#: Of one address, across processes: who types a token has no use for more.
SIGN_IN_LIMIT = "10/minute"
DESCRIPTION_LIMIT = "120/minute"
#: Files that the console's pages load, at each view: of one address, behind which all operators of a company may be.
FILE_LIMIT = "1200/minute"
#: In the state of a request: for whom the flood guard counts it, if a good credential was recognized.
VISITOR = "visitor"
#: In the state of a request: what its response says of the limits.
ALLOWANCE = "allowance"
_EMPTY_FILE = Path(__file__).parent.with_name("py.typed")
_log = logging.getLogger(__name__)


class Allowance(NamedTuple):
    """What is left after a call, for the `RateLimit` headers (IETF draft-ietf-httpapi-ratelimit-headers)."""

    scopes: tuple[str, ...]
    windows: tuple[Window, ...]
    hit: Hit

    def raw_headers(self) -> list[tuple[bytes, bytes]]:
        """Give `RateLimit-Policy`, which names every limit, and `RateLimit`."""
        return [(b"ratelimit-policy", write_policy(self.scopes, self.windows)), (b"ratelimit", self.write_least())]

    def write_least(self) -> bytes:
        """Write what is left of the limit that is nearest to its end: the value of `RateLimit`."""
        least = 0
        if len(self.windows) > 1:
            shares = [left / one.limit for left, one in zip(self.hit.remaining, self.windows, strict=True)]
            least = shares.index(min(shares))
        remaining, reset = self.hit.remaining[least], max(0, round(self.hit.reset_after[least] + 0.4999))
        return f'"{self.scopes[least]}";r={remaining};t={reset}'.encode("ascii")


@lru_cache(maxsize=256)
def write_policy(scopes: tuple[str, ...], windows: tuple[Window, ...]) -> bytes:
    """Write what the limits of some scopes are: the value of `RateLimit-Policy`."""
    named = zip(scopes, windows, strict=True)
    return ", ".join(f'"{scope}";q={one.limit};w={one.seconds}' for scope, one in named).encode("ascii")


class RateLimiter:
    """Counts calls against the limits of the caller's plan.

    Args:
        fails_open: whether calls are let through while the counters do not answer.
        failed: called for each call that could not be counted, let through or not.
    """

    def __init__(
        self, counters: Counters, clock: Clock, *, fails_open: bool = False, failed: Callable[[], None] = lambda: None
    ) -> None:
        self._counters = counters
        self._clock = clock
        self._fails_open = fails_open
        self._failed = failed
        self._log_limit = LogLimit()

    def hit(self, caller: Caller, scope: Scope, *, polls: bool) -> Awaitable[None]:
        """Count one call of a caller. The response to it says what is left, whatever it becomes.

        Raises:
            RateLimited: a window is full; none was charged.
            StoreUnavailable: the counters do not answer, and calls are not let through without.
        """
        return self.count(scope, *self.windows(caller, network(scope["client"]), polls=polls))

    async def hit_slot(self, upload: Upload, terms: Terms, scope: Scope) -> None:
        """Count one request to an upload slot as a poll of its owner, whose credential it need not have.

        Raises:
            RateLimited, StoreUnavailable: as `hit`.
        """
        session = upload.session_id or upload.id
        owner = session if upload.subject else f"key:{session}"
        address = network(scope["client"])
        await self.count(scope, *_windows("poll", terms.polls, address, owner, upload.tenant, upload.subject))

    async def hit_estimate(self, caller: Caller, scope: Scope) -> None:
        """Count one estimate. The plan allows as many as calls; they take none of these.

        Raises:
            RateLimited, StoreUnavailable: as `hit`.
        """
        await self.count(scope, *_windows_of("estimate", caller.terms.rates, caller, network(scope["client"])))

    async def check(self, caller: Caller, scope: Scope) -> None:
        """Refuse a call that `hit` would refuse now; count nothing. The response does not say what is left of calls.

        Raises:
            RateLimited, StoreUnavailable: as `hit`.
        """
        windows = self.windows(caller, network(scope["client"]), polls=False)
        await self.count({"state": {}}, *windows, counts=False)

    def windows(self, caller: Caller, address: str, *, polls: bool) -> tuple[tuple[str, ...], tuple[Window, ...]]:
        """List the scopes that have a limit for such a call, with their windows."""
        rates = caller.terms.polls if polls else caller.terms.rates
        return _windows_of("poll" if polls else "call", rates, caller, address)

    async def hit_guest(
        self, scope: Scope, tenant: str, rate: str | None, purpose: Literal["guest", "challenge"] = "guest"
    ) -> None:
        """Count one guest session, or one challenge, of a tenant for an address, across processes.

        Raises:
            RateLimited, StoreUnavailable: as `hit`.
        """
        if rate:
            who = f"{tenant}:{network(scope['client'])}"
            await self.count(scope, ("ip",), (_window(purpose, "ip", who, rate),))

    async def hit_sign_in(self, scope: Scope) -> None:
        """Count one wrong token of an address at the console, or one return from the provider, across processes.

        Raises:
            RateLimited, StoreUnavailable: as `hit`.
        """
        await self.count(scope, ("ip",), (_window("console", "ip", network(scope["client"]), SIGN_IN_LIMIT),))

    async def check_repeatable(self, caller: Caller, scope: Scope) -> None:
        """Refuse a call with an Idempotency-Key that has no way on: made, it is a call, and as a repetition, a poll.

        Which of them it is shows only in its body. Nothing is counted yet.

        Raises:
            RateLimited, StoreUnavailable: as `hit`.
        """
        address = network(scope["client"])
        try:
            await self.count(scope, *self.windows(caller, address, polls=False), counts=False)
        except RateLimited:
            await self.count(scope, *self.windows(caller, address, polls=True), counts=False)

    async def count(
        self, scope: Scope, scopes: tuple[str, ...], listed: tuple[Window, ...], *, counts: bool = True
    ) -> None:
        """Count one call in the windows of some scopes, as `windows` gives them; without `counts`, only try.

        Raises:
            RateLimited, StoreUnavailable: as `hit`.
        """
        if not listed:
            return
        try:
            hit = await self._counters.hit(listed, self._clock.now(), counts=counts)
        except StoreUnavailable:
            self._failed()
            if not self._fails_open:
                raise
            # As PROXY_RATE_LIMIT_ON_ERROR says.
            if calls := self._log_limit.count("rate limits"):
                _log.warning("rate limits not counted: calls let through", extra={"log_fields": {"calls": calls}})
            return
        scope["state"][ALLOWANCE] = Allowance(scopes, listed, hit)
        if hit.refused is not None:
            name, window = scopes[hit.refused], listed[hit.refused]
            raise RateLimited(
                f"{_SPOKEN[name]} may make {window.limit} calls in {window.seconds} seconds.",
                retry_after=hit.retry_after,
                scope="tenant" if name == "guests" else name,
            )

    def count_now(self, scopes: tuple[str, ...], listed: tuple[Window, ...]) -> Allowance | None:
        """Count one call without waiting in the windows of some scopes, of which there is at least one.

        None if the counters have to be waited for, or a window is full: nothing was counted.
        """
        hit = self._counters.hit_now(listed, self._clock.now())
        return None if hit is None or hit.refused is not None else Allowance(scopes, listed, hit)


_SPOKEN = {
    "ip": "This address",
    "session": "This session",
    "subject": "This user",
    "tenant": "This tenant",
    "guests": "All guests of this tenant together",
}


def _windows_of(
    purpose: str, rates: tuple[ScopedRate, ...], caller: Caller, address: str
) -> tuple[tuple[str, ...], tuple[Window, ...]]:
    session = caller.session.id if caller.session else f"key:{caller.key_id}"
    return _windows(purpose, rates, address, session, caller.tenant.id, caller.subject)


@lru_cache(maxsize=4096)
def _windows(
    purpose: str, rates: tuple[ScopedRate, ...], address: str, session: str, tenant: str, subject: str
) -> tuple[tuple[str, ...], tuple[Window, ...]]:
    """List the scopes that have a limit, with their windows."""
    who = {"ip": address, "session": session, "subject": f"{tenant}:{subject}", "tenant": tenant, "guests": tenant}
    windows = [_window(purpose, scope, who[scope], rate) for scope, rate in rates]
    return tuple(scope for scope, _ in rates), tuple(windows)


def _window(purpose: str, scope: str, who: str, rate: str) -> Window:
    amount, seconds = parse_rate(rate)
    # Subjects are the tenants' own words for people, and session ids open nothing but stay private: neither is a key.
    digest = hashlib.blake2b(who.encode(), digest_size=12).hexdigest()
    # Each length has a window of its own: the same address, user or tenant may call on two plans, and a window that is
    # read as a shorter one forgets the hits that only the longer one still counts.
    return Window(f"{purpose}:{scope}:{seconds}:{digest}", amount, seconds)


@lru_cache(maxsize=256)
def parse_rate(rate: str) -> tuple[int, int]:
    """Parse a rate such as `60/minute`: how many, in how many seconds."""
    item = limits.parse(rate)
    return item.amount, item.get_expiry()


def flood_guard(clock: Clock) -> Limiter:
    """Make a limiter with a memory of its own, closed to the environment."""
    limiter = Limiter(
        key_func=visitor_of,
        storage_uri=f"{BoundedStorage.STORAGE_SCHEME[0]}://",
        storage_options={"clock": clock},  # type: ignore[dict-item]
        strategy="moving-window",
        headers_enabled=False,
        config_filename=str(_EMPTY_FILE),
    )
    limiter.enabled = True
    limiter._swallow_errors = False
    return limiter


def visitor_of(request: Request) -> str:
    """Return the holder of a good credential, or the caller's address: of IPv6 the /64 of a household. Never empty."""
    return request.scope.get("state", {}).get(VISITOR) or network(request.scope.get("client"))


def to_rate_limited(error: RateLimitExceeded) -> RateLimited:
    """Turn slowapi's refusal into our own; at worst the whole window has to pass."""
    window = error.limit.limit.get_expiry() if error.limit else 60
    return RateLimited("Too many requests from this address; slow down.", retry_after=window, scope="ip")
