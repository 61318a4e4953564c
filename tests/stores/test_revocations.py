"""What is revoked elsewhere counts here, and is read without reading again what is known."""

from __future__ import annotations

import pytest
from sqlalchemy import delete, update

from proxy.stores.directory import DirectoryRows, Revocation, digest_subject
from proxy.stores.removal import FormerTenant
from proxy.stores.sql import SqlStores
from proxy.stores.sql.database import Database
from proxy.stores.sql.directory import SqlDirectory
from proxy.stores.sql.schema import directory_version, revocations
from proxy.tenants.directory import MAX_AGE_SECONDS, REFRESH_SECONDS, Directory
from proxy.tenants.revoked import SWEEP_EVERY, RevokedSessions
from tests.stores.conftest import OpenStores
from tests.stores.records import ACME, KEY, PLANS
from tests.support.audit_log import AUTHOR
from tests.support.clock import MovableClock
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.anyio


def database_of(stores: SqlStores) -> Database:
    return stores.directory._database


class CountedDirectory(SqlDirectory):
    """Knows how often all of it was read, and how many revocations with it."""

    readings = revocations = 0

    async def load(self, known: int = 0) -> DirectoryRows:
        self.readings += 1
        rows = await super().load(known)
        self.revocations += len(rows.revocations)
        return rows


def revoked(number: int, expires_at: float = 9e9) -> Revocation:
    return Revocation("acme", f"s-{number}", None, 1.0, expires_at)


async def test_a_revocation_of_another_process_is_read_alone(
    stores: SqlStores, open_stores: OpenStores, database_url: str
) -> None:
    elsewhere, clock = open_stores(database_url).directory, MovableClock()
    await elsewhere.apply(PLANS, [ACME], by=AUTHOR)
    store = CountedDirectory(database_of(stores))
    directory = Directory(store, clock)
    assert not (await directory.snapshot()).is_revoked("acme", "alice", "s-1", 0.5)

    for number in range(3):
        await elsewhere.revoke(revoked(number), by=AUTHOR)
    await elsewhere.revoke(Revocation("acme", None, "bob", 10.0, 9e9), by=AUTHOR)
    clock.advance(REFRESH_SECONDS)
    await directory.refresh()
    snapshot = await directory.snapshot()
    assert [snapshot.is_revoked("acme", "alice", f"s-{number}", 0.5) for number in range(4)] == [True] * 3 + [False]
    assert snapshot.is_revoked("acme", "bob", "s-9", 10.0) and not snapshot.is_revoked("acme", "bob", "s-9", 10.1)
    assert store.readings == 1 and snapshot.tenants


async def test_a_reading_counts_while_the_next_one_is_made(
    stores: SqlStores, open_stores: OpenStores, database_url: str
) -> None:
    """Polls go on meanwhile, and see at the next reading what was revoked elsewhere."""
    elsewhere, clock = open_stores(database_url).directory, MovableClock()
    await elsewhere.apply(PLANS, [ACME], by=AUTHOR)
    directory = Directory(CountedDirectory(database_of(stores)), clock)
    assert directory.young() is None, "nothing was read yet"
    first = await directory.snapshot()
    await elsewhere.revoke(revoked(1), by=AUTHOR)
    clock.advance(REFRESH_SECONDS)
    assert directory.young() is first
    await wait_until_async(lambda: directory.latest is not first)
    young = directory.young()
    assert young is directory.latest and young.is_revoked("acme", "alice", "s-1", 0.5)
    await directory.close()


@pytest.mark.parametrize("seconds", [MAX_AGE_SECONDS, -1.0], ids=["too old", "from the future"])
async def test_a_reading_of_another_time_does_not_count(stores: SqlStores, seconds: float) -> None:
    clock = MovableClock()
    directory = Directory(stores.directory, clock)
    await directory.snapshot()
    assert directory.young() is not None
    clock.advance(seconds)
    assert directory.young() is None


async def test_other_changes_are_read_as_well(stores: SqlStores, open_stores: OpenStores, database_url: str) -> None:
    elsewhere, clock = open_stores(database_url).directory, MovableClock()
    await elsewhere.apply(PLANS, [ACME], by=AUTHOR)
    store = CountedDirectory(database_of(stores))
    directory = Directory(store, clock)
    await directory.snapshot()
    await elsewhere.revoke(revoked(1), by=AUTHOR)
    await elsewhere.apply(PLANS, [{**ACME, "id": "globex"}], by=AUTHOR)
    clock.advance(REFRESH_SECONDS)
    await directory.refresh()
    snapshot = await directory.snapshot()
    assert snapshot.is_revoked("acme", "alice", "s-1", 0.5) and sorted(snapshot.tenants) == ["acme", "globex"]
    assert store.readings == 2


