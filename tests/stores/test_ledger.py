"""Reservations, what was used, and whose every job is, on every kind of database."""

from __future__ import annotations

import pytest

from proxy.errors import StoreUnavailable
from proxy.stores.batching import MOST_AT_ONCE
from proxy.stores.ledger import (
    Accept,
    Account,
    Bucket,
    Charge,
    Exhausted,
    Granted,
    Reserve,
    Settle,
    Stale,
)
from proxy.stores.sql import SqlStores
from proxy.stores.usage import UsageRow
from tests.stores.conftest import OpenStores
from tests.stores.records import ALICES, REQUESTS, job
from tests.support.audit import read_report

pytestmark = pytest.mark.anyio
BOBS = ALICES._replace(subject="bob")
DAY = 86_400


async def test_a_job_is_read_as_it_was_written(stores: SqlStores) -> None:
    wanted = job(Charge(REQUESTS, 1, 10), Charge(ALICES, 64, 2**62), used={"requests": 1, "tokens": 64, "usd": 2**53})
    assert await stores.ledger.commit([Reserve(wanted)]) == [Granted()]
    assert await stores.ledger.get(wanted.id) == wanted
    assert await stores.ledger.get(wanted.id.upper() + "?") is None


async def test_a_reservation_is_booked_or_freed_in_the_end(stores: SqlStores) -> None:
    one, two = job(Charge(REQUESTS, 5, 10)), job(Charge(REQUESTS, 3, 10))
    await stores.ledger.commit([Reserve(one), Reserve(two)])
    assert await stores.ledger.accounts([REQUESTS]) == {REQUESTS: Account(0, 8)}
    await stores.ledger.commit([Settle(one.id, {"requests": 4}, 1010.0)])
    assert await stores.ledger.accounts([REQUESTS]) == {REQUESTS: Account(4, 3)}
    await stores.ledger.commit([Settle(two.id, None, 1020.0)])
    assert await stores.ledger.accounts([REQUESTS, BOBS]) == {REQUESTS: Account(4, 0)}
    settled, released = await stores.ledger.get(one.id), await stores.ledger.get(two.id)
    assert settled == one._replace(state="settled", used={"requests": 4}, checked_at=1010.0)
    assert released == two._replace(state="released", used={}, checked_at=1020.0)


async def test_a_call_that_fal_ran_is_booked_even_beyond_the_limit(stores: SqlStores) -> None:
    one = job(Charge(REQUESTS, 10, 10))
    await stores.ledger.commit([Reserve(one), Settle(one.id, {"requests": 25}, 1010.0)])
    assert await stores.ledger.accounts([REQUESTS]) == {REQUESTS: Account(25, 0)}
    assert await stores.ledger.commit([Reserve(job(Charge(REQUESTS, 1, 10)))]) == [Exhausted(REQUESTS, 0)]


async def test_a_refusal_takes_nothing_and_says_what_is_left(stores: SqlStores) -> None:
    first = job(Charge(REQUESTS, 4, 10), Charge(ALICES, 90, 100))
    refused = job(Charge(REQUESTS, 4, 10), Charge(ALICES, 11, 100))
    assert await stores.ledger.commit([Reserve(first), Reserve(refused)]) == [Granted(), Exhausted(ALICES, 10)]
    assert await stores.ledger.accounts([REQUESTS, ALICES]) == {REQUESTS: Account(0, 4), ALICES: Account(0, 90)}
    assert await stores.ledger.get(refused.id) is None


async def test_the_whole_limit_can_be_used(stores: SqlStores) -> None:
    calls = [Reserve(job(Charge(REQUESTS, 1, 3))) for _ in range(5)]
    assert await stores.ledger.commit(calls) == [Granted()] * 3 + [Exhausted(REQUESTS, 0)] * 2


