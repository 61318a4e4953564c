"""A process removes what is past its time by its own clock, and nothing else."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest

from proxy.jobs.retention import CALLS_SECONDS, FOUND_AT_ONCE, REST_SECONDS, REST_TIMES, Cleaner, rest_after
from proxy.limits.accounts import window_start
from proxy.limits.statements import parse_month, read_statement
from proxy.stores.alerts import Alert
from proxy.stores.directory import Revocation
from proxy.stores.grants import GrantFilter
from proxy.stores.ledger import ADDRESS_PREFIX, Account, Bucket, Charge, Granted, Job, Reserve, Settle
from proxy.stores.retention import Expiry, Removal, Row
from proxy.stores.sql import SqlStores
from proxy.stores.uploads import Part
from proxy.tenants.plans import MAX_SESSION_SECONDS
from tests.stores.records import CLAIM, UPLOAD, grant, job
from tests.support.audit_log import AUTHOR
from tests.support.clock import MovableClock
from tests.support.databases import SqliteDatabases
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.anyio
DAY = 86_400.0
RETENTION = 30 * DAY
AUDIT = 100 * DAY


@pytest.fixture
async def stores(sqlite_databases: SqliteDatabases) -> AsyncIterator[SqlStores]:
    stores = SqlStores(sqlite_databases.migrated())
    yield stores
    await stores.close()


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture
def cleaner(stores: SqlStores, clock: MovableClock) -> Cleaner:
    return Cleaner(stores.retention, clock, RETENTION, AUDIT)


def account(clock: MovableClock, window: str = "day") -> Bucket:
    return Bucket("acme", "alice", "requests", window, window_start(window, clock.now()))


async def call(stores: SqlStores, clock: MovableClock, *charges: Charge, settles: bool = True) -> Job:
    one = job(*charges, submitted_at=clock.now(), checked_at=clock.now(), expires_at=clock.now() + 60)
    await stores.ledger.commit([Reserve(one)])
    if settles:
        await stores.ledger.commit([Settle(one.id, {"requests": 10**6}, clock.now())])
    return one


async def test_each_kind_of_row_is_deleted_at_its_time(
    stores: SqlStores, clock: MovableClock, cleaner: Cleaner
) -> None:
    clock.set("2099-01-10T12:00:00Z")
    now, today = clock.now(), account(clock)
    await call(stores, clock, Charge(today, 1, 10))
    await stores.idempotency.claim(replace(CLAIM, created_at=now), 0.0)
    await stores.uploads.add(replace(UPLOAD, expires_at=now + 600, in_parts=True))
    await stores.uploads.begin(Part(UPLOAD.id, 1, "first", 1))
    await stores.alerts.add([Alert("one", "quota.reached", "acme", now)])
    for number in range(2):
        await stores.directory.revoke(
            Revocation("acme", f"s-{number}", None, now, now + 600), by=replace(AUTHOR, at=now)
        )
    for days, wanted in (
        (0.9, {}),
        (0.2, {"idempotency": 1, "upload_parts": 1, "uploads": 1, "revocations": 1}),
        (28.8, {}),
        # A job that was not counted before is counted now, also in the sum of its hour.
        (0.2, {"jobs": 1, "alerts": 1, "spend_hours": 1}),
        (1.0, {"accounts": 1}),
        (68.8, {}),
        (0.2, {"audit": 2}),
        (999.0, {}),
    ):
        clock.advance(days * DAY)
        assert await cleaner.run_once() == wanted, days
    (row,) = await stores.ledger.usage("acme", None, now - DAY, now + DAY, frozenset())
    assert (row.calls, row.used) == (1, {"requests": 10**6})


@pytest.mark.parametrize("window", ["minute", "hour", "day", "month"])
async def test_the_account_of_a_window_stays_for_the_retention(
    stores: SqlStores, clock: MovableClock, cleaner: Cleaner, window: str
) -> None:
    clock.set("2099-01-10T12:34:30Z")
    mine = account(clock, window)
    await call(stores, clock, Charge(mine, 1, 10))
    ends = {"minute": "12:35", "hour": "13:00", "day": None, "month": None}[window]
    end = {"day": "2099-01-11T00:00:00Z", "month": "2099-02-01T00:00:00Z"}.get(window, f"2099-01-10T{ends}:00Z")
    clock.set(end)
    clock.advance(RETENTION - 1)
    await cleaner.run_once()
    assert await stores.ledger.accounts([mine])
    clock.advance(60)
    assert (await cleaner.run_once())["accounts"] == 1


async def test_the_account_of_an_address_stays_for_a_day(
    stores: SqlStores, clock: MovableClock, cleaner: Cleaner
) -> None:
    clock.set("2099-01-10T12:34:30Z")
    mine = account(clock)._replace(subject=f"{ADDRESS_PREFIX}0123456789abcdef01234567")
    alices = account(clock)
    busy = await call(stores, clock, Charge(mine, 1, 10), Charge(alices, 1, 10), settles=False)
    clock.set("2099-01-11T23:59:59Z")
    other = account(clock)._replace(subject=mine.subject)
    await call(stores, clock, Charge(other, 1, 10))
    clock.set("2099-01-12T00:00:01Z")
    assert await cleaner.run_once() == {}, "a call that began in that window is not over"
    await stores.ledger.commit([Settle(busy.id, None, clock.now())])
    assert await cleaner.run_once() == {"accounts": 1}
    assert set(await stores.ledger.accounts([mine, other, alices])) == {other, alices}


async def test_a_lifetime_stays_and_the_account_of_a_session_goes_after_the_longest_session(
    stores: SqlStores, clock: MovableClock, cleaner: Cleaner
) -> None:
    clock.set("2099-01-10T12:34:30Z")
    lifetime = account(clock, "lifetime")
    session = lifetime._replace(window="session", window_start=int(clock.now()))
    await call(stores, clock, Charge(lifetime, 1, 10), Charge(session, 1, 10))
    clock.advance(MAX_SESSION_SECONDS + RETENTION - 1)
    assert await cleaner.run_once() == {"jobs": 1, "spend_hours": 1}
    clock.advance(60)
    assert await cleaner.run_once() == {"accounts": 1}
    clock.advance(9999 * DAY)
    await cleaner.run_once()
    assert set(await stores.ledger.accounts([lifetime, session])) == {lifetime}


async def test_no_account_is_removed_before_the_jobs_that_charge_it(
    stores: SqlStores, clock: MovableClock, cleaner: Cleaner
) -> None:
    """Nothing is reserved on it, and the job may still use something."""
    mine = account(clock)
    running = await call(stores, clock, Charge(mine, 0, 10), settles=False)
    clock.advance(400 * DAY)
    assert await cleaner.run_once() == {}
    await stores.ledger.commit([Settle(running.id, {"requests": 3}, clock.now())])
    assert await stores.ledger.accounts([mine]) == {mine: Account(3, 0)}
    assert (await cleaner.run_once())["accounts"] == 1


class Noted:
    """A store that notes what it is asked, and has the time for so many rows at once."""

    def __init__(self, stores: SqlStores, *, is_alone: bool = True, most: int = 30) -> None:
        self._retention = stores.retention
        self._is_alone = is_alone
        self._most = most
        self.batch_seconds = self._retention.batch_seconds
        self.found, self.seconds = list[int](), list[float]()

    async def oldest_open(self) -> float | None:
        return await self._retention.oldest_open()

    async def find(self, kind: str, expiry: Expiry, most: int) -> Sequence[Row]:
        found = await self._retention.find(kind, expiry, most)
        self.found.append(len(found))
        return found

    async def remove(self, kind: str, found: Sequence[Row], seconds: float) -> Removal | None:
        self.seconds.append(seconds)
        return await self._retention.remove(kind, found[: self._most], 60.0) if self._is_alone else None


async def _many_jobs(stores: SqlStores, clock: MovableClock, number: int) -> None:
    jobs = [job(submitted_at=clock.now()) for _ in range(number)]
    for start in range(0, number, 500):
        some = jobs[start : start + 500]
        await stores.ledger.commit([Reserve(one) for one in some])
        await stores.ledger.commit([Settle(one.id, {"requests": 1}, clock.now()) for one in some])


async def test_many_rows_go_in_small_batches_and_are_counted(stores: SqlStores, clock: MovableClock) -> None:
    number, counted = FOUND_AT_ONCE + 120, Counter[str]()
    await _many_jobs(stores, clock, number)
    clock.advance(RETENTION + 1)
    noted = Noted(stores)
    cleaner = Cleaner(noted, clock, RETENTION, AUDIT, lambda kind, rows: counted.update({kind: rows}))
    assert await cleaner.run_once() == {"jobs": number, "spend_hours": 1} == counted
    assert max(noted.found) == FOUND_AT_ONCE and noted.seconds == [noted.batch_seconds] * (17 + 5)


def test_a_run_rests_longer_after_long_removals_and_beside_calls() -> None:
    assert rest_after(0.0, 0) == REST_SECONDS
    assert rest_after(1.0, 0) == REST_TIMES
    assert REST_SECONDS < rest_after(0.0, 5) < rest_after(0.0, 10) < rest_after(1.0, 10)
    assert rest_after(0.0, 10**9) == REST_SECONDS + CALLS_SECONDS


async def test_a_run_ends_where_another_process_removes(stores: SqlStores, clock: MovableClock) -> None:
    await _many_jobs(stores, clock, 100)
    clock.advance(RETENTION + 1)
    noted = Noted(stores, is_alone=False)
    assert await Cleaner(noted, clock, RETENTION, AUDIT).run_once() == {}
    assert len(noted.seconds) == 1


async def test_a_run_is_logged(
    stores: SqlStores, clock: MovableClock, cleaner: Cleaner, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await _many_jobs(stores, clock, 3)
    await cleaner.run_once()
    assert not caplog.records
    clock.advance(RETENTION + 1)
    await cleaner.run_once()
    (record,) = caplog.records
    assert record.getMessage() == "expired rows removed"
    facts = record.__dict__["log_fields"]
    assert facts["jobs"] == 3 and facts["seconds"] >= 0


async def test_a_started_cleaner_goes_on_after_an_error(
    stores: SqlStores, clock: MovableClock, caplog: pytest.LogCaptureFixture, sqlite_databases: SqliteDatabases
) -> None:
    """The database has no tables at first."""
    url = sqlite_databases.empty()
    late = SqlStores(url)
    cleaner = Cleaner(late.retention, clock, 0.5, AUDIT)
    cleaner.start()
    try:

        async def is_warned() -> bool:
            return any(getattr(record, "log_fields", {}).get("work") == "retention" for record in caplog.records)

        await wait_until_async(is_warned, "no run failed")
        await late.migrate()
        one = await call(late, clock)
        clock.advance(1)

        async def is_removed() -> bool:
            return await late.ledger.get(one.id) is None

        await wait_until_async(is_removed, "the job is still there")
    finally:
        await cleaner.close()
        await late.close()
    assert not [task for task in asyncio.all_tasks() if "Cleaner" in repr(task)]


async def test_a_grant_goes_with_its_account_once_it_has_expired_and_no_call_spends_it(
    stores: SqlStores, clock: MovableClock, cleaner: Cleaner
) -> None:
    clock.set("2099-01-10T12:00:00Z")
    now = clock.now()
    spent, endless = grant(10, "alice", expires_at=now + DAY), grant(10, "alice")
    for one in (spent, endless):
        await stores.grants.add(one, by=replace(AUTHOR, at=now))
    running = job(Charge(account(clock), 3, 0), submitted_at=now, checked_at=now, expires_at=now + 60)
    assert await stores.ledger.commit([Reserve(running, has_grants=True)]) == [Granted()]
    assert await stores.ledger.accounts([spent.bucket]) == {spent.bucket: Account(0, 3)}
    clock.advance(DAY + RETENTION + 1)
    # A call that is not over is still to be booked on it.
    assert await cleaner.run_once() == {}
    await stores.ledger.commit([Settle(running.id, {"requests": 3}, clock.now())])
    assert await cleaner.run_once() == {"grants": 1, "accounts": 2}
    assert [one.grant for one in await stores.grants.list_grants(GrantFilter("acme"), 10)] == [endless]
    assert await stores.ledger.accounts([spent.bucket]) == {}
    clock.advance(9999 * DAY)
    assert "grants" not in await cleaner.run_once()
    month = parse_month("2099-01", clock.now())
    statement = await read_statement(stores.ledger, stores.statements, "acme", month, clock.now())
    assert dict(statement.granted) == {("subject", "requests"): 3}
