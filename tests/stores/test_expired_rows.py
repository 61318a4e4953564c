"""Rows with a time of their own, and accounts, are removed in batches on every kind of database."""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import replace
from functools import partial

import pytest

from proxy.stores.alerts import Alert
from proxy.stores.directory import Revocation
from proxy.stores.grants import Grant
from proxy.stores.ledger import Accept, Account, Bucket, Charge, Granted, Job, Reserve, Settle
from proxy.stores.retention import KINDS, Expiry, Removal
from proxy.stores.sql import SqlStores, schema
from proxy.stores.sql.retention import _KINDS, ROWS_AT_ONCE
from proxy.stores.sql.spend import add_to_hours
from proxy.stores.uploads import Part
from tests.stores.expired import count, expiry, remove, removed
from tests.stores.records import ALICES, CLAIM, REQUESTS, UPLOAD, job
from tests.support.audit_log import AUTHOR
from tests.support.query_plans import Plan, query_plans

pytestmark = pytest.mark.anyio
DAY = 86_400
FOR_EVER = 9e9


@pytest.mark.parametrize("kind", KINDS)
async def test_a_transaction_stops_when_its_time_is_over(stores: SqlStores, kind: str) -> None:
    await _fill(stores, ROWS_AT_ONCE + 3)
    if kind == "uploads":
        await removed(stores, "upload_parts", _EVERYTHING)
    found = await stores.retention.find(kind, _EVERYTHING, ROWS_AT_ONCE + 2)
    assert len(found) == ROWS_AT_ONCE + 2
    for seconds, tried, removed_ in ((0.0, ROWS_AT_ONCE, ROWS_AT_ONCE), (60.0, ROWS_AT_ONCE + 2, 2)):
        removal = await stores.retention.remove(kind, found, seconds)
        assert removal is not None and removal._replace(calls=0) == Removal(tried, removed_)


@pytest.mark.parametrize("kind", KINDS)
async def test_rows_are_locked_and_deleted_by_their_keys(stores: SqlStores, database_url: str, kind: str) -> None:
    """The statements hold locks that calls wait for, and the table may be long."""
    await _fill(stores, 3)
    if kind == "uploads":
        await removed(stores, "upload_parts", _EVERYTHING)
    found = await stores.retention.find(kind, _EVERYTHING, 2)
    with query_plans() as plans:
        assert await remove(stores, kind, found) == 2
    if database_url.startswith("sqlite:"):
        plans += _plans_in_file(database_url, kind)
    assert len(plans) >= 2
    assert [plan for plan in plans if plan.whole_tables] == []


def _plans_in_file(url: str, kind: str) -> list[Plan]:
    """Of the statements that do without SQLAlchemy."""
    plans, rows = list[Plan](), _KINDS[kind].in_file
    with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        for statement in (rows.selection(3), rows.deletion(3)):
            keys = ["?"] * statement.count("?")
            steps = connection.execute(f"EXPLAIN QUERY PLAN {statement}", keys).fetchall()
            plans.append(Plan(statement, [str(step[-1]) for step in steps]))
    assert all(plan.steps for plan in plans)
    return plans


@pytest.mark.parametrize("kind", KINDS)
async def test_a_batch_touches_no_more_than_it_was_given(stores: SqlStores, database_url: str, kind: str) -> None:
    table = schema.metadata.tables["quota_usage" if kind == "accounts" else kind]
    await _fill(stores, 12)
    if kind == "uploads":
        await removed(stores, "upload_parts", _EVERYTHING)
    before = await count(database_url, table)
    found = await stores.retention.find(kind, _EVERYTHING, 5)
    assert len(found) == 5
    assert await remove(stores, kind, found) == 5
    assert await count(database_url, table) == before - 5
    # Another process that found the same rows removes nothing.
    assert await remove(stores, kind, found) == 0


_EVERYTHING = Expiry(
    5000.0, {"day": FOR_EVER}, 5000.0, 5000.0, 5000.0, 5000.0, FOR_EVER, spend_hours=FOR_EVER, grants=FOR_EVER
)


async def _fill(stores: SqlStores, size: int) -> None:
    """As many rows of every kind, all of them old."""
    for number in range(size):
        one = job(Charge(REQUESTS._replace(window_start=number), 1, 10))
        await stores.ledger.commit([Reserve(one), Settle(one.id, {"requests": 1}, 1010.0)])
        await stores.idempotency.claim(replace(CLAIM, key_hash=f"{number}"), 0.0)
        await stores.uploads.add(replace(UPLOAD, id=f"u-{number}", in_parts=True))
        await stores.uploads.begin(Part(f"u-{number}", 1, "first", 1))
        await stores.directory.revoke(Revocation("acme", f"s-{number}", None, 1.0, 9.0), by=AUTHOR)
        await stores.alerts.add([Alert(f"{number}", "quota.reached", "acme", 9.0)], lambda _: ["acme"])
        await stores.grants.add(
            Grant(f"g-{number}", "acme", "alice", "requests", 9, "a gift", 1.0, expires_at=9.0), by=AUTHOR
        )
    hours = [job(submitted_at=3600.0 * number) for number in range(size)]
    await stores.ledger._database.write(partial(add_to_hours, settled=hours))


