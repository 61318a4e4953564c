"""Grants in the ledger, on every kind of database: who may spend them, in which order, and what they get back."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import asdict
from typing import Any

import pytest
from sqlalchemy import insert

from proxy.stores.batching import MOST_AT_ONCE
from proxy.stores.grants import MOST_SPENT, Grant, GrantFilter
from proxy.stores.ledger import (
    TENANT_ITSELF,
    UNITS,
    Account,
    Bucket,
    Charge,
    Exhausted,
    Granted,
    Job,
    Operation,
    Outcome,
    Reserve,
    Settle,
)
from proxy.stores.sql import SqlStores, schema
from proxy.stores.sql.database import Database
from proxy.stores.transaction import LedgerTransaction, commit_operations
from tests.stores.conftest import OpenStores
from tests.stores.records import REQUESTS, grant, job
from tests.support.audit import read_report
from tests.support.audit_log import AUTHOR

pytestmark = pytest.mark.anyio
ALICE = REQUESTS._replace(subject="alice")
GRANTED, RELEASED = [Granted()], None


async def given(stores: SqlStores, *grants: Grant) -> list[Grant]:
    return [(await stores.grants.add(one, by=AUTHOR)).grant for one in grants]


async def reserve(stores: SqlStores, *charges: Charge, **more: Any) -> tuple[Job, Outcome]:
    wanted = job(*charges, **more)
    (outcome,) = await stores.ledger.commit([Reserve(wanted, has_grants=True)])
    return wanted, outcome


async def settle(stores: SqlStores, one: Job, used: int | None, unit: str = "requests") -> None:
    assert await stores.ledger.commit([Settle(one.id, None if used is None else {unit: used}, 1010.0)]) == GRANTED


async def standing(stores: SqlStores, *accounts: Bucket | Grant) -> list[tuple[int, int]]:
    """What is used and reserved on accounts, and of grants."""
    buckets = [one.bucket if isinstance(one, Grant) else one for one in accounts]
    found = await stores.ledger.accounts(buckets)
    return [tuple(found.get(bucket, Account())) for bucket in buckets]


# --- what a call takes, and what it gives back


async def test_a_grant_pays_what_the_quota_has_not_and_gets_back_what_was_not_needed(stores: SqlStores) -> None:
    (extra,) = await given(stores, grant(10))
    one, outcome = await reserve(stores, Charge(REQUESTS, 8, 5))
    assert outcome == Granted()
    assert await standing(stores, REQUESTS, extra) == [(0, 5), (0, 3)]
    await settle(stores, one, 6)
    assert await standing(stores, REQUESTS, extra) == [(5, 0), (1, 0)]
    two, outcome = await reserve(stores, Charge(REQUESTS, 9, 5))
    assert outcome == Granted() and await standing(stores, REQUESTS, extra) == [(5, 0), (1, 9)]
    await settle(stores, two, RELEASED)
    assert await standing(stores, REQUESTS, extra) == [(5, 0), (1, 0)]
    assert (await reserve(stores, Charge(REQUESTS, 10, 5)))[1] == Exhausted(REQUESTS, 9)


async def test_the_one_that_expires_first_is_spent_first_then_the_one_with_the_lower_id(stores: SqlStores) -> None:
    never, late, soon, same = grant(3), grant(3, expires_at=9000.0), grant(3, expires_at=5000.0), grant(3)
    await given(stores, same, late, soon, never)
    one, outcome = await reserve(stores, Charge(REQUESTS, 11, 1))
    assert outcome == Granted()
    assert await standing(stores, soon, late, never, same) == [(0, 3), (0, 3), (0, 3), (0, 1)]
    await settle(stores, one, 6)
    assert await standing(stores, REQUESTS, soon, late, never, same) == [(1, 0), (3, 0), (2, 0), (0, 0), (0, 0)]


async def test_what_a_call_used_beyond_its_reservation_is_booked_to_the_quota(stores: SqlStores) -> None:
    (extra,) = await given(stores, grant(4))
    one, _ = await reserve(stores, Charge(REQUESTS, 5, 2))
    await settle(stores, one, 20)
    assert await standing(stores, REQUESTS, extra) == [(17, 0), (3, 0)]
    # The next call does not pay the debt of the quota, but something must be left.
    assert (await reserve(stores, Charge(REQUESTS, 0, 2)))[1] == Granted()
    _, outcome = await reserve(stores, Charge(REQUESTS, 1, 2))
    assert outcome == Granted() and await standing(stores, REQUESTS, extra) == [(17, 0), (3, 1)]
    assert (await reserve(stores, Charge(REQUESTS, 0, 2)))[1] == Exhausted(REQUESTS, 0)


async def test_what_a_grant_pays_counts_on_no_quota_of_its_holder(stores: SqlStores) -> None:
    month = REQUESTS._replace(window="month")
    (extra,) = await given(stores, grant(10))
    await reserve(stores, Charge(REQUESTS, 6, 4), Charge(month, 6, 100))
    assert await standing(stores, REQUESTS, month, extra) == [(0, 4), (0, 4), (0, 2)]


async def test_a_call_short_of_two_quotas_takes_the_larger_gap_once(stores: SqlStores) -> None:
    month = REQUESTS._replace(window="month")
    (extra,) = await given(stores, grant(10))
    await reserve(stores, Charge(REQUESTS, 6, 4), Charge(month, 6, 1))
    assert await standing(stores, REQUESTS, month, extra) == [(0, 1), (0, 1), (0, 5)]


# --- whose quotas a grant extends


async def test_a_tenants_grant_leaves_its_subjects_quotas_as_they_are(stores: SqlStores) -> None:
    (extra,) = await given(stores, grant(10))
    assert (await reserve(stores, Charge(ALICE, 3, 2)))[1] == Exhausted(ALICE, 2)
    _, outcome = await reserve(stores, Charge(REQUESTS, 3, 2), Charge(ALICE, 3, 3))
    assert outcome == Granted()
    assert await standing(stores, REQUESTS, ALICE, extra) == [(0, 2), (0, 3), (0, 1)]


async def test_a_subjects_grant_is_the_subjects_alone(stores: SqlStores) -> None:
    (extra,) = await given(stores, grant(10, "alice"))
    assert (await reserve(stores, Charge(REQUESTS, 3, 2), Charge(ALICE, 3, 2)))[1] == Exhausted(REQUESTS, 2)
    bob = ALICE._replace(subject="bob")
    assert (await reserve(stores, Charge(bob, 3, 2), subject="bob"))[1] == Exhausted(bob, 2)
    one, outcome = await reserve(stores, Charge(REQUESTS, 3, 5), Charge(ALICE, 3, 2))
    assert outcome == Granted() and await standing(stores, REQUESTS, ALICE, extra) == [(0, 3), (0, 2), (0, 1)]
    await settle(stores, one, 3)
    assert await standing(stores, REQUESTS, ALICE, extra) == [(3, 0), (2, 0), (1, 0)]


async def test_a_call_can_take_from_a_grant_of_its_tenant_and_one_of_its_subject(stores: SqlStores) -> None:
    tenants, alices = await given(stores, grant(4), grant(4, "alice"))
    one, outcome = await reserve(stores, Charge(REQUESTS, 5, 3), Charge(ALICE, 5, 1))
    assert outcome == Granted()
    assert await standing(stores, REQUESTS, ALICE, tenants, alices) == [(0, 3), (0, 1), (0, 2), (0, 4)]
    await settle(stores, one, 4)
    assert await standing(stores, REQUESTS, ALICE, tenants, alices) == [(3, 0), (1, 0), (1, 0), (3, 0)]


async def test_calls_with_the_tenants_key_spend_the_tenants_grants(stores: SqlStores) -> None:
    own = REQUESTS._replace(subject=TENANT_ITSELF)
    (extra,) = await given(stores, grant(4))
    _, outcome = await reserve(stores, Charge(own, 3, 1), Charge(REQUESTS, 3, 2), subject="")
    assert outcome == Granted() and await standing(stores, own, REQUESTS, extra) == [(0, 1), (0, 1), (0, 2)]


@pytest.mark.parametrize("holder", [" guests", " address 0123", " session s-1"])
async def test_no_grant_widens_a_session_an_address_or_all_guests(stores: SqlStores, holder: str) -> None:
    account = REQUESTS._replace(subject=holder, window="session")
    await given(stores, grant(10), grant(10, "alice"))
    assert (await reserve(stores, Charge(account, 3, 2)))[1] == Exhausted(account, 2)


async def test_grants_of_another_holder_unit_or_time_are_not_spent(stores: SqlStores) -> None:
    others = [
        grant(10, unit="tokens"),
        grant(10, tenant="globex"),
        grant(10, expires_at=1000.0),
        grant(10, "bob"),
    ]
    await given(stores, *others)
    assert (await reserve(stores, Charge(REQUESTS, 2, 1)))[1] == Exhausted(REQUESTS, 1)
    await given(stores, grant(10, expires_at=1000.5))
    assert (await reserve(stores, Charge(REQUESTS, 2, 1)))[1] == Granted()
    assert (await reserve(stores, Charge(REQUESTS, 2, 1), submitted_at=1000.5))[1] == Exhausted(REQUESTS, 0)


# --- many at once


async def test_calls_of_one_batch_share_a_grant_exactly(stores: SqlStores, database_url: str) -> None:
    (extra,) = await given(stores, grant(3))
    calls = [Reserve(job(Charge(REQUESTS, 2, 5)), has_grants=True) for _ in range(6)]
    assert await stores.ledger.commit(calls) == [Granted()] * 4 + [Exhausted(REQUESTS, 0)] * 2
    assert await standing(stores, REQUESTS, extra) == [(0, 5), (0, 3)]
    (await read_report(database_url)).check()


async def test_two_processes_share_grants_exactly(
    stores: SqlStores, open_stores: OpenStores, database_url: str
) -> None:
    """Calls that reserve and settle at once, each on one of two connections: all that there is, and no more."""
    both = [stores, open_stores(database_url)]
    extras = await given(stores, grant(7, expires_at=8000.0), grant(6), grant(5, "alice"))

    async def call(number: int) -> bool:
        own = both[number % 2]
        one, outcome = await reserve(own, Charge(REQUESTS, 2, 10), Charge(ALICE, 2, 20))
        if isinstance(outcome, Granted):
            await settle(own, one, 1 if number % 3 else RELEASED)
        return isinstance(outcome, Granted)

    await asyncio.gather(*map(call, range(60)))
    while await call(1):
        pass
    report = await read_report(database_url)
    report.check()
    # One of 23 is left, and a call reserves two.
    for accounts in ((REQUESTS, *extras[:2]), (ALICE, extras[2])):
        stood = await standing(stores, *accounts)
        assert (sum(used for used, _ in stood), sum(reserved for _, reserved in stood)) == (22, 0), stood


async def test_the_largest_batch_with_all_the_grants_that_calls_can_spend(stores: SqlStores, database_url: str) -> None:
    """As many calls as are ever grouped, each of another tenant; each takes from all grants that it may."""
    holders = [(subject, unit) for subject in ("", "alice") for unit in UNITS[:4]]
    tenants = [f"tenant-{number}" for number in range(MOST_AT_ONCE)]
    each = [grant(1, *one, tenant=tenant) for tenant in tenants for one in holders for _ in range(MOST_SPENT + 1)]
    await _add_at_once(database_url, each)

    def call(tenant: str) -> Reserve:
        charges = (Charge(Bucket(tenant, subject, unit, "day", 0), MOST_SPENT, 0) for subject, unit in holders)
        return Reserve(job(*charges, tenant=tenant), has_grants=True)

    assert await stores.ledger.commit([call(tenant) for tenant in tenants]) == GRANTED * MOST_AT_ONCE
    refused = Exhausted(Bucket(tenants[0], "", "requests", "day", 0), 1)
    assert await stores.ledger.commit([call(tenants[0])]) == [refused]
    (await read_report(database_url)).check()


async def _add_at_once(url: str, grants: list[Grant]) -> None:
    database = Database(url)
    async with database.writing() as connection:
        for start in range(0, len(grants), 1000):
            await connection.execute(insert(schema.grants), [asdict(one) for one in grants[start : start + 1000]])
    await database.close()


# --- what it costs


class Counting:
    """A transaction of a database that counts what it is asked."""

    def __init__(self, transaction: LedgerTransaction) -> None:
        self._transaction = transaction
        self.asked: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        self.asked[name] += 1
        return getattr(self._transaction, name)


async def test_without_grants_a_call_asks_the_database_nothing_more(stores: SqlStores, database_url: str) -> None:
    async def asked(*operations: Operation) -> list[str]:
        def work(transaction: LedgerTransaction) -> list[str]:
            counting = Counting(transaction)
            commit_operations(counting, operations=operations, known=[REQUESTS])
            return sorted(counting.asked.elements())

        database = Database(database_url)
        try:
            return await database.run(work)
        finally:
            await database.close()

    await reserve(stores, Charge(REQUESTS, 1, 9))
    one, refused, after = (job(Charge(REQUESTS, amount, 9)) for amount in (2, 90, 2))
    taking = ["add_jobs", "find_accounts", "update_accounts"]
    assert await asked(Reserve(one)) == taking
    assert await asked(Reserve(refused)) == ["find_accounts"]
    assert await asked(Settle(one.id, {"requests": 2}, 1010.0)) == [
        "find_accounts",
        "find_jobs",
        "update_accounts",
        "update_jobs",
    ]
    # With grants, a call that the quota has enough for asks nothing more either.
    assert await asked(Reserve(after, has_grants=True)) == taking
    assert await asked(Reserve(refused, has_grants=True)) == ["find_accounts", "find_grants"]


# --- giving and listing


async def test_a_key_gives_one_grant_however_often_it_is_sent(
    stores: SqlStores, open_stores: OpenStores, database_url: str
) -> None:
    both = [stores, open_stores(database_url)]
    wanted = [grant(5, key_hash="k" * 64) for _ in range(10)]
    added = await asyncio.gather(*(both[number % 2].grants.add(one, by=AUTHOR) for number, one in enumerate(wanted)))
    assert len({one.grant.id for one in added}) == 1
    elsewhere = await stores.grants.add(grant(5, tenant="globex", key_hash="k" * 64), by=AUTHOR)
    assert elsewhere.grant.id != added[0].grant.id
    assert len(await stores.grants.list_grants(GrantFilter("acme"), 99)) == 1


async def test_grants_are_listed_newest_first_in_pages_with_what_is_left(stores: SqlStores) -> None:
    old, alices, young, ended = await given(
        stores,
        grant(5, created_at=1.0),
        grant(6, "alice", created_at=2.0, expires_at=8000.0),
        grant(7, created_at=3.0),
        grant(8, created_at=3.0, expires_at=900.0),
    )
    await given(stores, grant(9, tenant="globex"))
    one, _ = await reserve(stores, Charge(REQUESTS, 6, 0))
    await reserve(stores, Charge(REQUESTS, 3, 0))
    await settle(stores, one, 4)

    async def listed(most: int = 99, **wanted: Any) -> list[tuple[Grant, Account]]:
        found = await stores.grants.list_grants(GrantFilter("acme", **wanted), most)
        return [(one.grant, one.account) for one in found]

    whole = [(ended, Account()), (young, Account(0, 3)), (alices, Account()), (old, Account(4, 0))]
    assert await listed() == whole and await listed(2) == whole[:2]
    assert await listed(after=(young.created_at, young.id)) == whole[2:]
    assert await listed(subjects=["alice"]) == [whole[2]]
    assert await listed(subjects=[""]) == [whole[0], whole[1], whole[3]]
    assert await listed(open_at=1000.0) == whole[1:]
    await reserve(stores, Charge(REQUESTS, 5, 0))
    assert await listed(open_at=1000.0) == [whole[2]]


async def test_a_quota_that_covers_the_need_lets_a_call_in_without_grants_for_the_rest(stores: SqlStores) -> None:
    (extra,) = await given(stores, grant(10))
    first, outcome = await reserve(stores, Charge(REQUESTS, 12, 5, needed=4))
    assert outcome == Granted() and await standing(stores, REQUESTS, extra) == [(0, 5), (0, 7)]
    await settle(stores, first, 1)
    second, outcome = await reserve(stores, Charge(REQUESTS, 40, 5, needed=4))
    assert outcome == Granted() and await standing(stores, REQUESTS, extra) == [(1, 40), (0, 0)]
    await settle(stores, second, 30)
    # Below zero, what a call needs is not left any more: grants pay all of it, or it is refused.
    assert (await reserve(stores, Charge(REQUESTS, 11, 5, needed=1)))[1] == Exhausted(REQUESTS, 10)
    assert (await reserve(stores, Charge(REQUESTS, 10, 5, needed=1)))[1] == Granted()
    assert await standing(stores, REQUESTS, extra) == [(31, 0), (0, 10)]