async def test_each_account_is_counted_by_itself(stores: SqlStores) -> None:
    others = [
        REQUESTS._replace(tenant="globex"),
        REQUESTS._replace(subject="alice"),
        REQUESTS._replace(unit="tokens"),
        REQUESTS._replace(window="month"),
        REQUESTS._replace(window_start=2 * DAY),
    ]
    for bucket in [REQUESTS, *others]:
        assert await stores.ledger.commit([Reserve(job(Charge(bucket, 1, 1)))]) == [Granted()]
    found = await stores.ledger.accounts([REQUESTS, *others])
    assert found == {bucket: Account(0, 1) for bucket in [REQUESTS, *others]}


async def test_only_the_first_settlement_counts(stores: SqlStores) -> None:
    one = job(Charge(REQUESTS, 5, 10))
    await stores.ledger.commit([Reserve(one)])
    orders = [Settle(one.id, {"requests": 2}, 1010.0), Settle(one.id, None, 1020.0), Accept(one.id, "r-1", 9.0)]
    assert await stores.ledger.commit(orders) == [Granted(), Stale(), Granted()]
    assert await stores.ledger.commit(orders) == [Stale(), Stale(), Granted()]
    assert await stores.ledger.accounts([REQUESTS]) == {REQUESTS: Account(2, 0)}
    assert await stores.ledger.commit([Settle("0" * 32, None, 1.0), Accept("0" * 32, "r", 1.0)]) == [Stale()] * 2


async def test_an_accepted_job_is_known_by_fals_id(stores: SqlStores) -> None:
    one = job(Charge(REQUESTS, 1, 10))
    await stores.ledger.commit([Reserve(one)])
    assert await stores.ledger.commit([Accept(one.id, "fal-1", 5000.0)]) == [Granted()]
    accepted = one._replace(state="accepted", request_id="fal-1", expires_at=5000.0)
    assert await stores.ledger.find("fal-1") == accepted == await stores.ledger.get(one.id)
    assert await stores.ledger.find("FAL-1") is None
    await stores.ledger.commit([Settle(one.id, {"requests": 1}, 1010.0)])
    found = await stores.ledger.find("fal-1")
    assert found is not None and found.state == "settled"


async def test_an_id_that_is_written_down_late_leads_to_the_job(stores: SqlStores) -> None:
    """Its owner has paid for it. A released job has no owner who paid, and an id never changes."""
    settled, released = job(Charge(REQUESTS, 1, 10)), job(Charge(REQUESTS, 1, 10))
    await stores.ledger.commit([Reserve(settled), Reserve(released)])
    await stores.ledger.commit([Settle(settled.id, {"requests": 1}, 1010.0), Settle(released.id, None, 1010.0)])
    late = [
        Accept(settled.id, "late", 5000.0),
        Accept(released.id, "never", 5000.0),
        Accept(settled.id, "other", 5000.0),
    ]
    assert await stores.ledger.commit(late) == [Granted(), Stale(), Stale()]
    found = await stores.ledger.find("late")
    assert found is not None and (found.id, found.state) == (settled.id, "settled")
    assert await stores.ledger.find("never") is None and await stores.ledger.find("other") is None
    assert await stores.ledger.accounts([REQUESTS]) == {REQUESTS: Account(1, 0)}


async def test_the_owner_of_a_job_never_changes(stores: SqlStores) -> None:
    alices, mallorys = job(), job(subject="mallory")
    await stores.ledger.commit([Reserve(alices), Reserve(mallorys), Accept(alices.id, "fal-1", 5000.0)])
    with pytest.raises(StoreUnavailable):
        await stores.ledger.commit([Accept(mallorys.id, "fal-1", 5000.0)])
    found = await stores.ledger.find("fal-1")
    assert found is not None and found.subject == "alice"


async def test_a_whole_life_fits_into_one_batch(stores: SqlStores, database_url: str) -> None:
    one = job(Charge(REQUESTS, 2, 10), Charge(ALICES, 50, 100))
    life = [Reserve(one), Accept(one.id, "fal-1", 5000.0), Settle(one.id, {"requests": 2, "tokens": 7}, 1010.0)]
    assert await stores.ledger.commit(life) == [Granted()] * 3
    settled = one._replace(state="settled", checked_at=1010.0, used={"requests": 2, "tokens": 7})
    assert await stores.ledger.get(one.id) == settled._replace(request_id="fal-1", expires_at=5000.0)
    (await read_report(database_url)).check()


