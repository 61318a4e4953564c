"""What a process keeps of 100,000 names.

Run as a program, it prints how far its memory grew, in bytes: when every table is full, when 60,000 more names came
inside their windows, and when others came after the windows had passed. Every part is the application's own, and is
asked what it is asked for a call, a poll, a guest, a stream and a refusal.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.types import Scope

from proxy.catalog import built_in
from proxy.container import Container
from proxy.drain import Drain
from proxy.limits.accounts import payer_of
from proxy.limits.quotas import new_job
from proxy.limits.rates import GUEST_LIMIT
from proxy.limits.refusals import RefusalBudget
from proxy.settings import read
from proxy.stores.memory import MemoryCounters
from proxy.stores.memory.windows import GENERATION
from proxy.stores.sql import SqlStores
from proxy.telemetry.metrics import Metrics
from proxy.tenants.caller import Caller, Session
from proxy.tenants.plans import Guests, Plan, PlanFile, RateLimits, Tenant
from proxy.upstream.client import Upstream
from proxy.upstream.transport import EngineTransport
from tests.support.audit_log import AUTHOR
from tests.support.clock import MovableClock

#: After this many names every table is full: the largest keeps two generations.
FULL, MORE, AFTERWARDS = 2 * GENERATION + 5_000, 60_000, 20_000
#: The first names also load code, so they are not measured.
WARM = 500
#: Every so many names a session is minted and verified; the others differ from it by their ids, which is a lot faster.
MINTED_EVERY = 10
PLAN = Plan(endpoints=frozenset({"fal-ai/llava-next"}), rate_limits=RateLimits(tenant=None))
FILE = PlanFile(plans={"default": PLAN}, tenants=(Tenant(id="acme", plan="default", guests=Guests(enabled=True)),))


class Names:
    """Asks all parts of a process on behalf of one name after the other."""

    def __init__(self, parts: Container, clock: MovableClock) -> None:
        self._parts = parts
        self._clock = clock
        self._budget = RefusalBudget("600/minute", clock, parts.recognizer.recognize)
        self._door: Callable[[Request], None] = parts.flood_guard.limit(GUEST_LIMIT)(_door)
        self._app = Starlette()
        self._caller: Caller | None = None
        self._next = 0

    async def ask_up_to(self, end: int) -> None:
        """Ask for each name that is left before this one; a minute is enough for a quarter of a million."""
        for number in range(self._next, end):
            await self._ask(number)
            self._clock.advance(0.000_24)
        self._next = end

    async def _ask(self, number: int) -> None:
        parts = self._parts
        request = Request(self._scope(number, "x"))
        caller = await self._call_as(number)
        await parts.limiter.hit(caller, request.scope, polls=False)
        await parts.limiter.hit(caller, request.scope, polls=True)
        await parts.limiter.hit_guest(request.scope, "acme", "60/hour")
        job = new_job(
            caller.terms, payer_of(caller, request.scope["client"]), "run", "x", {"requests": 1}, self._clock.now()
        )
        await parts.leases.acquire(job, caller.terms.leases)
        await parts.leases.release(job)
        parts.streams.take(caller)()
        parts.retries.charge("acme", caller.subject, 1000, 1_000_000)
        self._door(request)
        self._budget.spend(request.scope)

    async def _call_as(self, number: int) -> Caller:
        is_guest, subject = number % 2 == 0, f"guest-{number:016x}"
        if self._caller is None or number % MINTED_EVERY == 0:
            token, _ = self._parts.sessions.mint("acme", subject, 900, guest=is_guest)
            request = Request(self._scope(number, token))
            self._caller = await self._parts.authenticator.authenticate(request)
        session = self._caller.session
        assert isinstance(session, Session)
        return replace(self._caller, subject=subject, session=replace(session, id=f"{number:016x}", subject=subject))

    def _scope(self, number: int, token: str) -> Scope:
        return {
            "type": "http",
            "method": "GET",
            "path": "/v1/session",
            "query_string": b"",
            "headers": [(b"authorization", f"Bearer {token}".encode())],
            "client": (f"2001:db8:{number >> 16:x}:{number & 0xFFFF:x}::1", 1),
            "app": self._app,
            "state": {},
        }


def _door(request: Request) -> None:
    """What the flood guard stands in front of."""


async def measure(database: str) -> list[int]:
    clock = MovableClock()
    settings = read({"FAL_KEY": "a:b", "PROXY_SESSION_SECRETS": "x" * 40})
    upstream = Upstream(settings.fal, EngineTransport())
    parts = Container(
        settings=settings,
        catalog=built_in(),
        metrics=Metrics(),
        upstream=upstream,
        stores=SqlStores(database),
        counters=MemoryCounters(),
        clock=clock,
        drain=Drain(settings.server.drain_seconds),
    )
    await parts.stores.prepare()
    await parts.directory.apply(FILE, by=AUTHOR)
    try:
        names = Names(parts, clock)
        await names.ask_up_to(WARM)
        before, grown = _memory(), []
        for end, seconds in ((FULL, 0), (FULL + MORE, 0), (FULL + MORE + AFTERWARDS, 4000)):
            clock.advance(seconds)
            await names.ask_up_to(end)
            grown.append(_memory() - before)
        return grown
    finally:
        await parts.directory.close()
        await parts.stores.close()


def _memory() -> int:
    gc.collect()
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure(sys.argv[1]))))
