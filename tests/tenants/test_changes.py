"""Guests, and changes of secrets, keys and plans while callers are active."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.limited import (
    ADMIN_TOKEN,
    NEXT,
    Client,
    assert_refused_with,
    limited_proxy,
    operating,
    per,
    plan,
    posts,
)
from tests.support.sandbox import SandboxControl
from tests.support.secrets import SECRET
from tests.support.stack import Stack

QUEUED = "[[pace hold=IN_QUEUE]] ?"
PAGE = "https://app.example"
OTHER_PAGE = "https://other.example"
PLANS = {
    "page": plan(quotas=[per("subject", "requests", 3)]),
    "guests": plan(quotas=[per("subject", "requests", 1)], endpoints=[NEXT]),
    "unlimited": plan(),
}
TENANTS = {
    "page": {"allowed_origins": [PAGE], "guests": {"enabled": True, "plan": "guests", "per_address": "2/hour"}},
    "unlimited": {"allowed_origins": [OTHER_PAGE], "guests": {"enabled": True, "per_address": None}},
}


# --- guests


@pytest.fixture(scope="module")
def limited(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    trusting = {"proxy_headers": True, "forwarded_allow_ips": ["127.0.0.0/8"]}
    folder = tmp_path_factory.mktemp("changes")
    with limited_proxy(shared_sandbox, folder, PLANS, tenants=TENANTS, server=trusting) as stack:
        yield stack


@pytest.fixture
def proxy(limited: Stack, sandbox: SandboxControl) -> Stack:
    return limited


def guest(proxy: Stack, address: str, origin: str = PAGE) -> httpx.Response:
    headers = {"origin": origin, "x-forwarded-for": address}
    return httpx.post(f"{proxy.url}/v1/sessions/guest", headers=headers, trust_env=False, verify=False, timeout=60)


def test_an_address_gets_a_limited_number_of_guests(proxy: Stack) -> None:
    assert [guest(proxy, "192.0.2.1").status_code for _ in range(2)] == [201, 201]
    refused = guest(proxy, "192.0.2.1")
    wait = assert_refused_with(refused, 429, "rate_limited", "ip")["retry_after"]
    assert wait == 3600 and refused.headers["ratelimit-policy"] == '"ip";q=2;w=3600'
    assert guest(proxy, "192.0.2.2").status_code == 201
    # All addresses of one IPv6 network count as one.
    households = [guest(proxy, f"2001:db8:7:7::{number}").status_code for number in range(3)]
    assert households == [201, 201, 429]
    proxy.clock.advance(wait - 1)
    assert assert_refused_with(guest(proxy, "192.0.2.1"), 429, "rate_limited", "ip")["retry_after"] == 1
    proxy.clock.advance(1)
    assert guest(proxy, "192.0.2.1").status_code == 201


def test_a_tenant_can_allow_another_number_of_guests(proxy: Stack) -> None:
    assert [guest(proxy, "192.0.2.9", OTHER_PAGE).status_code for _ in range(5)] == [201] * 5


def test_a_guest_has_the_plan_of_guests_and_is_a_user_of_its_own(proxy: Stack) -> None:
    tokens = [guest(proxy, f"198.51.100.{number}").json()["token"] for number in range(2)]
    for token in tokens:
        with Client(proxy, token) as someone:
            assert someone.facts()["endpoints"] == [NEXT]
            assert [someone.run().status_code, someone.run().status_code] == [200, 402]
            assert_refused_with(someone.run(endpoint="fal-ai/llavav15-13b"), 403, "endpoint_not_allowed")


# --- secrets


def test_a_session_signed_with_an_old_secret_is_valid_until_the_secret_is_removed(
    sandbox: SandboxControl, tmp_path: Path
) -> None:
    new = "a-new-secret-of-the-tests-with-more-than-32-bytes"
    limits = {"page": PLANS["page"]}
    with limited_proxy(sandbox, tmp_path, limits) as before, Client(before, before.token(tenant="page")) as alice:
        job, token = alice.submitted(QUEUED), alice.token
    rotated = {"PROXY_SESSION_SECRETS": f"{new},{SECRET}"}
    with limited_proxy(sandbox, tmp_path, limits, environ=rotated, clock=before.clock) as during:
        with Client(during, token) as alice:
            assert alice.status(job).json()["status"] == "IN_QUEUE" and alice.run().status_code == 200
        fresh = during.token(tenant="page")
        with Client(during, fresh) as again:
            # The same user: the job is theirs, and so is the quota.
            assert again.status(job).is_success
            assert [again.run().status_code, again.run().status_code] == [200, 402]
    gone = {"PROXY_SESSION_SECRETS": new}
    with limited_proxy(sandbox, tmp_path, limits, environ=gone, clock=before.clock) as after:
        with Client(after, token) as alice:
            assert_refused_with(alice.status(job), 401, "unauthenticated")
        with Client(after, fresh) as alice:
            assert alice.status(job).is_success


# --- keys and plans, by the operator


class Operator:
    """The holder of the admin token."""

    def __init__(self, stack: Stack) -> None:
        self._url = f"{stack.url}/v1/admin"
        self._headers = {"authorization": f"Bearer {ADMIN_TOKEN}"}

    def __call__(self, method: str, path: str, json: Any = None) -> httpx.Response:
        answer = httpx.request(
            method, self._url + path, json=json, headers=self._headers, trust_env=False, verify=False, timeout=60
        )
        assert answer.is_success, answer.text
        return answer


def test_a_key_may_be_revoked_while_it_is_in_use(sandbox: SandboxControl, tmp_path: Path) -> None:
    with limited_proxy(sandbox, tmp_path, {"page": PLANS["page"]}) as own:
        operator = Operator(own)
        old, new = (operator("POST", "/tenants/page/keys", {"name": name}).json() for name in ("old", "new"))
        with Client(own, old["key"]) as server, Client(own, new["key"]) as same_server:
            job = server.submitted(QUEUED)
            minted = server.http.post("/v1/sessions", json={"subject": "alice"}).json()["token"]
            assert same_server.status(job).is_success
            operator("DELETE", f"/keys/{old['id']}")
            for refused in (server.run(), server.status(job), server.http.post("/v1/sessions", json={"subject": "a"})):
                assert_refused_with(refused, 401, "unauthenticated")
            # Jobs and sessions that the key made stay valid.
            assert same_server.status(job).json()["status"] == "IN_QUEUE"
            assert same_server.cancel(job).status_code == 202
            with Client(own, minted) as alice:
                assert alice.run().status_code == 200


def test_a_plan_may_be_lowered_while_jobs_run(sandbox: SandboxControl, tmp_path: Path) -> None:
    def applied(**limits: Any) -> None:
        file = {"plans": {"page": plan(**limits)}, "tenants": [{"id": "page", "plan": "page"}]}
        assert operator("PUT", "/tenants", file).json() == {"changed": True}

    with limited_proxy(sandbox, tmp_path, {"page": plan()}) as own, Client(own, own.token(tenant="page")) as alice:
        operator = Operator(own)
        jobs = [alice.submitted(QUEUED) for _ in range(3)]
        applied(concurrency={"subject": 2, "tenant": 2}, quotas=[per("tenant", "requests", 2)], max_tokens=16)
        # The running jobs are still hers, and count.
        assert [alice.status(job).json()["status"] for job in jobs] == ["IN_QUEUE"] * 3
        assert alice.slots() == (3, 3)
        assert_refused_with(alice.submit(max_tokens=17), 422, "invalid_input")
        assert_refused_with(alice.submit(), 429, "too_many_jobs", "subject")
        for job in jobs[:2]:
            sandbox.move_job(job, "finish")
            assert alice.result(job).status_code == 200
        # A call that began without a quota is charged to none.
        assert [alice.run().status_code, alice.run().status_code, alice.run().status_code] == [200, 200, 402]
        assert sandbox.requests()[-1]["json"]["max_tokens"] == 16
        applied(endpoints=["fal-ai/llavav15-13b"])
        assert_refused_with(alice.run(), 403, "endpoint_not_allowed")
        assert_refused_with(alice.status(jobs[2]), 403, "endpoint_not_allowed")
        applied()
        assert alice.cancel(jobs[2]).status_code == 202 and alice.status(jobs[2]).is_success
        assert alice.slots() == (0, 0)


def test_a_quota_may_be_lowered_below_its_use(sandbox: SandboxControl, tmp_path: Path) -> None:
    with (
        limited_proxy(sandbox, tmp_path, {"page": plan(quotas=[per("subject", "requests", 5)])}) as own,
        Client(own, own.token(tenant="page")) as alice,
    ):
        assert [alice.run().status_code for _ in range(3)] == [200] * 3
        lower = {"plans": {"page": plan(quotas=[per("subject", "requests", 2)])}}
        Operator(own)("PUT", "/tenants", lower)
        assert_refused_with(alice.run(), 402, "quota_exceeded", "subject")
        (quota,) = alice.facts()["quotas"]
        assert (quota["limit"], quota["used"], quota["left"]) == (2, 3, 0)


def test_another_process_follows_within_five_seconds(sandbox: SandboxControl, tmp_path: Path) -> None:
    """As `fal-proxy tenants apply` beside a server, or another replica, changes it."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    with limited_proxy(sandbox, first, {"page": plan()}) as one, Client(one, one.token(tenant="page")) as alice:
        assert alice.run().status_code == 200
        same = {"PROXY_DATABASE_URL": one.settings.stores.database_url.reveal()}
        lowered = {"page": plan(max_tokens=16)}
        with limited_proxy(sandbox, second, lowered, environ=same, clock=one.clock):
            one.clock.advance(5)
            assert_refused_with(alice.run(max_tokens=17), 422, "invalid_input")
    assert len(posts(sandbox)) == 1


def test_an_override_and_its_end_reach_another_process_within_five_seconds(
    sandbox: SandboxControl, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    plans = {"page": plan(max_tokens=16), "large": plan()}
    with limited_proxy(sandbox, first, plans) as one, Client(one, one.token(tenant="page")) as alice:
        same = {"PROXY_DATABASE_URL": one.settings.stores.database_url.reveal()}
        with (
            limited_proxy(sandbox, second, plans, environ=same, clock=one.clock) as other,
            operating(other) as operator,
        ):
            assert_refused_with(alice.run(max_tokens=17), 422, "invalid_input")
            until = datetime.fromtimestamp(one.clock.now() + 600, UTC).isoformat()
            form = {"plan": "large", "until": until}
            operator.put("/v1/admin/tenants/page/overrides/alice", json=form).raise_for_status()
            one.clock.advance(5)
            assert alice.run(max_tokens=17).status_code == 200
            one.clock.advance(600)
            assert_refused_with(alice.run(max_tokens=17), 422, "invalid_input")