async def test_the_largest_batch_is_granted_and_adds_up(stores: SqlStores, database_url: str) -> None:
    """As many calls as are ever grouped, each of another tenant, a guest's with every quota there can be."""
    units = ("requests", "tokens", "compute_seconds", "usd")
    windows = ("minute", "hour", "day", "month", "lifetime")
    kinds = [(holder, unit, window) for holder in ("", " guests", "alice") for unit in units for window in windows]
    # An address has no lifetime, and a session only that.
    kinds += [(" address 0", unit, window) for unit in units for window in windows[:4]]
    kinds += [(" session s", unit, "session") for unit in units]
    calls = [
        Reserve(job(*(Charge(Bucket(tenant, *kind, 0), 1, 9) for kind in kinds), tenant=tenant))
        for tenant in (f"tenant-{number}" for number in range(MOST_AT_ONCE))
    ]
    assert await stores.ledger.commit(calls) == [Granted()] * len(calls)
    report = await read_report(database_url)
    report.check()
    assert len(report.accounts) == 80 * MOST_AT_ONCE


async def test_an_empty_batch_and_no_buckets_are_answered(stores: SqlStores) -> None:
    assert await stores.ledger.commit([]) == []
    assert await stores.ledger.accounts([]) == {}


async def test_a_batch_that_fails_leaves_nothing(stores: SqlStores, database_url: str) -> None:
    one = job(Charge(REQUESTS, 5, 10))
    await stores.ledger.commit([Reserve(one)])
    with pytest.raises(StoreUnavailable):
        await stores.ledger.commit([Reserve(job(Charge(ALICES, 5, 10))), Reserve(one)])
    report = await read_report(database_url)
    report.check()
    assert [entry.id for entry in report.entries] == [one.id] and report.accounts == {REQUESTS: Account(0, 5)}


# Jobs without watchers


async def test_which_jobs_are_open(stores: SqlStores) -> None:
    reserved, accepted, settled, released = (job() for _ in range(4))
    await stores.ledger.commit([Reserve(one) for one in (reserved, accepted, settled, released)])
    await stores.ledger.commit([Accept(accepted.id, "fal-1", 5000.0), Settle(settled.id, {}, 1.0)])
    await stores.ledger.commit([Settle(released.id, None, 1.0)])
    assert {one.id for one in await stores.ledger.open_jobs()} == {reserved.id, accepted.id}
    many = [*(f"unknown {number}" for number in range(1_000)), reserved.id, accepted.id, settled.id]
    assert await stores.ledger.queued_among(many) == {accepted.id}
    assert await stores.ledger.queued_among([]) == set()


async def test_jobs_in_flight_are_counted_by_the_key_of_fal(stores: SqlStores) -> None:
    assert await stores.ledger.count_in_flight() == {}
    reserved, accepted, spare, over, upload = job(), job(), job(upstream="spare"), job(), job(kind="upload")
    await stores.ledger.commit([Reserve(one) for one in (reserved, accepted, spare, over, upload)])
    await stores.ledger.commit([Accept(accepted.id, "fal-1", 5000.0), Settle(over.id, {}, 1.0)])
    assert await stores.ledger.count_in_flight() == {"default": 2, "spare": 1}


async def test_due_jobs_are_taken_once_and_the_oldest_first(
    stores: SqlStores, open_stores: OpenStores, database_url: str
) -> None:
    jobs = [job(checked_at=float(number)) for number in (3, 1, 2, 9)]
    await stores.ledger.commit([Reserve(one) for one in jobs])
    other = open_stores(database_url).ledger
    assert [one.id for one in await stores.ledger.take_due(5.0, 100.0, 2)] == [jobs[1].id, jobs[2].id]
    assert [one.id for one in await other.take_due(5.0, 100.0, 2)] == [jobs[0].id]
    assert await stores.ledger.take_due(5.0, 100.0, 2) == []
    assert {one.id for one in await other.take_due(101.0, 200.0, 9)} == {one.id for one in jobs}


