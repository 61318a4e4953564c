"""What calls ask of the stores leaves no objects behind that only the garbage collector could free.

Expressions that are combined with `&`, or computed with, refer to themselves: each one that a call builds is such a
cycle. They are combined with `and_`, or built once.
"""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable
from dataclasses import replace
from itertools import count

import pytest

from proxy.stores.directory import Revocation
from proxy.stores.ledger import Accept, JobFilter, Reserve, Settle
from proxy.stores.sql import SqlStores
from proxy.stores.uploads import Part
from tests.stores.conftest import OpenStores
from tests.stores.records import CLAIM, UPLOAD, job
from tests.support.audit_log import AUTHOR
from tests.support.databases import SqliteDatabases

pytestmark = pytest.mark.anyio
COUNT = 10
_numbers = count()
Work = Callable[[SqlStores], Awaitable[object]]


async def _claim(stores: SqlStores) -> None:
    claim = replace(CLAIM, key_hash=f"{next(_numbers)}")
    await stores.idempotency.claim(claim, 0.0)
    await stores.idempotency.claim(claim, 0.0)
    await stores.idempotency.find(claim)
    await stores.idempotency.take_over(claim, claim.job_id)
    await stores.idempotency.finish(claim, {"status": 200})
    await stores.idempotency.forget(claim)


async def _book(stores: SqlStores) -> None:
    one = job(id=f"{next(_numbers):032x}")
    await stores.ledger.commit([Reserve(one)])
    await stores.ledger.commit([Accept(one.id, one.id, 9e9)])
    await stores.ledger.renew_jobs([one.id], 1.0, 9e9)
    await stores.ledger.commit([Settle(one.id, {}, 1010.0)])


async def _look(stores: SqlStores) -> None:
    await stores.ledger.find("a")
    await stores.ledger.get("a")
    await stores.ledger.list_jobs(JobFilter("acme", "alice"), 5)
    every = JobFilter("acme", "alice", ["fal-ai/llava-next"], True, False, 1.0, (2.0, "ab"))
    await stores.ledger.list_jobs(every, 5)
    await stores.ledger.usage("acme", "alice", 0.0, 9e9, frozenset({"day"}))


async def _reconcile(stores: SqlStores) -> None:
    await stores.ledger.open_jobs()
    await stores.ledger.count_in_flight()
    await stores.ledger.queued_among(["a", "b"])
    await stores.ledger.take_due(1.0, 2.0, 5)
    await stores.ping()


async def _upload(stores: SqlStores) -> None:
    part = Part(f"u-{next(_numbers)}", 1, "first", 1)
    await stores.uploads.add(replace(UPLOAD, id=part.upload, in_parts=True))
    await stores.uploads.get(part.upload)
    await stores.uploads.begin(part)
    await stores.uploads.is_current(part)
    await stores.uploads.land(part, "etag")
    await stores.uploads.list_parts(part.upload)
    await stores.uploads.finish(part.upload, 1)
    await stores.uploads.drop(part)


async def _revoke(stores: SqlStores) -> None:
    await stores.directory.revoke(Revocation("acme", f"s-{next(_numbers)}", None, 1.0, 9.0), by=AUTHOR)
    await stores.directory.load_revocations(1)
    await stores.directory.touch_key("k1", 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("work", [_claim, _book, _look, _reconcile, _upload, _revoke])
async def test_transactions_leave_nothing_to_the_garbage_collector(
    sqlite_databases: SqliteDatabases, open_stores: OpenStores, work: Work
) -> None:
    stores = open_stores(sqlite_databases.migrated())
    # A statement that is compiled for the first time leaves some objects, once and at no certain time.
    await _objects_left(stores, work)
    assert min([await _objects_left(stores, work) for _ in range(2)]) == 0


async def _objects_left(stores: SqlStores, work: Work) -> int:
    gc.collect()
    gc.disable()
    try:
        for _ in range(COUNT):
            await work(stores)
        return gc.collect() // COUNT
    finally:
        gc.enable()
