"""The first outcome of a call that came with an Idempotency-Key, on every kind of database."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial

import anyio
import pytest

from proxy.stores.idempotency import Claim
from proxy.stores.sql import SqlStores
from tests.stores.conftest import OpenStores
from tests.stores.records import CLAIM
from tests.support.turns import do_in_turn

pytestmark = pytest.mark.anyio
SECOND = replace(CLAIM, job_id="j-2", created_at=101.0)


async def test_the_first_claim_holds(stores: SqlStores) -> None:
    once = stores.idempotency
    assert await once.claim(CLAIM, 0.0) is None
    assert await once.claim(SECOND, 0.0) == CLAIM
    assert await once.find(SECOND) == CLAIM


async def test_a_key_belongs_to_one_caller(stores: SqlStores) -> None:
    for claim in (CLAIM, replace(CLAIM, subject="bob"), replace(CLAIM, tenant="globex"), replace(CLAIM, key_hash="l")):
        assert await stores.idempotency.find(claim) is None
        assert await stores.idempotency.claim(claim, 0.0) is None


async def test_the_outcome_is_kept(stores: SqlStores) -> None:
    once, answer = stores.idempotency, {"status": 200, "body": "e30=", "headers": {"x": "ü"}}
    await once.claim(CLAIM, 0.0)
    await once.finish(CLAIM, answer)
    assert await once.claim(SECOND, 0.0) == replace(CLAIM, answer=answer)


async def test_a_claim_is_free_again_when_it_is_forgotten_or_old(stores: SqlStores) -> None:
    once = stores.idempotency
    await once.claim(CLAIM, 0.0)
    await once.forget(SECOND)  # the claim of another call, so it is not forgotten
    assert await once.claim(SECOND, CLAIM.created_at) == CLAIM
    await once.forget(CLAIM)
    assert await once.find(CLAIM) is None
    assert await once.claim(CLAIM, 0.0) is None
    assert await once.claim(SECOND, CLAIM.created_at + 0.5) is None
    assert await once.find(CLAIM) == SECOND


async def test_a_claim_is_taken_over_once(stores: SqlStores) -> None:
    once = stores.idempotency
    await once.claim(CLAIM, 0.0)
    assert not await once.take_over(SECOND, "somebody else")
    assert await once.take_over(SECOND, CLAIM.job_id)
    assert not await once.take_over(replace(CLAIM, job_id="j-3"), CLAIM.job_id)
    assert await once.find(CLAIM) == SECOND


async def test_of_many_at_once_one_holds_the_key(open_stores: OpenStores, database_url: str) -> None:
    processes = [open_stores(database_url).idempotency for _ in range(4)]
    holders: list[Claim | None] = []

    async def claim(number: int) -> None:
        mine = replace(CLAIM, job_id=f"j-{number}")
        holders.append(await do_in_turn(partial(processes[number % 4].claim, mine, 0.0)))

    async with anyio.create_task_group() as group:
        for number in range(40):
            group.start_soon(claim, number)
    assert holders.count(None) == 1
    assert {holder for holder in holders if holder} == {await processes[0].find(CLAIM)}


async def test_a_claim_has_one_holder_while_others_are_freed(open_stores: OpenStores, database_url: str) -> None:
    """A key has one holder at a time, while holders free keys and old ones expire."""
    processes = [open_stores(database_url).idempotency for _ in range(4)]
    held: dict[str, str] = {}
    order = random.Random(7)

    async def come_and_go(number: int) -> None:
        once = processes[number % 4]
        for turn in range(12):
            key = order.choice("ab")
            mine = replace(CLAIM, key_hash=key, job_id=f"j-{number}-{turn}", created_at=200.0)
            old = replace(mine, key_hash=f"old {order.randrange(4)}", created_at=50.0)
            if await do_in_turn(partial(once.claim, mine, 100.0)) is None:
                assert held.setdefault(key, mine.job_id) == mine.job_id
                await do_in_turn(partial(once.claim, old, 10.0))
                del held[key]
                await do_in_turn(partial(once.forget, mine))

    async with anyio.create_task_group() as group:
        for number in range(16):
            group.start_soon(come_and_go, number)
