"""Guests: they count on the tenant's own accounts and limits, and lock none of its users out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from proxy.limits.accounts import ALL_GUESTS
from tests.routes.jobs import HELD, JOBS, SSE, created, new, watching
from tests.support.images import png
from tests.support.limited import (
    ADMIN_TOKEN,
    Booked,
    Client,
    account,
    assert_refused_with,
    limited_proxy,
    per,
    plan,
    posts,
)
from tests.support.sandbox import SandboxControl
from tests.support.stack import TTL_SECONDS, Stack
from tests.support.waiting import wait_until

ORIGIN = "https://app.acme.example"
QUEUED = "[[pace hold=IN_QUEUE]] ?"
NO_RATES = {"ip": None, "session": None, "subject": None, "tenant": None}
LIMITS_PAGE = Path(__file__).parents[2] / "docs" / "limits.md"
PLANS = {
    "crowd": plan(quotas=[per("tenant", "requests", 100)]),
    "slots": plan(concurrency={"subject": None, "tenant": 8}),
    "rates": plan(rate_limits={**NO_RATES, "tenant": "8/minute"}),
    "polls": plan(poll_limits={**NO_RATES, "tenant": "8/second"}),
    "bytes": plan(quotas=[per("tenant", "upload_bytes", 1000)]),
    "userbytes": plan(uploads={"bytes_per_day": 1000}),
    "streams": plan(),
    "other": plan(),
    "visitors": plan(),
    "three": plan(quotas=[per("subject", "requests", 2), per("tenant", "requests", 3)]),
}


def guests(plan_name: str = "visitors", **more: Any) -> dict[str, Any]:
    """A tenant whose pages take guests on another plan than its own."""
    return {"allowed_origins": [ORIGIN], "guests": {"enabled": True, "plan": plan_name, "per_address": None, **more}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("guests")


@pytest.fixture(scope="module")
def limited(shared_sandbox: SandboxControl, folder: Path) -> Iterator[Stack]:
    tenants = {name: guests() for name in PLANS} | {"crowd": guests("three")}
    most = {"PROXY_MAX_STREAMS": "16"}
    with limited_proxy(shared_sandbox, folder, PLANS, tenants=tenants, environ=most) as stack:
        yield stack


@pytest.fixture
def proxy(limited: Stack, sandbox: SandboxControl) -> Stack:
    return limited


@pytest.fixture
def open_() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def guest(proxy: Stack, tenant: str) -> Client:
    """A visitor of one of the tenant's pages."""
    with proxy.client("", headers={"origin": ORIGIN}) as visitor:
        answer = visitor.post("/v1/sessions/guest", json={"tenant": tenant})
    assert answer.status_code == 201, answer.text
    return Client(proxy, answer.json()["token"])


def user(proxy: Stack, tenant: str, name: str = "alice") -> Client:
    return Client(proxy, proxy.token(name, tenant=tenant, ttl_seconds=TTL_SECONDS))


# --- the tenant's accounts


def documented_plans(requests: int) -> dict[str, Any]:
    """The example of the page, with an account of requests of the tenant; no windows, as the clock stands still."""
    (example,) = re.findall(r"^```yaml\n(# yaml-language-server.*?)^```", LIMITS_PAGE.read_text(), re.S | re.M)
    document = yaml.safe_load(example)
    for one in document["plans"].values():
        one |= {"rate_limits": NO_RATES, "poll_limits": {"session": None}, "session_ttl_seconds": TTL_SECONDS}
    document["plans"]["team"]["quotas"].append(per("tenant", "requests", requests, "month"))
    (tenant,) = document["tenants"]
    plans = {"acme": document["plans"]["team"], "visitors": document["plans"]["visitors"]}
    tenants = {"acme": {**tenant, "plan": "acme"}}
    return {"plans": plans, "tenants": tenants, "endpoints": document["endpoints"]}


def test_an_address_that_gets_many_guest_sessions_spends_no_more_than_the_tenant_has(
    sandbox: SandboxControl, tmp_path: Path
) -> None:
    with (
        limited_proxy(sandbox, tmp_path, **documented_plans(requests=10)) as stack,
        ExitStack() as open_,
        ThreadPoolExecutor(12) as pool,
    ):
        visitors = [open_.enter_context(guest(stack, "acme")) for _ in range(12)]
        answers = list(pool.map(lambda visitor: [visitor.run() for _ in range(6)], visitors))
        by_code = Counter(answer.json().get("error_type", "") for each in answers for answer in each)
        assert by_code[""] == len(posts(sandbox)) == 10 and set(by_code) <= {"", "too_many_jobs", "quota_exceeded"}
        assert account(tmp_path, "acme", "requests") == Booked(10, 0)
        assert_refused_with(visitors[0].run(), 402, "quota_exceeded", "tenant")
        with user(stack, "acme") as alice:
            assert_refused_with(alice.run(), 402, "quota_exceeded", "tenant")


