"""The owner of a job, and the cost of a lookup: the same for another caller's job and for an unknown one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from proxy.errors import NotFound
from proxy.jobs.ownership import Ownership
from proxy.stores.ledger import Accept, Job, Reserve
from proxy.stores.sql import SqlStores
from proxy.tenants.caller import Caller, Session
from proxy.tenants.directory import Directory
from proxy.tenants.plans import Plan, Tenant
from proxy.tenants.terms import user_terms
from tests.stores.records import job
from tests.support.clock import MovableClock
from tests.support.databases import SqliteDatabases

pytestmark = pytest.mark.anyio
NEXT, COUNTING = "fal-ai/llava-next", "fal-ai/llavav15-13b"
#: Two endpoints of one app.
FAST, SLOW = "acme/painter/fast", "acme/painter/slow"


class CountingLedger:
    """The ledger, and how often it was asked for a job."""

    def __init__(self, stores: SqlStores) -> None:
        self._ledger = stores.ledger
        self.reads = 0

    async def find(self, request_id: str) -> Job | None:
        self.reads += 1
        return await self._ledger.find(request_id)


@pytest.fixture
async def stores(sqlite_databases: SqliteDatabases) -> AsyncIterator[SqlStores]:
    stores = SqlStores(sqlite_databases.migrated())
    for request_id, endpoint in (("r-1", NEXT), ("r-fast", FAST), ("r-slow", SLOW)):
        queued = job(endpoint=endpoint)
        await stores.ledger.commit([Reserve(queued), Accept(queued.id, request_id, 9e9)])
    yield stores
    await stores.close()


def caller(subject: str = "alice", tenant: str = "acme", endpoints: tuple[str, ...] | None = None) -> Caller:
    plan = Plan(endpoints=frozenset({NEXT, COUNTING, FAST, SLOW}))
    session = Session("s-1", tenant, subject, 0.0, 9e9, endpoints)
    return Caller(Tenant(id=tenant, plan="free"), subject, "free", user_terms(plan), plan.endpoints, session)


def owners_of(ledger: CountingLedger, stores: SqlStores) -> Ownership:
    return Ownership(ledger, Directory(stores.directory, MovableClock()))  # type: ignore[arg-type]


STRANGERS = [caller("bob"), caller(tenant="globex"), replace(caller(), subject="", session=None, key_id="k-1")]


@pytest.mark.parametrize("is_known", [True, False], ids=["owner-asked-before", "fresh"])
@pytest.mark.parametrize("stranger", STRANGERS, ids=["subject", "tenant", "key"])
async def test_a_foreign_job_and_an_unknown_one_cost_the_same(
    stores: SqlStores, stranger: Caller, is_known: bool
) -> None:
    ledger = CountingLedger(stores)
    owners = owners_of(ledger, stores)
    if is_known:
        assert (await owners.find_by_id("r-1", caller())).endpoint == NEXT
    for request_id in ("r-1", "r-none"):
        for _ in range(3):
            before = ledger.reads
            with pytest.raises(NotFound):
                await owners.find_by_id(request_id, stranger)
            assert ledger.reads == before + 1


async def test_a_callers_own_job_is_read_once(stores: SqlStores) -> None:
    ledger = CountingLedger(stores)
    owners = owners_of(ledger, stores)
    for _ in range(3):
        assert (await owners.find_by_id("r-1", caller())).request_id == "r-1"
    assert ledger.reads == 1


async def test_a_narrowed_session_finds_the_jobs_of_its_endpoints_only(stores: SqlStores) -> None:
    """Of exactly its endpoints, not of their app. A job that it may not see costs as much as an unknown one."""
    ledger = CountingLedger(stores)
    owners = owners_of(ledger, stores)
    for request_id in ("r-1", "r-fast", "r-slow"):
        await owners.find_by_id(request_id, caller())
    narrowed = caller(endpoints=(FAST,))
    assert (await owners.find_by_id("r-fast", narrowed)).endpoint == FAST
    for session in (narrowed, caller(endpoints=())):
        for request_id in ("r-slow", "r-1", "r-none"):
            before = ledger.reads
            with pytest.raises(NotFound):
                await owners.find_by_id(request_id, session)
            assert ledger.reads == before + 1
