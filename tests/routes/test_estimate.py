"""`POST /v1/estimate`: it predicts how a submit will be answered, and reserves nothing."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.auth.sessions import Sessions
from proxy.limits.quotas import COMPUTE_SECONDS_CEILING
from proxy.tenants.caller import SessionQuota
from tests.support.limited import (
    COUNTING,
    NEXT,
    NOTHING,
    Client,
    account,
    asking,
    assert_refused_with,
    limited_proxy,
    per,
    plan,
    posts,
)
from tests.support.private_pictures import bomb, private_picture, several
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack
from tests.support.waiting import wait_until

PATH = "/v1/estimate"
PRICE = 0.0006
PRICES = [{"id": endpoint, "price_per_compute_second": PRICE} for endpoint in (NEXT, COUNTING)]
NO_RATES = {"ip": None, "session": None, "subject": None, "tenant": None}
PLANS = {
    "wide": plan(),
    "rated": plan(rate_limits={**NO_RATES, "subject": "1/minute", "tenant": "100/minute"}),
    "busy": plan(concurrency={"subject": 1, "tenant": None}),
    "crowded": plan(concurrency={"subject": None, "tenant": 1}),
    "poor": plan(quotas=[per("subject", "requests", 1)]),
    "spent": plan(quotas=[per("tenant", "usd", COMPUTE_SECONDS_CEILING * PRICE, "month")]),
    "once": plan(quotas=[per("subject", "tokens", 1_000, "lifetime")]),
    "narrow": plan(endpoints=[COUNTING], max_tokens=50),
    "private": plan(strip_metadata=True, max_data_uri_bytes=4_000_000),
}
GUARDED = {"PROXY_UPSTREAM_PROBE_SECONDS": "1"}
WAITS = "[[pace hold=IN_QUEUE]] ?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("estimates")


@pytest.fixture(scope="module")
def limited(shared_sandbox: SandboxControl, folder: Path) -> Iterator[Stack]:
    with limited_proxy(shared_sandbox, folder, PLANS, endpoints=PRICES, environ=GUARDED) as stack:
        yield stack


@pytest.fixture
def proxy(limited: Stack, sandbox: SandboxControl) -> Iterator[Stack]:
    limited.clock.advance(60)
    yield limited
    # What one test closes is open again for the next.
    limited.clock.advance(60)


def data_uri(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def estimate(http: httpx.Client, given: dict[str, Any] | None = None, endpoint: str = NEXT) -> dict[str, Any]:
    wanted = {"endpoint": endpoint, "input": asking("?") if given is None else given}
    found: dict[str, Any] = http.post(PATH, json=wanted).raise_for_status().json()
    return found


def assert_as_submit(http: httpx.Client, given: dict[str, Any] | None = None, endpoint: str = NEXT) -> dict[str, Any]:
    """The estimate, once a submit after it meets the refusal that it names, word for word."""
    found = estimate(http, given, endpoint)
    wanted = {"endpoint": endpoint, "input": asking("?") if given is None else given}
    answer = http.post("/v1/jobs", json=wanted)
    assert found["endpoint"] == endpoint and found["admitted"] is (found["refusal"] is None)
    if found["admitted"]:
        assert answer.status_code == 202, answer.text
        return found
    body = assert_refused_with(
        answer, found["refusal"]["status"], found["refusal"]["error_type"], found["refusal"].get("scope")
    )
    for name in ("message", "detail", "retry_after"):
        assert found["refusal"].get(name) == body.get(name)
    return found


# --- what is reserved


def test_an_estimate_names_the_amounts_that_the_ledger_will_reserve(proxy: Stack, folder: Path) -> None:
    with proxy.client(proxy.token("alice", tenant="spent")) as http:
        found = assert_as_submit(http, asking(WAITS, max_tokens=77))
        assert found["reserves"] == {
            "requests": 1,
            "tokens": 77,
            "compute_seconds": COMPUTE_SECONDS_CEILING,
            "usd": COMPUTE_SECONDS_CEILING * PRICE,
        }
        assert account(folder, "spent", "usd").reserved == pytest.approx(found["reserves"]["usd"])


def test_an_estimate_fills_in_the_same_defaults_as_the_call(proxy: Stack) -> None:
    with proxy.client(proxy.token("alice", tenant="narrow")) as http:
        assert estimate(http, endpoint=COUNTING)["reserves"]["tokens"] == 50


def test_an_estimate_reserves_nothing(proxy: Stack, folder: Path) -> None:
    with Client(proxy, proxy.token("thrifty", tenant="poor")) as alice:
        for _ in range(3):
            assert estimate(alice.http)["admitted"]
        assert account(folder, "poor", "requests", "thrifty") == NOTHING and alice.slots() == (0, 0)
    assert posts(proxy.sandbox) == []
    with proxy.client(proxy.token("thrifty", tenant="rated")) as http:
        assert estimate(http)["admitted"]
        assert http.post(f"/fal/run/{NEXT}", json=asking("?")).status_code == 200


# --- who asks


def test_an_estimate_answers_a_tenant_key_and_a_cookie(proxy: Stack) -> None:
    with proxy.client(proxy.tenant_key("wide")) as backend:
        assert estimate(backend)["admitted"]
    headers = {"cookie": proxy.cookie(proxy.token(tenant="wide")), "origin": proxy.url}
    with proxy.client("", headers=headers) as page:
        assert estimate(page)["admitted"]


# --- the refusals


def test_an_endpoint_that_the_caller_may_not_call_is_refused(proxy: Stack) -> None:
    with proxy.client(proxy.token(tenant="narrow")) as http:
        for endpoint in (NEXT, "fal-ai/flux/dev"):
            found = assert_as_submit(http, endpoint=endpoint)
            assert found["refusal"]["error_type"] == "endpoint_not_allowed" and found["reserves"] is None


def test_an_endpoint_outside_of_the_session_is_refused(proxy: Stack) -> None:
    with proxy.client(proxy.token(tenant="wide", endpoints=[COUNTING])) as http:
        assert assert_as_submit(http)["refusal"]["error_type"] == "endpoint_not_allowed"


@pytest.mark.parametrize(
    "given",
    [{"prompt": 5}, asking("?", max_tokens=51), asking("?") | {"image_url": "http://127.0.0.1/a.png"}],
    ids=["schema", "tokens", "url"],
)
def test_an_invalid_input_is_refused(proxy: Stack, given: dict[str, Any]) -> None:
    with proxy.client(proxy.token(tenant="narrow")) as http:
        found = assert_as_submit(http, given, COUNTING)
        assert found["refusal"]["error_type"] == "invalid_input" and found["reserves"] is None


def test_a_picture_whose_metadata_cannot_be_removed_is_refused(proxy: Stack) -> None:
    with proxy.client(proxy.token(tenant="private")) as http:
        for data in (several("GIF"), private_picture("PNG")[:300]):
            found = assert_as_submit(http, asking("?") | {"image_url": data_uri(data)})
            assert found["refusal"]["error_type"] == "invalid_input" and found["reserves"] is None
        assert assert_as_submit(http, asking("?") | {"image_url": data_uri(private_picture("PNG"))})["admitted"]


def test_pictures_that_wait_in_too_large_a_number_are_reported(proxy: Stack) -> None:
    """One is looked at and eight wait, each for a fraction of a second; forty arrive meanwhile."""
    given = asking("?") | {"image_url": data_uri(bomb(3000, 3000))}
    with proxy.client(proxy.token(tenant="private")) as http, ThreadPoolExecutor(40) as pool:
        found = list(pool.map(lambda _: estimate(http, given), range(40)))
    refused = [one["refusal"] for one in found if not one["admitted"]]
    assert refused and len(refused) < len(found)
    for refusal in refused:
        assert (refusal["status"], refusal["error_type"], refusal["scope"]) == (503, "overloaded", "tenant")
        assert refusal["retry_after"] == 2
    assert all(one["reserves"]["requests"] == 1 for one in found)


def test_a_used_up_rate_limit_is_reported(proxy: Stack) -> None:
    with proxy.client(proxy.token("hasty", tenant="rated")) as http:
        assert http.post(f"/fal/run/{NEXT}", json=asking("?")).status_code == 200
        found = assert_as_submit(http)
        assert (found["refusal"]["error_type"], found["refusal"]["scope"]) == ("rate_limited", "subject")
        assert found["refusal"]["retry_after"] == 60 and found["reserves"]["requests"] == 1


def test_the_first_refusal_counts(proxy: Stack) -> None:
    with proxy.client(proxy.token("both", tenant="rated")) as http:
        assert http.post(f"/fal/run/{NEXT}", json=asking("?")).status_code == 200
        found = assert_as_submit(http, {"prompt": 5})
        assert found["refusal"]["error_type"] == "rate_limited" and found["reserves"] is None


@pytest.mark.parametrize(("tenant", "scope"), [("busy", "subject"), ("crowded", "tenant")])
def test_a_caller_at_its_limit_of_jobs_is_reported(proxy: Stack, tenant: str, scope: str) -> None:
    with Client(proxy, proxy.token("alice", tenant=tenant)) as alice:
        job = alice.submitted(WAITS)
        found = assert_as_submit(alice.http)
        assert (found["refusal"]["error_type"], found["refusal"]["scope"]) == ("too_many_jobs", scope)
        alice.cancel(job)
        wait_until(lambda: alice.status(job).status_code == 200, "the job does not end")
        assert assert_as_submit(alice.http)["admitted"]


@pytest.mark.parametrize("tenant", ["poor", "once"])
def test_a_used_up_quota_is_reported(proxy: Stack, tenant: str) -> None:
    with Client(proxy, proxy.token("spender", tenant=tenant)) as alice:
        assert alice.submit(WAITS, max_tokens=600).status_code == 200
        found = assert_as_submit(alice.http, asking("?", max_tokens=600))
        assert found["refusal"]["error_type"] == "quota_exceeded" and found["reserves"]["tokens"] == 600
        assert ("retry_after" in found["refusal"]) is (tenant == "poor")


def test_a_used_up_quota_of_the_session_is_reported(proxy: Stack) -> None:
    sessions = Sessions(proxy.settings.sessions.secrets, proxy.clock)
    token, _ = sessions.mint("wide", "alice", 600, quotas=(SessionQuota("requests", 1_000_000),))
    with proxy.client(token) as http:
        assert assert_as_submit(http)["admitted"]
        assert assert_as_submit(http)["refusal"]["scope"] == "session"


def test_an_estimate_does_not_use_the_probe_of_a_locked_account(proxy: Stack, sandbox: SandboxControl) -> None:
    with Client(proxy, proxy.token("alice", tenant="wide")) as alice:
        sandbox.fault("refuse", reason="account_locked", on={"operation": "submit"})
        assert_refused_with(alice.submit(), 503, "upstream_account_locked", "upstream")
        found = assert_as_submit(alice.http)
        assert found["refusal"]["error_type"] == "upstream_account_locked" and found["reserves"]["requests"] == 1
        sandbox.clear_faults()
        proxy.clock.advance(3)
        # A probe is due. The estimates leave it to the call that follows.
        with proxy.client(proxy.token("bob", tenant="wide")) as bob:
            assert estimate(bob)["admitted"] and estimate(bob)["admitted"]
        assert alice.submit().status_code == 200


# --- limits on estimates themselves


def test_a_malformed_estimate_is_refused(proxy: Stack) -> None:
    with proxy.client(proxy.token(tenant="wide")) as http:
        good = {"endpoint": NEXT, "input": asking("?")}
        for wrong in (
            {"endpoint": NEXT},
            {**good, "more": 1},
            {**good, "input": []},
            {**good, "endpoint": "no/../path"},
        ):
            assert_refused_with(http.post(PATH, json=wrong), 400, "bad_request")
        assert "query key" in assert_refused_with(http.post(f"{PATH}?a=1", json=good), 400, "bad_request")["message"]
        assert_refused_with(
            http.post(PATH, content=b"{}", headers={"content-type": "text/plain"}), 415, "unsupported_media_type"
        )
        assert http.get(PATH).status_code == 405


def test_estimates_have_the_rate_limits_of_calls(proxy: Stack) -> None:
    with proxy.client(proxy.token("curious", tenant="rated")) as http:
        estimate(http)
        body = assert_refused_with(http.post(PATH, content=b"never read"), 429, "rate_limited", "subject")
        assert body["retry_after"] == 60
        proxy.clock.advance(60)
        estimate(http)


def test_rate_limit_headers_of_an_estimate_count_estimates(proxy: Stack) -> None:
    with proxy.client(proxy.token("reader", tenant="rated")) as http:
        answer = http.post(PATH, json={"endpoint": NEXT, "input": asking("?")})
        assert answer.headers["ratelimit-policy"] == '"subject";q=1;w=60, "tenant";q=100;w=60'
        assert answer.headers["ratelimit"] == '"subject";r=0;t=60'
        run = http.post(f"/fal/run/{NEXT}", json=asking("?"))
        assert run.status_code == 200 and run.headers["ratelimit"] == '"subject";r=0;t=60'