def test_guests_cannot_spend_what_users_have_spent(sandbox: SandboxControl, tmp_path: Path) -> None:
    with limited_proxy(sandbox, tmp_path, **documented_plans(requests=3)) as stack, user(stack, "acme") as alice:
        assert [alice.run().status_code for _ in range(2)] == [200, 200]
        with guest(stack, "acme") as visitor:
            assert [visitor.run().status_code for _ in range(2)] == [200, 402]


def test_an_account_per_tenant_in_the_plan_of_guests_is_that_of_all_guests(
    proxy: Stack, folder: Path, open_: ExitStack
) -> None:
    alice, one, other, third = (
        open_.enter_context(client) for client in (user(proxy, "crowd"), *(guest(proxy, "crowd") for _ in range(3)))
    )
    assert [alice.run().status_code for _ in range(4)] == [200] * 4
    assert [one.run().status_code, one.run().status_code, other.run().status_code] == [200] * 3
    assert_refused_with(one.run(), 402, "quota_exceeded", "subject")
    body = assert_refused_with(third.run(), 402, "quota_exceeded", "tenant")
    assert "of all guests of this tenant is used up" in body["detail"]
    assert alice.run().status_code == 200
    assert account(folder, "crowd", "requests", ALL_GUESTS) == Booked(3, 0)
    assert account(folder, "crowd", "requests") == Booked(8, 0)


def test_a_guest_sees_every_account_that_binds_it(proxy: Stack, open_: ExitStack) -> None:
    visitor = open_.enter_context(guest(proxy, "crowd"))
    quotas = {one["per"]: one["limit"] for one in visitor.facts()["quotas"]}
    assert quotas == {"subject": 2, "guests": 3, "tenant": 100}
    assert visitor.facts()["in_flight"].keys() == {"subject", "tenant", "guests"}
    with user(proxy, "crowd") as alice:
        assert [one["per"] for one in alice.facts()["quotas"]] == ["tenant"]
        assert alice.facts()["in_flight"].keys() == {"subject", "tenant"}


# --- their share


def test_guests_take_a_share_of_the_leases_and_users_the_rest(proxy: Stack, open_: ExitStack) -> None:
    visitors = [open_.enter_context(guest(proxy, "slots")) for _ in range(3)]
    jobs = [visitors[0].submitted(QUEUED), visitors[1].submitted(QUEUED)]
    for visitor in visitors:
        body = assert_refused_with(visitor.submit(QUEUED), 429, "too_many_jobs", "tenant")
        assert body["detail"].startswith("All guests of this tenant together have 2 calls")
    in_flight = visitors[0].facts()["in_flight"]
    assert in_flight["guests"] == {"used": 2, "limit": 2} and in_flight["tenant"] == {"used": 2, "limit": 8}
    with user(proxy, "slots") as alice:
        held = [alice.submitted(QUEUED) for _ in range(6)]
        assert (
            "This tenant has 8 calls" in assert_refused_with(alice.submit(), 429, "too_many_jobs", "tenant")["detail"]
        )
        proxy.sandbox.move_job(jobs[0], "finish")
        assert visitors[0].status(jobs[0]).json()["status"] == "COMPLETED"
        jobs.append(visitors[2].submitted(QUEUED))
        # A refusal takes no lease of the guests: the tenant's limit is the one that is full.
        assert_refused_with(alice.submit(), 429, "too_many_jobs", "tenant")
        for job in held:
            proxy.sandbox.move_job(job, "finish")
            alice.status(job)
    for job, visitor in zip(jobs[1:], visitors[1:], strict=True):
        proxy.sandbox.move_job(job, "finish")
        visitor.status(job)
    assert visitors[0].facts()["in_flight"]["guests"]["used"] == 0