async def test_other_changes_read_no_revocation_again(
    stores: SqlStores, open_stores: OpenStores, database_url: str
) -> None:
    elsewhere, clock = open_stores(database_url).directory, MovableClock()
    await elsewhere.apply(PLANS, [ACME], by=AUTHOR)
    for number in range(50):
        await elsewhere.revoke(revoked(number), by=AUTHOR)
    store = CountedDirectory(database_of(stores))
    directory = Directory(store, clock)
    await directory.snapshot()
    assert store.revocations == 50
    for number in range(3):
        # Also one that was revoked before, of the newest number.
        await elsewhere.revoke(revoked(49 + number // 2), by=AUTHOR)
        await elsewhere.apply(PLANS, [{**ACME, "id": f"globex-{number}"}], by=AUTHOR)
        clock.advance(REFRESH_SECONDS)
        await directory.refresh()
    await directory.add_key(KEY, by=AUTHOR)
    snapshot = await directory.snapshot()
    assert (store.readings, store.revocations) == (5, 53)
    assert len(snapshot.tenants) == 4 and len(snapshot.keys) == 1 and len(snapshot.revoked) == 51
    assert all(snapshot.is_revoked("acme", "alice", f"s-{number}", 0.5) for number in range(51))


async def test_another_database_in_its_place_is_read_whole(
    stores: SqlStores, open_stores: OpenStores, database_url: str
) -> None:
    """Its revocations have smaller numbers than those that are known."""
    clock, database = MovableClock(), database_of(stores)
    await stores.directory.apply(PLANS, [ACME], by=AUTHOR)
    for number in range(3):
        await stores.directory.revoke(revoked(number), by=AUTHOR)
    directory = Directory(open_stores(database_url).directory, clock)
    await directory.snapshot()
    async with database.writing() as connection:
        await connection.execute(delete(revocations).where(revocations.c.id > 1))
        await connection.execute(update(directory_version).values(version=99))
    clock.advance(REFRESH_SECONDS)
    await directory.refresh()
    snapshot = await directory.snapshot()
    assert snapshot.is_revoked("acme", "alice", "s-0", 0.5) and len(snapshot.revoked) == 1


async def test_a_revocation_that_takes_the_place_of_one_is_not_overlooked(
    stores: SqlStores, open_stores: OpenStores, database_url: str
) -> None:
    """SQLite would number a row like the last one, if that was deleted."""
    elsewhere, clock = open_stores(database_url).directory, MovableClock()
    await elsewhere.apply(PLANS, [ACME], by=AUTHOR)
    directory = Directory(stores.directory, clock)
    for number, at in ((1, 10.0), (1, 10.0), (2, 60.0), (3, 120.0)):
        await elsewhere.revoke(Revocation("acme", f"s-{number}", None, at, at + 50.0), by=AUTHOR)
        clock.advance(REFRESH_SECONDS)
        await directory.refresh()
        assert (await directory.snapshot()).is_revoked("acme", "alice", f"s-{number}", 0.5), number


def test_expired_revocations_are_forgotten_in_time() -> None:
    known = RevokedSessions()
    known.add((revoked(number, expires_at=50.0) for number in range(SWEEP_EVERY - 2)), 10.0)
    known.add([revoked(-1)], 100.0)
    assert len(known) == SWEEP_EVERY - 1
    known.add([revoked(-2)], 100.0)
    assert (
        len(known) == 2 and known.cover("acme", "alice", "s--1", 0.5) and not known.cover("acme", "alice", "s-1", 0.5)
    )


async def test_what_was_minted_before_a_revocation_ends_by_its_number_too(stores: SqlStores) -> None:
    """A clock that was ahead has issued all of these long after the revocation."""
    directory, late = Directory(stores.directory, MovableClock()), 9e9
    await stores.directory.apply(PLANS, [ACME], by=AUTHOR)
    await directory.revoke(Revocation("acme", "s-1", None, 10.0, 9e9), by=AUTHOR)
    before = (await directory.snapshot()).newest_revocation
    await directory.revoke(Revocation("acme", None, "bob", 10.0, 9e9), by=AUTHOR)
    forgotten = Revocation("acme", None, None, 10.0, 9e9, digest_subject("acme", "carol"))
    await stores.directory.forget_subject(forgotten, "carol", by=AUTHOR)
    snapshot = await directory.read_now()
    after = snapshot.newest_revocation
    for subject in ("bob", "carol"):
        assert snapshot.is_revoked("acme", subject, "s-9", late, before)
        assert not snapshot.is_revoked("acme", subject, "s-9", late, after)
        assert not snapshot.is_revoked("acme", subject, "s-9", late), "minted by a version that does not number them"
    assert not snapshot.is_revoked("acme", "alice", "s-9", late, before)


async def test_the_sessions_of_a_deleted_tenant_end_by_their_numbers_too(stores: SqlStores) -> None:
    directory, late = Directory(stores.directory, MovableClock()), 9e9
    await stores.directory.apply(PLANS, [ACME], by=AUTHOR)
    before = (await directory.snapshot()).newest_revocation
    await directory.delete_tenant(FormerTenant("acme~records", "acme", 10.0), by=AUTHOR)
    snapshot = await directory.snapshot()
    assert "acme" not in snapshot.tenants
    assert snapshot.is_revoked("acme", "alice", "s-1", late, before)
    assert not snapshot.is_revoked("acme", "alice", "s-1", late, snapshot.newest_revocation)
    assert not snapshot.is_revoked("globex", "alice", "s-1", late, before)
