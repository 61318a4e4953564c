"""Prices lie in the directory: a change counts at once, and a quota of US dollars lets in no call without a price."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.limits.quotas import COMPUTE_SECONDS_CEILING
from proxy.stores.sql import SqlStores
from tests.support.audit_log import AUTHOR
from tests.support.limited import (
    COUNTING,
    NEXT,
    Client,
    account,
    assert_refused_with,
    limited_proxy,
    operating,
    per,
    plan,
)
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack

PLANS = {"open": plan(), "priced": plan(quotas=[per("tenant", "usd", 1000, "month")], endpoints=[NEXT])}


def prices(**named: float) -> list[dict[str, Any]]:
    ids = {"next": NEXT, "counting": COUNTING}
    return [{"id": ids[name], "price_per_compute_second": price} for name, price in named.items()]


@pytest.fixture
def proxy(sandbox: SandboxControl, tmp_path: Path) -> Iterator[Stack]:
    with limited_proxy(sandbox, tmp_path, PLANS, endpoints=prices(next=0.5)) as stack:
        yield stack


def write_plan(stack: Stack, *quotas: dict[str, Any]) -> None:
    """Put a plan into the database as a version did that asked for no prices."""

    async def apply() -> None:
        stores = SqlStores(stack.settings.stores.database_url.reveal())
        try:
            await stores.directory.apply({"open": plan(quotas=list(quotas))}, [], by=AUTHOR)
        finally:
            await stores.close()

    asyncio.run(apply())
    stack.clock.advance(5)


def test_a_new_price_counts_for_the_next_call(proxy: Stack, tmp_path: Path) -> None:
    with operating(proxy) as operator, Client(proxy, proxy.token(tenant="priced")) as alice:
        job = alice.submitted("[[pace hold=IN_QUEUE]] ?", NEXT)
        assert account(tmp_path, "priced", "usd").reserved == 0.5 * COMPUTE_SECONDS_CEILING
        assert operator.put("/v1/admin/tenants", json={"plans": {}, "endpoints": prices(next=2)}).status_code == 200
        alice.submitted("[[pace hold=IN_QUEUE]] ?", NEXT)
        assert account(tmp_path, "priced", "usd").reserved == 2.5 * COMPUTE_SECONDS_CEILING
        # Named without a price, it keeps the one that it has.
        assert operator.put("/v1/admin/tenants", json={"plans": {}, "endpoints": [{"id": NEXT}]}).json() == {
            "changed": False
        }
        assert job and alice.run(endpoint=NEXT).status_code == 200


def test_a_price_that_another_process_applies_counts_here(proxy: Stack, tmp_path: Path) -> None:
    async def apply() -> None:
        stores = SqlStores(proxy.settings.stores.database_url.reveal())
        try:
            await stores.directory.apply({}, [], {NEXT: {"price_per_compute_second": 3}}, by=AUTHOR)
        finally:
            await stores.close()

    asyncio.run(apply())
    proxy.clock.advance(5)
    with Client(proxy, proxy.token(tenant="priced")) as alice:
        alice.submitted("[[pace hold=IN_QUEUE]] ?", NEXT)
        assert account(tmp_path, "priced", "usd").reserved == 3 * COMPUTE_SECONDS_CEILING


def test_a_limit_in_the_database_that_cannot_count_lets_no_call_in(
    proxy: Stack, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Client(proxy, proxy.token(tenant="open")) as alice, operating(proxy) as operator:
        assert alice.run(endpoint=COUNTING).status_code == 200
        write_plan(proxy, {**per("subject", "usd", 500), "mode": "warn"})
        assert alice.run(endpoint=COUNTING).status_code == 200
        caplog.clear()
        with caplog.at_level(logging.ERROR):
            write_plan(proxy, per("subject", "usd", 500))
            assert COUNTING in assert_refused_with(alice.run(endpoint=COUNTING), 403, "endpoint_not_allowed")["detail"]
        assert [one.log_fields for one in caplog.records if one.message == "quotas of usd without prices"] == [
            {"number": 1, "plans": f"open: {COUNTING}"}
        ]
        assert alice.facts()["endpoints"] == [NEXT] and alice.run(endpoint=NEXT).status_code == 200
        assert operator.put("/v1/admin/tenants", json={"plans": {}, "endpoints": prices(counting=1)}).status_code == 200
        assert alice.facts()["endpoints"] == [NEXT, COUNTING] and alice.run(endpoint=COUNTING).status_code == 200
        assert account(tmp_path, "open", "usd", "alice").used > 0


def test_a_session_with_money_needs_the_prices_of_its_endpoints(proxy: Stack) -> None:
    money = {"subject": "alice", "quotas": [{"unit": "usd", "limit": 50}]}
    with proxy.client(proxy.tenant_key("open")) as backend, operating(proxy) as operator:
        for form in (money, {**money, "endpoints": [COUNTING]}):
            for answer in (
                backend.post("/v1/sessions", json=form),
                operator.post("/v1/admin/sessions", json={"tenant": "open", **form}),
            ):
                detail = assert_refused_with(answer, 400, "bad_request")["detail"]
                assert detail == f"quotas: usd counts nothing for {COUNTING}: no price is known"
        session = backend.post("/v1/sessions", json={**money, "endpoints": [NEXT]}).json()
    with Client(proxy, session["token"]) as alice:
        assert alice.run(endpoint=NEXT).status_code == 200