def test_leases_of_guests_are_taken_again_after_a_restart(sandbox: SandboxControl, tmp_path: Path) -> None:
    tenants = {"slots": guests()}
    plans = {name: PLANS[name] for name in ("slots", "visitors")}
    with limited_proxy(sandbox, tmp_path, plans, tenants=tenants) as before:
        visitor = guest(before, "slots")
        jobs = [visitor.submitted(QUEUED) for _ in range(2)]
    with (
        limited_proxy(sandbox, tmp_path, plans, tenants=tenants, clock=before.clock) as after,
        Client(after, visitor.token) as again,
        user(after, "slots") as alice,
    ):
        assert_refused_with(again.submit(), 429, "too_many_jobs", "tenant")
        assert alice.run().status_code == 200
        assert again.facts()["in_flight"]["guests"] == {"used": 2, "limit": 2}
        sandbox.move_job(jobs[0], "finish")
        assert again.status(jobs[0]).is_success and again.run().status_code == 200
    visitor.http.close()


def test_guests_take_a_share_of_the_rate_and_users_the_rest(proxy: Stack, open_: ExitStack) -> None:
    visitors = [open_.enter_context(guest(proxy, "rates")) for _ in range(4)]
    assert [visitor.run().status_code for visitor in visitors] == [200, 200, 429, 429]
    body = assert_refused_with(visitors[0].run(), 429, "rate_limited", "tenant")
    assert body["detail"] == "All guests of this tenant together may make 2 calls in 60 seconds."
    with user(proxy, "rates") as alice:
        answers = [alice.run() for _ in range(7)]
        assert [answer.status_code for answer in answers] == [200] * 6 + [429]
        assert answers[0].headers["ratelimit-policy"] == '"tenant";q=8;w=60'
        assert answers[0].headers["ratelimit"] == '"tenant";r=5;t=60', "what guests were refused spent nothing"
    proxy.clock.advance(60)
    policy = visitors[3].run().headers["ratelimit-policy"]
    assert policy == '"tenant";q=8;w=60, "guests";q=2;w=60'


def test_users_and_guests_share_the_tenants_rate(proxy: Stack, open_: ExitStack) -> None:
    proxy.clock.advance(61)
    visitor, alice = open_.enter_context(guest(proxy, "rates")), open_.enter_context(user(proxy, "rates"))
    assert [alice.run().status_code for _ in range(7)] == [200] * 7
    assert visitor.run().status_code == 200
    body = assert_refused_with(visitor.run(), 429, "rate_limited", "tenant")
    assert body["detail"] == "This tenant may make 8 calls in 60 seconds."


def test_guests_take_a_share_of_the_polls(proxy: Stack, open_: ExitStack) -> None:
    visitor, alice = open_.enter_context(guest(proxy, "polls")), open_.enter_context(user(proxy, "polls"))
    theirs, hers = visitor.submitted(QUEUED), alice.submitted(QUEUED)
    # The same poll again and again, as clients do: polls that are answered from memory count too.
    assert [visitor.status(theirs).status_code for _ in range(4)] == [202, 202, 429, 429]
    assert_refused_with(visitor.status(theirs), 429, "rate_limited", "tenant")
    assert [alice.status(hers).status_code for _ in range(7)] == [202] * 6 + [429]
    for job, owner in ((theirs, visitor), (hers, alice)):
        proxy.clock.advance(1)
        proxy.sandbox.move_job(job, "finish")
        owner.status(job)


def upload(client: Client, size: int, way: str) -> httpx.Response:
    """A file by one of the ways to send one."""
    content, headers = png(size), {"content-type": "image/png"}
    if way == "native":
        return client.http.post("/v1/uploads", content=content, headers=headers)
    wanted = {"content_type": "image/png", "file_name": "a.png"}
    slot = client.call("POST", "rest/storage/upload/initiate", wanted).json()["upload_url"]
    return client.http.put(slot, content=content, headers=headers)


@pytest.mark.parametrize("way", ["slot", "native"])
def test_uploads_of_guests_count_and_are_limited_to_a_share(
    sandbox: SandboxControl, tmp_path: Path, way: str, open_: ExitStack
) -> None:
    plans = {name: PLANS[name] for name in ("bytes", "visitors")}
    stack = open_.enter_context(limited_proxy(sandbox, tmp_path, plans, tenants={"bytes": guests()}))
    one, other = (open_.enter_context(guest(stack, "bytes")) for _ in range(2))
    alice = open_.enter_context(user(stack, "bytes"))
    assert upload(one, 200, way).is_success
    assert_refused_with(upload(other, 51, way), 402, "quota_exceeded", "tenant")
    assert upload(other, 50, way).is_success
    assert account(tmp_path, "bytes", "upload_bytes", ALL_GUESTS) == Booked(250, 0)
    assert account(tmp_path, "bytes", "upload_bytes") == Booked(250, 0)
    assert_refused_with(upload(alice, 751, way), 402, "quota_exceeded", "tenant")
    assert upload(alice, 750, way).is_success


