"""Behind an untrusted balancer all callers have one address: none of them can lock another out."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from proxy.auth.admin_tokens import AdminTokens, Role
from proxy.limits.rates import ADMIN_LIMIT, GUEST_LIMIT
from proxy.stores.sql import SqlStores
from tests.console.operators import new_token, operator_of
from tests.support.audit_log import AUTHOR
from tests.support.limited import ADMIN_TOKEN, assert_refused_with, limited_proxy, plan
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack

LIMIT = 5
PLANS = {"acme": plan()}
NAMED = f"fpa_{'0' * 16}_{'a' * 43}"


@pytest.fixture(scope="module")
def budgeted(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    environ = {"PROXY_REFUSALS_PER_ADDRESS": f"{LIMIT}/minute"}
    with limited_proxy(shared_sandbox, tmp_path_factory.mktemp("shared"), PLANS, environ=environ) as stack:
        yield stack


@pytest.fixture
def proxy(budgeted: Stack, sandbox: SandboxControl) -> Stack:
    budgeted.clock.advance(60)
    return budgeted


def use_up_the_budget(proxy: Stack) -> None:
    with proxy.client("") as abuser:
        for _ in range(LIMIT):
            assert abuser.get("/nowhere").status_code == 404
        assert_refused_with(abuser.get("/nowhere"), 429, "rate_limited", "ip")


def list_tenants(proxy: Stack, token: str) -> httpx.Response:
    with proxy.client(token) as operator:
        return operator.get("/v1/admin/tenants")


def test_an_operator_is_not_blocked_by_refusals_of_others(proxy: Stack) -> None:
    named = new_token(proxy, "on-call", "viewer")
    use_up_the_budget(proxy)
    for token in (ADMIN_TOKEN, named):
        assert list_tenants(proxy, token).status_code == 200
    for wrong in (ADMIN_TOKEN[:-1], named[:-1] + "-", NAMED, proxy.token(), proxy.tenant_key()):
        assert_refused_with(list_tenants(proxy, wrong), 429, "rate_limited", "ip")


def test_a_token_that_another_process_makes_is_accepted_at_a_blocked_address(proxy: Stack) -> None:
    use_up_the_budget(proxy)
    assert list_tenants(proxy, asyncio.run(_make_elsewhere(proxy))).status_code == 200


async def _make_elsewhere(proxy: Stack) -> str:
    stores = SqlStores(proxy.settings.stores.database_url.reveal())
    try:
        tokens = AdminTokens(None, stores.admin_tokens, proxy.clock)
        text, _ = await tokens.create("elsewhere", Role.VIEWER, None, by=replace(AUTHOR, at=proxy.clock.now()))
    finally:
        await stores.close()
    # The running proxy reads the named tokens of others at this age at the latest.
    proxy.clock.advance(2)
    return text


def test_an_admin_token_counts_for_operators_only(proxy: Stack) -> None:
    use_up_the_budget(proxy)
    with proxy.client(ADMIN_TOKEN) as operator:
        for path in ("/v1/session", "/nowhere", "/console/tenants"):
            assert_refused_with(operator.get(path), 429, "rate_limited", "ip")


def test_an_operator_has_no_more_refusals_than_an_address(proxy: Stack) -> None:
    named = new_token(proxy, "clumsy", "viewer")
    use_up_the_budget(proxy)
    with proxy.client(named) as clumsy:
        for _ in range(LIMIT):
            assert clumsy.get("/v1/admin/tenants/nobody").status_code == 404
        assert_refused_with(clumsy.get("/v1/admin/tenants"), 429, "rate_limited", "session")
    assert list_tenants(proxy, ADMIN_TOKEN).status_code == 200


def test_the_console_works_with_a_session_at_a_blocked_address(proxy: Stack) -> None:
    with operator_of(proxy) as operator, operator_of(proxy, None) as stranger:
        form = stranger.get("/console/sign-in").cookies["fal_console_form"]
        use_up_the_budget(proxy)
        assert operator.is_signed_in()
        for text in (form, f"{operator.cookie}x"):
            stranger.http.cookies.set("fal_console", text)
            assert stranger.get("/console/tenants").status_code == 429


def test_an_expired_session_of_the_console_is_blocked(proxy: Stack) -> None:
    with operator_of(proxy) as operator:
        proxy.clock.advance(1800)
        use_up_the_budget(proxy)
        assert operator.get("/console/tenants").status_code == 429


# The flood guard, in front of the routes where credentials can be guessed. It uses the system's clock.


def flood(client: httpx.Client, method: str, path: str, limit: str) -> None:
    """Ask until the limit is used up: one more request would be refused."""
    for _ in range(int(limit.partition("/")[0]) + 1):
        answer = client.request(method, path)
    assert_refused_with(answer, 429, "rate_limited", "ip")


def test_guesses_are_limited_and_a_valid_admin_token_still_works(
    shared_sandbox: SandboxControl, tmp_path: Path
) -> None:
    with limited_proxy(shared_sandbox, tmp_path, PLANS) as own, own.client("guess") as guesser:
        named = new_token(own, "on-call", "viewer")
        flood(guesser, "GET", "/v1/admin/tenants", ADMIN_LIMIT)
        assert_refused_with(list_tenants(own, NAMED), 429, "rate_limited", "ip")
        assert list_tenants(own, ADMIN_TOKEN).status_code == list_tenants(own, named).status_code == 200
        # Its own count does not affect other tokens.
        with own.client(named) as busy:
            flood(busy, "GET", "/v1/admin/tenants", ADMIN_LIMIT)
        assert list_tenants(own, ADMIN_TOKEN).status_code == 200


def test_a_session_of_the_console_is_not_blocked_by_visits_of_others(
    shared_sandbox: SandboxControl, tmp_path: Path
) -> None:
    with limited_proxy(shared_sandbox, tmp_path, PLANS) as own, operator_of(own) as operator, own.client("") as anyone:
        for _ in range(int(ADMIN_LIMIT.partition("/")[0])):
            answer = anyone.get("/console/tenants")
        assert answer.status_code == 429
        assert operator.is_signed_in()


def test_bad_tokens_do_not_block_good_ones_where_sessions_are_made(
    shared_sandbox: SandboxControl, tmp_path: Path
) -> None:
    """The exchange has the lowest limit. It refuses keys and sessions too, but only behind the flood guard."""
    with limited_proxy(shared_sandbox, tmp_path, PLANS) as own, own.client("guess") as guesser:
        flood(guesser, "POST", "/v1/sessions/exchange", GUEST_LIMIT)
        for credential in (own.tenant_key(), own.token()):
            with own.client(credential) as caller:
                assert_refused_with(caller.post("/v1/sessions/exchange", json={}), 403, "not_allowed")
