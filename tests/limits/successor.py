"""A proxy that starts on the database of proxies that have ended in any way, after some time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from proxy.catalog import built_in
from proxy.jobs.fal_queue import FalQueue
from proxy.jobs.reconciler import Reconciler
from proxy.jobs.settlement import Settlement
from proxy.limits.lease_keeper import BEAT_SECONDS
from proxy.limits.leases import Leases
from proxy.limits.quotas import CALL_SECONDS, Quotas
from proxy.settings import read
from proxy.stores.counters import Counters
from proxy.stores.ledger import Ledger
from proxy.stores.memory import MemoryCounters
from proxy.stores.redis.counters import RedisCounters
from proxy.stores.sql import SqlStores
from proxy.upstream.client import Upstream
from proxy.upstream.transport import EngineTransport
from tests.support.clock import MovableClock


@dataclass
class Successor:
    """The parts of a started proxy that settle what ended proxies left open."""

    ledger: Ledger
    counters: Counters
    clock: MovableClock
    reconciler: Reconciler
    leases: Leases

    async def keep_leases(self, seconds: float) -> None:
        """Let time pass with the beats of a live process."""
        for _ in range(round(seconds / BEAT_SECONDS)):
            self.clock.advance(BEAT_SECONDS)
            await self.leases.keeper.keep()

    async def settle_everything(self) -> int:
        """Let calls without news expire, and ask fal about the jobs until none is due; how many were due."""
        self.clock.advance(CALL_SECONDS + 1)
        looked_after = 0
        while due := await self.reconciler.run_once():
            looked_after += due
        return looked_after


@asynccontextmanager
async def start_successor(environ: dict[str, str]) -> AsyncIterator[Successor]:
    """A proxy that has started with these settings, without its HTTP side; its clock is moved by the test."""
    settings, clock = read(environ, dev=False), MovableClock()
    stores = SqlStores(settings.stores.database_url.reveal())
    redis_url = settings.stores.redis_url
    counters: Counters = RedisCounters(redis_url.reveal(), uses_server_time=False) if redis_url else MemoryCounters()
    leases, quotas = Leases(counters, stores.ledger, clock), Quotas(stores.ledger, clock)
    upstream = Upstream(settings.fal, EngineTransport())
    settlement = Settlement(quotas, leases, built_in(), clock)
    reconciler = Reconciler(stores.ledger, upstream, FalQueue(upstream, settlement), settlement, leases, clock)
    await stores.prepare()
    await leases.keeper.keep()
    try:
        yield Successor(stores.ledger, counters, clock, reconciler, leases)
    finally:
        await reconciler.close()
        await quotas.close()
        await counters.close()
        await upstream.close()
        await stores.close()
