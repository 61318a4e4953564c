"""A caller with a small quota is let in by what such calls usually use, and goes below zero by one call at most."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.limits.learned import LEAST_CALLS, size_of
from proxy.limits.quotas import COMPUTE_SECONDS_CEILING
from proxy.stores.learned import LearnedUse
from proxy.stores.ledger import SizeClass
from proxy.stores.sql import SqlStores
from tests.support.clock import MovableClock
from tests.support.limited import (
    COUNTING,
    NEXT,
    Booked,
    Client,
    account,
    asking,
    assert_refused_with,
    limited_proxy,
    per,
    plan,
)
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack
from tests.support.waiting import wait_until

PRICE = 0.001
LEFT = 20
PLANS = {
    "teacher": plan(),
    "seconds": plan(quotas=[per("subject", "compute_seconds", LEFT, "month")]),
    "money": plan(quotas=[per("tenant", "usd", LEFT * PRICE, "month")]),
    "tokens": plan(quotas=[per("tenant", "tokens", 40, "month")]),
}
QUICK = "[[pace run_seconds=0.01]] ?"
PRICES = [{"id": endpoint, "price_per_compute_second": PRICE} for endpoint in (NEXT, COUNTING)]


@pytest.fixture
def proxy(sandbox: SandboxControl, tmp_path: Path) -> Iterator[Stack]:
    with limited_proxy(sandbox, tmp_path, PLANS, endpoints=PRICES) as stack:
        yield stack


def teach(stack: Stack, endpoint: str = NEXT, calls: int = LEAST_CALLS) -> None:
    with Client(stack, stack.token(tenant="teacher")) as teacher:
        assert {teacher.run(QUICK, endpoint=endpoint).status_code for _ in range(calls)} == {200}


def test_a_quota_below_the_ceiling_lets_calls_in_once_enough_is_learned(proxy: Stack, tmp_path: Path) -> None:
    with (
        Client(proxy, proxy.token(tenant="seconds")) as alice,
        Client(proxy, proxy.token(tenant="money")) as bob,
    ):
        teach(proxy, calls=LEAST_CALLS - 1)
        for client, scope in ((alice, "subject"), (bob, "tenant")):
            assert_refused_with(client.run(QUICK), 402, "quota_exceeded", scope)
        teach(proxy, calls=1)
        assert [alice.run(QUICK).status_code, bob.run(QUICK).status_code, alice.run(QUICK).status_code] == [200] * 3
        assert account(tmp_path, "money", "usd") == Booked(0.01 * PRICE, 0)


def test_the_account_of_a_session_is_never_exceeded(proxy: Stack) -> None:
    teach(proxy)
    form = {"subject": "alice", "quotas": [{"unit": "compute_seconds", "limit": COMPUTE_SECONDS_CEILING - 1}]}
    with proxy.client(proxy.tenant_key("seconds")) as backend:
        session = backend.post("/v1/sessions", json=form).json()
    with Client(proxy, session["token"]) as narrowed, Client(proxy, proxy.token(tenant="seconds")) as alice:
        assert_refused_with(narrowed.run(QUICK), 402, "quota_exceeded", "session")
        assert alice.run(QUICK).status_code == 200


def test_tokens_are_learned_where_they_are_reported(proxy: Stack, tmp_path: Path) -> None:
    with Client(proxy, proxy.token(tenant="tokens")) as alice:
        assert_refused_with(alice.run(QUICK, endpoint=COUNTING), 402, "quota_exceeded", "tenant")
        teach(proxy, COUNTING)
        teach(proxy, NEXT)
        assert alice.run(QUICK, endpoint=COUNTING).status_code == 200
        assert 0 < account(tmp_path, "tokens", "tokens").used < 40
        # This model tells no figure, so its calls need their ceiling.
        assert_refused_with(alice.run(QUICK, endpoint=NEXT), 402, "quota_exceeded", "tenant")


def test_a_call_that_used_more_is_booked_in_full_and_nothing_more_is_let_in(proxy: Stack, tmp_path: Path) -> None:
    teach(proxy, COUNTING)
    with Client(proxy, proxy.token(tenant="seconds")) as alice:
        job = alice.submitted("[[pace run_seconds=45 hold=IN_QUEUE]] ?", COUNTING)
        assert account(tmp_path, "seconds", "compute_seconds", "alice") == Booked(0, COMPUTE_SECONDS_CEILING)
        assert_refused_with(alice.run(QUICK, endpoint=COUNTING), 402, "quota_exceeded", "subject")
        proxy.sandbox.move_job(job, "finish")
        assert alice.result(job, COUNTING).headers["x-fal-billable-units"] == "45"
        assert account(tmp_path, "seconds", "compute_seconds", "alice") == Booked(45, 0)
        assert_refused_with(alice.run(QUICK, endpoint=COUNTING), 402, "quota_exceeded", "subject")
        (quota,) = alice.facts()["quotas"]
        assert (quota["used"], quota["reserved"], quota["left"]) == (45, 0, 0)


def test_small_pictures_teach_nothing_about_large_ones(proxy: Stack) -> None:
    teach(proxy)
    with Client(proxy, proxy.token(tenant="seconds")) as alice:
        large = {"prompt": QUICK, "image_url": "data:image/png;base64," + "A" * 100_000, "max_tokens": 64}
        assert_refused_with(alice.call("POST", f"run/{NEXT}", large), 402, "quota_exceeded", "subject")


def test_what_was_learned_survives_a_restart(sandbox: SandboxControl, tmp_path: Path) -> None:
    picture = size_of(NEXT, asking(QUICK), 0).picture
    uses = [LearnedUse(SizeClass(NEXT, picture, tokens), None, 10_000) for tokens in range(21)]

    async def save() -> None:
        stores = SqlStores(f"sqlite:///{tmp_path / 'proxy.db'}")
        try:
            await stores.prepare()
            await stores.learned.save(uses, MovableClock().now(), 0.0)
        finally:
            await stores.close()

    asyncio.run(save())
    with (
        limited_proxy(sandbox, tmp_path, PLANS, endpoints=PRICES) as stack,
        Client(stack, stack.token(tenant="seconds")) as alice,
    ):
        wait_until(lambda: alice.run(QUICK).status_code == 200, "it is not read")