# Rows with a time of their own


async def test_uploads_go_after_their_parts(stores: SqlStores, database_url: str) -> None:
    for id_, expires_at in (("old", 900.0), ("new", 2000.0)):
        await stores.uploads.add(replace(UPLOAD, id=id_, in_parts=True, expires_at=expires_at))
        for number in range(1, 8):
            await stores.uploads.begin(Part(id_, number, "first", 1))
    past = expiry(uploads=1000.0)
    assert await stores.retention.find("uploads", past, 9) == []
    assert await removed(stores, "upload_parts", past, most=3) == 7
    assert await removed(stores, "uploads", past) == 1
    assert await stores.uploads.get("old") is None and await stores.uploads.get("new") is not None
    assert await count(database_url, schema.upload_parts) == 7


async def test_a_key_that_was_taken_again_stays(stores: SqlStores) -> None:
    await stores.idempotency.claim(CLAIM, 0.0)
    found = await stores.retention.find("idempotency", expiry(idempotency=200.0), 9)
    again = replace(CLAIM, created_at=300.0, job_id="j-2")
    assert await stores.idempotency.claim(again, 200.0) is None
    assert await remove(stores, "idempotency", found) == 0
    assert await stores.idempotency.find(CLAIM) == again


async def test_a_caller_removes_no_key_but_its_own(stores: SqlStores) -> None:
    for number in range(3):
        await stores.idempotency.claim(replace(CLAIM, key_hash=f"{number}"), 0.0)
    assert await stores.idempotency.claim(replace(CLAIM, key_hash="0", job_id="j-2", created_at=900.0), 500.0) is None
    assert await removed(stores, "idempotency", expiry(idempotency=500.0)) == 2


async def test_the_newest_revocation_stays(stores: SqlStores) -> None:
    """A process reads what is behind the last number that it knows, and SQLite would give that number again."""
    for number in range(3):
        await stores.directory.revoke(Revocation("acme", f"s-{number}", None, 1.0, 9.0), by=AUTHOR)
    newest = (await stores.directory.load()).newest
    assert await removed(stores, "revocations", expiry(revocations=100.0)) == 2
    await stores.directory.revoke(Revocation("acme", "s-9", None, 200.0, 300.0), by=AUTHOR)
    (new,) = (await stores.directory.load_revocations(newest)).revocations
    assert new.session_id == "s-9"
    # The one before is no longer the newest.
    assert await removed(stores, "revocations", expiry(revocations=100.0)) == 1


# Accounts


def days_before(start: float) -> Expiry:
    return replace(expiry(), accounts={"day": start})


async def _account(stores: SqlStores, bucket: Bucket, *, settles: bool = True) -> Job:
    one = job(Charge(bucket, 1, 10))
    await stores.ledger.commit([Reserve(one)])
    if settles:
        await stores.ledger.commit([Settle(one.id, {bucket.unit: 1}, 1010.0)])
    return one


async def test_accounts_of_old_windows_go_unless_something_is_reserved(stores: SqlStores) -> None:
    old, busy, young = (
        REQUESTS._replace(window_start=start * DAY, subject=name) for start, name in ((1, ""), (1, "bob"), (5, ""))
    )
    month = ALICES
    for bucket in (old, young, month):
        await _account(stores, bucket)
    await _account(stores, busy, settles=False)
    assert await removed(stores, "accounts", days_before(5.0 * DAY)) == 1
    assert set(await stores.ledger.accounts([old, busy, young, month])) == {busy, young, month}


async def test_an_account_that_is_used_again_stays(stores: SqlStores) -> None:
    await _account(stores, REQUESTS)
    found = await stores.retention.find("accounts", days_before(FOR_EVER), 9)
    await _account(stores, REQUESTS, settles=False)
    assert await remove(stores, "accounts", found) == 0
    assert await stores.ledger.accounts([REQUESTS]) == {REQUESTS: Account(1, 1)}


async def test_an_account_that_was_removed_fails_no_call(stores: SqlStores) -> None:
    """The process has it in mind, and finds it gone."""
    await _account(stores, REQUESTS)
    assert await removed(stores, "accounts", days_before(FOR_EVER)) == 1
    one, two = job(Charge(REQUESTS, 4, 10)), job(Charge(ALICES, 4, 10))
    assert await stores.ledger.commit([Reserve(one), Reserve(two)]) == [Granted(), Granted()]
    assert await stores.ledger.commit([Settle(one.id, {"requests": 2}, 1020.0)]) == [Granted()]
    assert await stores.ledger.accounts([REQUESTS]) == {REQUESTS: Account(2, 0)}


async def test_the_oldest_job_that_is_not_over(stores: SqlStores) -> None:
    assert await stores.retention.oldest_open() is None
    jobs = [job(submitted_at=float(moment)) for moment in (10, 20, 30)]
    await stores.ledger.commit([Reserve(one) for one in jobs])
    await stores.ledger.commit([Accept(jobs[1].id, "r-1", 99.0), Settle(jobs[0].id, None, 40.0)])
    assert await stores.retention.oldest_open() == 20.0
