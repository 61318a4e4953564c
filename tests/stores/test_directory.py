"""Tenants, plans, keys and revocations, on every kind of database."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

import anyio
import pytest

from proxy.stores.directory import OverrideRow, Revocation
from proxy.stores.sql import SqlStores
from tests.stores.conftest import OpenStores
from tests.stores.records import ACME, GLOBEX, KEY, PLANS
from tests.support.audit_log import AUTHOR
from tests.support.turns import do_in_turn

pytestmark = pytest.mark.anyio


async def test_an_empty_directory_loads(stores: SqlStores) -> None:
    rows = await stores.directory.load()
    assert (rows.plans, rows.tenants, rows.keys, rows.revocations) == ({}, [], [], [])
    assert rows.version == await stores.directory.version()


async def test_plans_and_tenants_are_read_as_they_were_written(stores: SqlStores) -> None:
    assert await stores.directory.apply(PLANS, [ACME], by=AUTHOR)
    rows = await stores.directory.load()
    assert rows.plans == PLANS and rows.tenants == [ACME] and rows.endpoints == {}


async def test_endpoints_are_read_as_they_were_written_and_stay_until_named(stores: SqlStores) -> None:
    priced = {"fal-ai/a": {"price_per_compute_second": 0.0001}, "fal-ai/b": {"price_per_compute_second": 1.0}}
    assert await stores.directory.apply({}, [], priced, by=AUTHOR)
    assert await stores.directory.apply(PLANS, [ACME], by=AUTHOR)
    assert not await stores.directory.apply({}, [], priced, by=AUTHOR)
    assert await stores.directory.apply({}, [], {"fal-ai/b": {"price_per_compute_second": 2.0}}, by=AUTHOR)
    assert (await stores.directory.load()).endpoints == {**priced, "fal-ai/b": {"price_per_compute_second": 2.0}}


async def test_apply_reports_a_change_and_leaves_what_is_not_named(stores: SqlStores) -> None:
    assert await stores.directory.apply(PLANS, [ACME, GLOBEX], by=AUTHOR)
    assert not await stores.directory.apply(PLANS, [ACME], by=AUTHOR)
    assert await stores.directory.apply(PLANS, [{**ACME, "plan": "gold"}], by=AUTHOR)
    assert await stores.directory.apply({"gold": {"endpoints": []}}, [], by=AUTHOR)
    rows = await stores.directory.load()
    assert {tenant["id"]: tenant["plan"] for tenant in rows.tenants} == {"acme": "gold", "globex": "free"}
    assert set(rows.plans) == {"free", "gold"}


async def test_a_preview_lists_what_apply_would_change_and_changes_nothing(stores: SqlStores) -> None:
    await stores.directory.apply(PLANS, [ACME], by=AUTHOR)
    before, moved = await stores.directory.load(), {**ACME, "plan": "gold"}
    wanted = ({**PLANS, "gold": {"endpoints": []}}, [moved, GLOBEX], {"fal-ai/a": {"price_per_compute_second": 1.0}})
    found = await stores.directory.preview(*wanted)
    assert [(one.action, one.target) for one in found] == [
        ("plan.create", "gold"),
        ("tenant.change", "acme"),
        ("tenant.create", "globex"),
        ("endpoint.create", "fal-ai/a"),
    ]
    assert (found[1].before, found[1].after) == (ACME, moved)
    assert await stores.directory.load() == before
    assert await stores.directory.apply(*wanted, by=AUTHOR)
    assert await stores.directory.preview(*wanted) == []


async def test_every_change_and_nothing_else_raises_the_version(stores: SqlStores) -> None:
    directory, versions = stores.directory, [await stores.directory.version()]

    async def raised() -> bool:
        versions.append(await directory.version())
        return versions[-1] > versions[-2]

    await directory.apply(PLANS, [ACME], by=AUTHOR)
    assert await raised()
    await directory.apply(PLANS, [ACME], by=AUTHOR)
    assert not await raised()
    await directory.add_key(KEY, by=AUTHOR)
    assert await raised()
    await directory.touch_key("k1", 20.0)
    assert not await raised()
    await directory.revoke(Revocation("acme", "s-1", None, 10.0, 99.0), by=AUTHOR)
    assert await raised()
    await directory.revoke_key("k1", by=AUTHOR)
    assert await raised()


async def test_a_key_is_added_touched_and_revoked_once(stores: SqlStores) -> None:
    directory = stores.directory
    await directory.add_key(KEY, by=AUTHOR)
    await directory.touch_key("k1", 20.0)
    assert (await directory.load()).keys == [replace(KEY, last_used_at=20.0)]
    assert await directory.revoke_key("k1", by=AUTHOR)
    assert not await directory.revoke_key("k1", by=AUTHOR)
    assert (await directory.load()).keys == []


async def test_a_tenant_is_suspended_once_and_stays_so_when_it_is_applied_again(stores: SqlStores) -> None:
    directory = stores.directory
    assert not await directory.set_suspended("acme", 10.0, by=AUTHOR)
    await directory.apply(PLANS, [ACME, GLOBEX], by=AUTHOR)
    before = await directory.version()
    assert await directory.set_suspended("acme", 10.0, by=AUTHOR)
    assert not await directory.set_suspended("acme", 20.0, by=AUTHOR)
    assert await directory.version() == before + 1
    await directory.apply(PLANS, [{**ACME, "plan": "gold"}], by=AUTHOR)
    assert (await directory.load()).suspended == {"acme": 10.0}
    assert await directory.set_suspended("acme", None, by=AUTHOR)
    assert not await directory.set_suspended("acme", None, by=AUTHOR)
    assert (await directory.load()).suspended == {}


async def test_overrides_are_read_as_they_were_written_and_a_subject_has_one(stores: SqlStores) -> None:
    first = OverrideRow("acme", "alice", "free", None, 900.0)
    limits = OverrideRow("acme", "alice", None, {"max_tokens": 5, "quotas": []}, 800.0)
    others = [OverrideRow("acme", "bob", "free", None, 700.0), OverrideRow("globex", "alice", "free", None, 600.0)]
    for one in (first, *others, limits):
        assert await stores.directory.put_override(one, 100.0, 9, by=AUTHOR)

    async def found() -> list[OverrideRow]:
        return sorted((await stores.directory.load()).overrides, key=lambda one: (one.tenant, one.subject))

    assert await found() == [limits, *others]
    assert await stores.directory.clear_override("acme", "bob", by=AUTHOR)
    assert not await stores.directory.clear_override("acme", "bob", by=AUTHOR)
    assert await found() == [limits, others[1]]
    # Those that have ended make room.
    assert await stores.directory.put_override(others[0], 600.0, 9, by=AUTHOR)
    assert await found() == [limits, others[0]]


async def test_the_number_of_overrides_is_bounded(stores: SqlStores) -> None:
    def one(name: str, until: float = 900.0) -> OverrideRow:
        return OverrideRow("acme", name, "free", None, until)

    for name in ("a", "b"):
        assert await stores.directory.put_override(one(name), 100.0, 2, by=AUTHOR)
    version = await stores.directory.version()
    assert not await stores.directory.put_override(one("c"), 100.0, 2, by=AUTHOR)
    assert await stores.directory.version() == version
    assert await stores.directory.put_override(one("b", 950.0), 100.0, 2, by=AUTHOR)
    assert await stores.directory.put_override(one("c"), 900.0, 2, by=AUTHOR)
    assert [row.subject for row in (await stores.directory.load()).overrides] == ["b", "c"]


async def test_a_session_has_one_revocation(stores: SqlStores) -> None:
    one, all_of_bob = Revocation("acme", "s-1", None, 10.0, 50.0), Revocation("acme", None, "bob", 10.0, 90.0)
    for revocation in (one, all_of_bob, one):
        await stores.directory.revoke(revocation, by=AUTHOR)
    assert sorted((await stores.directory.load()).revocations, key=str) == sorted([one, all_of_bob], key=str)


async def test_a_process_reads_what_another_wrote(
    stores: SqlStores, open_stores: OpenStores, database_url: str
) -> None:
    await stores.directory.apply(PLANS, [ACME], by=AUTHOR)
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
                for id_ in (f"s-{number}-{place}", "the same"):
                    revocation = Revocation("acme", id_, None, 1.0, 9.0)
                    group.start_soon(do_in_turn, partial(one.directory.revoke, revocation, by=AUTHOR))
    assert await stores.directory.version() == before + 60
    assert len((await stores.directory.load()).revocations) == 31


async def test_replicas_that_start_together_apply_the_same_file(open_stores: OpenStores, database_url: str) -> None:
    replicas = [open_stores(database_url).directory for _ in range(6)]
    changed = await _together(*[lambda one=one: one.apply(PLANS, [ACME, GLOBEX], by=AUTHOR) for one in replicas])
    assert sorted(changed) == [False] * 5 + [True]
    assert len((await replicas[0].load()).tenants) == 2


async def _together(*works: Callable[[], Awaitable[bool]]) -> list[bool]:
    results: list[bool] = []

    async def one(work: Callable[[], Awaitable[bool]]) -> None:
        results.append(await do_in_turn(work))

    async with anyio.create_task_group() as group:
        for work in works:
            group.start_soon(one, work)
    return results


@pytest.mark.slow
async def test_a_reading_is_of_one_moment(stores: SqlStores, open_stores: OpenStores, database_url: str) -> None:
    """No tenant is ever read without the plan that was applied together with it."""
    other, done = open_stores(database_url), anyio.Event()

    async def apply() -> None:
        for number in range(40):
            await other.directory.apply({f"plan-{number}": {}}, [{**ACME, "plan": f"plan-{number}"}], by=AUTHOR)
        done.set()

    async with anyio.create_task_group() as group:
        group.start_soon(apply)
        while not done.is_set():
            rows = await stores.directory.load()
            assert all(tenant["plan"] in rows.plans for tenant in rows.tenants)
