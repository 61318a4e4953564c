"""An address's budget of refusals: which refusals count, which callers are blocked then, and which are not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.limited import NEXT, assert_refused_with, limited_proxy, plan
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack

LIMIT = 5
ORIGIN = "https://app.acme.example"
PLANS = {"acme": plan(), "globex": plan()}
TENANTS = {"acme": {"allowed_origins": [ORIGIN]}}


@pytest.fixture(scope="module")
def budgeted(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    environ = {
        "PROXY_REFUSALS_PER_ADDRESS": f"{LIMIT}/minute",
        "PROXY_TRUSTED_PROXIES": "127.0.0.1",
        "PROXY_MAX_BODY_BYTES": "2048",
    }
    folder = tmp_path_factory.mktemp("budget")
    with limited_proxy(shared_sandbox, folder, PLANS, tenants=TENANTS, environ=environ) as stack:
        yield stack


@pytest.fixture
def proxy(budgeted: Stack, sandbox: SandboxControl) -> Stack:
    budgeted.clock.advance(60)
    return budgeted


def visitor(proxy: Stack, address: str, token: str = "") -> httpx.Client:
    """A caller at an address behind the balancer; without a credential if none is given."""
    return proxy.client(token, headers={"x-forwarded-for": address})


PREFLIGHT = {"origin": "https://evil.example", "access-control-request-method": "POST"}
REFUSED: dict[str, tuple[int, str, str, dict[str, Any]]] = {
    "no credential": (401, "GET", "/v1/session", {}),
    "a wrong credential": (401, "GET", "/v1/session", {"headers": {"authorization": "Bearer guess"}}),
    "a closed door": (401, "GET", "/v1/admin/tenants", {"headers": {"authorization": "Bearer guess"}}),
    "no such address": (404, "GET", "/nowhere", {}),
    "an unknown upload": (404, "PUT", f"/uploads/{'x' * 43}", {"content": b"x"}),
    "another method": (405, "POST", "/v1/session", {}),
    "a foreign page": (403, "POST", "/v1/sessions/guest", {"json": {}, "headers": {"origin": "https://evil.example"}}),
    "a refused preflight": (403, "OPTIONS", "/v1/jobs", {"headers": PREFLIGHT}),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_every_refusal_counts_until_the_address_is_blocked(proxy: Stack, kind: str) -> None:
    status, method, path, more = REFUSED[kind]
    with visitor(proxy, "203.0.113.1") as caller:
        answers = [caller.request(method, path, **more) for _ in range(LIMIT)]
        assert {answer.status_code for answer in answers} == {status}
        asked = len(proxy.sandbox.requests())
        for again in (caller.request(method, path, **more), caller.get("/openapi.json"), caller.get("/nowhere")):
            assert assert_refused_with(again, 429, "rate_limited", "ip")["retry_after"] == 60
        assert len(proxy.sandbox.requests()) == asked
        # Other addresses still get answers, and health checks still work.
        assert caller.get("/livez").status_code == caller.get("/readyz").status_code == 200
        with visitor(proxy, "203.0.113.2") as neighbour:
            assert neighbour.get("/openapi.json").status_code == 200
        proxy.clock.advance(59)
        assert_refused_with(caller.get("/openapi.json"), 429, "rate_limited", "ip")
        proxy.clock.advance(1)
        assert caller.get("/openapi.json").status_code == 200


INPUTS: dict[int, dict[str, Any]] = {
    400: {"content": b"{", "headers": {"content-type": "application/json"}},
    413: {"content": b"x" * 4096, "headers": {"content-type": "application/json"}},
    415: {"content": b"{}", "headers": {"content-type": "application/json", "content-encoding": "gzip"}},
    422: {"json": {"prompt": 1}},
}


@pytest.mark.parametrize("status", INPUTS)
def test_inputs_that_are_refused_count_too(proxy: Stack, status: int) -> None:
    with visitor(proxy, "203.0.113.3", proxy.token()) as alice, visitor(proxy, "203.0.113.3") as stranger:
        for _ in range(LIMIT):
            assert alice.post(f"/fal/run/{NEXT}", **INPUTS[status]).status_code == status
        assert_refused_with(stranger.get("/openapi.json"), 429, "rate_limited", "ip")


def test_an_ipv6_network_has_one_budget(proxy: Stack) -> None:
    for number in range(LIMIT):
        with visitor(proxy, f"2001:db8:1:2::{number:x}") as caller:
            assert caller.get("/v1/session").status_code == 401
    with visitor(proxy, "2001:db8:1:2:ffff::1") as caller:
        assert_refused_with(caller.get("/v1/session"), 429, "rate_limited", "ip")
    with visitor(proxy, "2001:db8:1:3::1") as caller:
        assert caller.get("/v1/session").status_code == 401


def test_a_good_credential_works_at_a_blocked_address(proxy: Stack) -> None:
    address = "203.0.113.4"
    token = proxy.token()
    with visitor(proxy, address) as stranger:
        for _ in range(LIMIT):
            stranger.get("/nowhere")
        assert_refused_with(stranger.get("/v1/session"), 429, "rate_limited", "ip")
        # Another process makes it only now.
        key = proxy.tenant_key()
        for good in (
            {"authorization": f"Bearer {token}"},
            {"authorization": f"Key {token}"},
            {"x-fal-proxy-session": token},
            {"cookie": f"__Host-fal_session={token}", "origin": ORIGIN},
            {"authorization": f"Bearer {key}"},
        ):
            assert stranger.get("/v1/session", headers=good).status_code == 200, good
        called = stranger.post(
            f"/s/{token}/api/fal/proxy",
            headers={"x-fal-target-url": f"https://fal.run/{NEXT}"},
            json={"image_url": "https://a.example/x.png", "prompt": "?"},
        )
        assert called.status_code != 429
        for bad in (f"Bearer {token[:-2]}", f"Bearer {key[:-2]}", f"Bearer {proxy.token(ttl_seconds=-1)}"):
            assert_refused_with(stranger.get("/v1/session", headers={"authorization": bad}), 429, "rate_limited", "ip")


def test_a_good_credential_has_no_more_refusals_than_an_address(proxy: Stack) -> None:
    address = "203.0.113.5"
    with visitor(proxy, address) as stranger:
        for _ in range(LIMIT):
            stranger.get("/nowhere")
    with visitor(proxy, address, proxy.token()) as alice, visitor(proxy, address, proxy.token("ben")) as ben:
        for number in range(LIMIT):
            assert alice.get(f"/v1/jobs/{number:08}-0000-4000-8000-000000000000").status_code == 404
        assert assert_refused_with(alice.get("/v1/session"), 429, "rate_limited", "session")["retry_after"] == 60
        assert ben.get("/v1/session").status_code == 200


def test_a_page_can_read_the_block_and_its_preflights_pass(proxy: Stack) -> None:
    with visitor(proxy, "203.0.113.6") as page:
        for _ in range(LIMIT):
            page.get("/v1/session", headers={"origin": ORIGIN})
        unheard = page.get("/v1/session", headers={"origin": ORIGIN})
        assert_refused_with(unheard, 429, "rate_limited", "ip")
        assert unheard.headers["access-control-allow-origin"] == ORIGIN
        asked = {"origin": ORIGIN, "access-control-request-method": "GET"}
        assert page.options("/v1/session", headers=asked).status_code == 200


def test_blocked_requests_are_counted_for_the_operator(proxy: Stack) -> None:
    def unheard() -> float:
        text = httpx.get(f"{proxy.url}/metrics", trust_env=False, verify=False, timeout=60).text
        line = next(line for line in text.splitlines() if line.startswith("fal_proxy_refusals_over_budget_total"))
        return float(line.split()[1])

    before = unheard()
    with visitor(proxy, "203.0.113.7") as caller:
        for _ in range(LIMIT + 3):
            caller.get("/nowhere")
    assert unheard() - before == 3


def test_refusals_of_limits_do_not_count(shared_sandbox: SandboxControl, tmp_path: Path) -> None:
    plans = {"acme": plan(rate_limits={"ip": None, "session": "1/minute", "subject": None, "tenant": None})}
    environ = {"PROXY_REFUSALS_PER_ADDRESS": "3/minute"}
    wanted = {"content_type": "image/png", "file_name": "a.png"}
    with (
        limited_proxy(shared_sandbox, tmp_path, plans, environ=environ) as own,
        own.client() as alice,
        own.client("") as stranger,
    ):
        statuses = [alice.post("/fal/rest/storage/upload/initiate", json=wanted).status_code for _ in range(8)]
        assert statuses == [200, *[429] * 7]
        assert stranger.get("/v1/session").status_code == 401