def test_where_only_users_are_limited_guests_share_what_one_user_may_upload(proxy: Stack, open_: ExitStack) -> None:
    one, other = (open_.enter_context(guest(proxy, "userbytes")) for _ in range(2))
    assert upload(one, 200, "native").is_success
    assert_refused_with(upload(other, 51, "native"), 402, "quota_exceeded", "tenant")
    with user(proxy, "userbytes") as alice:
        assert upload(alice, 1000, "native").is_success


# --- streams


def refused_stream(client: Client) -> str:
    """How a stream too many of the tenant's is refused."""
    detail: str = assert_refused_with(client.http.post(JOBS, json=new(), headers=SSE), 429, "rate_limited", "tenant")[
        "detail"
    ]
    return detail


def watch(client: Client, open_: ExitStack) -> str:
    """Open a stream that stays open; the job that it follows."""
    job = created(client.http, HELD)
    stream = open_.enter_context(watching(client.http, job))
    next(stream)
    # Without a reference the iterator ends, and the connection with it.
    open_.callback(lambda: stream)
    return job


def test_no_tenant_takes_all_streams_and_guests_only_a_share_of_its(proxy: Stack, open_: ExitStack) -> None:
    """16 in this process: 8 a tenant, as there are several, and 2 of these for guests."""
    one, other = (open_.enter_context(guest(proxy, "streams")) for _ in range(2))
    alice, bob = user(proxy, "streams"), user(proxy, "other", "bob")
    open_.enter_context(alice)
    open_.enter_context(bob)
    jobs = [watch(one, open_), watch(other, open_)]
    assert refused_stream(other).startswith("All guests of this tenant together have 2 streams open")
    sessions = [open_.enter_context(user(proxy, "streams", f"alice {number}")) for number in range(5)]
    hers = [watch(client, open_) for client in (alice, *sessions)]
    assert refused_stream(alice).startswith("This tenant has 8 streams open")
    theirs = watch(bob, open_)
    for job in (*jobs, *hers, theirs):
        proxy.sandbox.move_job(job, "finish")


def test_a_stream_that_ends_gives_its_place_back(proxy: Stack, open_: ExitStack) -> None:
    visitor, again = (open_.enter_context(guest(proxy, "other")) for _ in range(2))
    with ExitStack() as streams:
        jobs = [watch(visitor, streams), watch(visitor, streams)]
        refused_stream(again)
        for job in jobs:
            proxy.sandbox.move_job(job, "finish")
    frees = lambda: again.http.post(JOBS, json=new(), headers=SSE).status_code == 200  # noqa: E731
    wait_until(frees, "the place of a stream that ended is not free")


# --- names


@pytest.mark.parametrize("name", [".", "..", "../..", "a/../b", "a/."])
def test_no_session_is_minted_for_a_name_that_leads_to_another_url(proxy: Stack, name: str) -> None:
    with proxy.client(proxy.tenant_key("other")) as tenant, proxy.client(ADMIN_TOKEN) as operator:
        for answer in (
            tenant.post("/v1/sessions", json={"subject": name}),
            operator.post("/v1/admin/sessions", json={"tenant": "other", "subject": name}),
        ):
            assert "'.' or '..'" in assert_refused_with(answer, 400, "bad_request")["detail"]
        for fine in ("...", ".a", "a..", "a/..b/c", "a.b"):
            assert tenant.post("/v1/sessions", json={"subject": fine}).status_code == 201


@pytest.mark.parametrize("name", ["guest-0123456789abcdef", "guest-ffffffffffffffff"])
def test_no_session_is_minted_in_the_name_of_a_guest(proxy: Stack, name: str) -> None:
    with proxy.client(proxy.tenant_key("other")) as tenant, proxy.client(ADMIN_TOKEN) as operator:
        for answer in (
            tenant.post("/v1/sessions", json={"subject": name}),
            operator.post("/v1/admin/sessions", json={"tenant": "other", "subject": name}),
        ):
            body = assert_refused_with(answer, 400, "bad_request")
            assert body["detail"].startswith("subject: ") and "choose another name" in body["detail"]
        for free in ("guest-0123456789abcde", "guest-0123456789ABCDEF", "guest-of-honour", "a guest-0123456789abcdef"):
            assert tenant.post("/v1/sessions", json={"subject": free}).status_code == 201
