"""Who asks fal about a job: the reconciler, unless this process follows it anyway."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from proxy.catalog import built_in
from proxy.jobs.reconcile import QUIET_SECONDS, Reconciler
from proxy.jobs.settlement import Settlement
from proxy.policy.leases import Leases
from proxy.policy.quota import Bookkeeper
from proxy.stores.base import Accept, Reserve
from proxy.stores.counters import MemoryCounters
from proxy.stores.sql import SqlStores
from proxy.upstream.client import Upstream
from tests.jobs.hubs import JOB, settings
from tests.support.clock import MovableClock
from tests.support.scripted import ID, ScriptedFal, whole_life

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("is_followed", [True, False])
async def test_a_job_that_is_followed_is_not_asked_about(tmp_path: Path, is_followed: bool) -> None:
    fal, clock, counters = ScriptedFal(whole_life()[:1]), MovableClock(), MemoryCounters()
    stores = SqlStores(f"sqlite:///{tmp_path / 'proxy.db'}")
    await stores.prepare()
    leases = Leases(counters, stores.ledger, clock)
    settlement = Settlement(Bookkeeper(stores.ledger, clock), leases, built_in(), clock)
    upstream = Upstream(settings().fal, fal)
    reconciler = Reconciler(stores.ledger, upstream, settlement, leases, clock, lambda _: is_followed)
    expires_at = clock.now() + QUIET_SECONDS + 1
    job = replace(JOB, request_id=None, state="reserved", checked_at=clock.now(), expires_at=expires_at)
    await stores.ledger.commit([Reserve(job)])
    await stores.ledger.commit([Accept(job.id, ID, expires_at)])
    assert await reconciler.run_once() == 0
    clock.advance(QUIET_SECONDS + 0.5)
    assert await reconciler.run_once() == 1 and fal.calls == ([] if is_followed else ["status"])
    # Either way it lives on: it was heard of just now.
    found = await stores.ledger.get(job.id)
    assert found and found.state == "accepted" and found.checked_at == clock.now() and found.expires_at > expires_at
    assert await counters.in_use("subject:acme:alice", clock.now()) == 1
    assert await reconciler.run_once() == 0
    await stores.close()