async def test_a_job_whose_status_was_just_read_is_not_due(stores: SqlStores) -> None:
    lives, ended = job(Charge(REQUESTS, 1, 9)), job(Charge(REQUESTS, 1, 9))
    await stores.ledger.commit([Reserve(lives), Reserve(ended), Settle(ended.id, {}, 1100.0)])
    for one in (lives, ended):
        await stores.ledger.renew_jobs([one.id], 1200.0, 9000.0)
    assert await stores.ledger.get(lives.id) == lives._replace(checked_at=1200.0, expires_at=9000.0)
    found = await stores.ledger.get(ended.id)
    assert found is not None and (found.state, found.expires_at) == ("settled", 2200.0)
    assert await stores.ledger.take_due(1200.0, 1300.0, 9) == []


# What was used


async def test_usage_is_what_settled_jobs_used(stores: SqlStores) -> None:
    other = {"endpoint": "fal-ai/llavav15-13b"}
    facts = [{}, {"subject": "bob"}, other, {"submitted_at": 1000.0 + DAY}, {"tenant": "globex"}, {"subject": "carol"}]
    jobs = [job(**one) for one in facts]
    await stores.ledger.commit([Reserve(one) for one in jobs])
    for number, one in enumerate(jobs[:-1]):
        await stores.ledger.commit([Settle(one.id, {"requests": 1, "tokens": 10**number}, 5000.0)])
    await stores.ledger.commit([Settle(jobs[-1].id, None, 5000.0)])

    async def used(subject: str | None, *by: str, until: float = 2.0 * DAY) -> list[UsageRow]:
        return list(await stores.ledger.usage("acme", subject, 0.0, until, frozenset(by)))

    assert await used(None) == [UsageRow(None, None, None, 4, {"requests": 4, "tokens": 1111})]
    assert await used("bob") == [UsageRow(None, None, None, 1, {"requests": 1, "tokens": 10})]
    assert await used("carol") == []
    assert await used(None, until=1000.0) == []
    assert await used(None, "day") == [
        UsageRow("1970-01-01", None, None, 3, {"requests": 3, "tokens": 111}),
        UsageRow("1970-01-02", None, None, 1, {"requests": 1, "tokens": 1000}),
    ]
    assert await used(None, "endpoint", "subject", until=float(DAY)) == [
        UsageRow(None, "fal-ai/llava-next", "alice", 1, {"requests": 1, "tokens": 1}),
        UsageRow(None, "fal-ai/llavav15-13b", "alice", 1, {"requests": 1, "tokens": 100}),
        UsageRow(None, "fal-ai/llava-next", "bob", 1, {"requests": 1, "tokens": 10}),
    ]


async def test_usage_adds_up_beyond_64_bits(stores: SqlStores) -> None:
    most = 2**62 + 7
    jobs = [job(), job(), job()]
    await stores.ledger.commit([Reserve(one) for one in jobs])
    await stores.ledger.commit([Settle(one.id, {"upload_bytes": most}, 5000.0) for one in jobs])
    (row,) = await stores.ledger.usage("acme", None, 0.0, 2.0 * DAY, frozenset(["day"]))
    assert row.used == {"upload_bytes": 3 * most}


@pytest.mark.parametrize("second", [0.0, 43_200.0, 86_399.999])
async def test_a_job_counts_on_the_day_in_which_it_was_submitted(stores: SqlStores, second: float) -> None:
    one = job(submitted_at=20_000.0 * DAY + second)
    await stores.ledger.commit([Reserve(one), Settle(one.id, {"requests": 1}, 5000.0)])
    (row,) = await stores.ledger.usage("acme", None, 0.0, 30_000.0 * DAY, frozenset(["day"]))
    assert row.day == "2024-10-04"
