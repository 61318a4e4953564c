"""Tenants, plans, keys and revocations, on every kind of database."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

import anyio
import pytest

from proxy.stores.directory import Revocation
from proxy.stores.sql import SqlStores
from tests.stores.conftest import OpenStores
from tests.stores.records import ACME, GLOBEX, KEY, PLANS

pytestmark = pytest.mark.anyio


async def test_an_empty_directory(stores: SqlStores) -> None:
    rows = await stores.directory.load()
    assert (rows.plans, rows.tenants, rows.keys, rows.revocations) == ({}, [], [], [])
    assert rows.version == await stores.directory.version()


async def test_plans_and_tenants_come_out_as_they_went_in(stores: SqlStores) -> None:
    assert await stores.directory.apply(PLANS, [ACME])
    rows = await stores.directory.load()
    assert rows.plans == PLANS and rows.tenants == [ACME]


async def test_apply_reports_a_change_and_leaves_what_is_not_named(stores: SqlStores) -> None:
    assert await stores.directory.apply(PLANS, [ACME, GLOBEX])
    assert not await stores.directory.apply(PLANS, [ACME])
    assert await stores.directory.apply(PLANS, [{**ACME, "plan": "gold"}])
    assert await stores.directory.apply({"gold": {"endpoints": []}}, [])
    rows = await stores.directory.load()
    assert {tenant["id"]: tenant["plan"] for tenant in rows.tenants} == {"acme": "gold", "globex": "free"}
    assert set(rows.plans) == {"free", "gold"}


async def test_every_change_and_nothing_else_raises_the_version(stores: SqlStores) -> None:
    directory, versions = stores.directory, [await stores.directory.version()]

    async def raised() -> bool:
        versions.append(await directory.version())
        return versions[-1] > versions[-2]

    await directory.apply(PLANS, [ACME])
    assert await raised()
    await directory.apply(PLANS, [ACME])
    assert not await raised()
    await directory.add_key(KEY)
    assert await raised()
    await directory.touch_key("k1", 20.0)
    assert not await raised()
    await directory.revoke(Revocation("acme", "s-1", None, 10.0, 99.0))
    assert await raised()
    await directory.revoke_key("k1")
    assert await raised()


async def test_keys(stores: SqlStores) -> None:
    directory = stores.directory
    await directory.add_key(KEY)
    await directory.touch_key("k1", 20.0)
    assert (await directory.load()).keys == [replace(KEY, last_used_at=20.0)]
    assert await directory.revoke_key("k1")
    assert not await directory.revoke_key("k1")
    assert (await directory.load()).keys == []


async def test_a_session_has_one_revocation(stores: SqlStores) -> None:
    one, all_of_bob = Revocation("acme", "s-1", None, 10.0, 50.0), Revocation("acme", None, "bob", 10.0, 90.0)
    for revocation in (one, all_of_bob, one):
        await stores.directory.revoke(revocation)
    assert sorted((await stores.directory.load()).revocations, key=str) == sorted([one, all_of_bob], key=str)


async def test_what_one_process_wrote_another_reads(
    stores: SqlStores, open_stores: OpenStores, database_url: str
) -> None:
    await stores.directory.apply(PLANS, [ACME])
    other = open_stores(database_url)
    await other.prepare()
    assert (await other.directory.load()).tenants == [ACME]


async def test_many_writers_lose_nothing(stores: SqlStores, open_stores: OpenStores, database_url: str) -> None:
    """Every transaction waits its turn instead of failing, also when all of them write down the same."""
    before = await stores.directory.version()
    all_of_them = [stores, open_stores(database_url), open_stores(database_url)]
    async with anyio.create_task_group() as group:
        for number in range(10):
            for place, one in enumerate(all_of_them):
                group.start_soon(one.directory.revoke, Revocation("acme", f"s-{number}-{place}", None, 1.0, 9.0))
                group.start_soon(one.directory.revoke, Revocation("acme", "the same", None, 1.0, 9.0))
    assert await stores.directory.version() == before + 60
    assert len((await stores.directory.load()).revocations) == 31


async def test_replicas_that_start_together_apply_the_same_file(open_stores: OpenStores, database_url: str) -> None:
    replicas = [open_stores(database_url).directory for _ in range(6)]
    changed = await _together(*[lambda one=one: one.apply(PLANS, [ACME, GLOBEX]) for one in replicas])
    assert sorted(changed) == [False] * 5 + [True]
    assert len((await replicas[0].load()).tenants) == 2


async def _together(*works: Callable[[], Awaitable[bool]]) -> list[bool]:
    results: list[bool] = []

    async def one(work: Callable[[], Awaitable[bool]]) -> None:
        results.append(await work())

    async with anyio.create_task_group() as group:
        for work in works:
            group.start_soon(one, work)
    return results


async def test_a_reading_is_of_one_moment(stores: SqlStores, open_stores: OpenStores, database_url: str) -> None:
    """No tenant is ever read without the plan that was applied together with it."""
    other, done = open_stores(database_url), anyio.Event()

    async def apply() -> None:
        for number in range(40):
            await other.directory.apply({f"plan-{number}": {}}, [{**ACME, "plan": f"plan-{number}"}])
        done.set()

    async with anyio.create_task_group() as group:
        group.start_soon(apply)
        while not done.is_set():
            rows = await stores.directory.load()
            assert all(tenant["plan"] in rows.plans for tenant in rows.tenants)
