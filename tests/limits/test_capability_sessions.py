"""Sessions with quotas, limits and tags of their own, as their holders meet them."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import sqlite3
import string
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.auth.sessions import MAX_TOKEN_LENGTH
from proxy.jobs.retention import Cleaner
from proxy.stores.ledger import SESSION_PREFIX
from proxy.stores.sql import SqlStores
from proxy.tenants.plans import MAX_SESSION_SECONDS
from tests.routes.jobs import JOBS, SSE, new
from tests.support.images import png
from tests.support.limited import (
    COUNTING,
    NEXT,
    PROTOCOL,
    Client,
    asking,
    assert_refused_with,
    limited_proxy,
    operating,
    per,
    plan,
    posts,
)
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack

MINT = "/v1/sessions"
DAY = 86_400.0
PLANS = {
    "acme": plan(quotas=[per("tenant", "requests", 10_000, "month"), per("subject", "requests", 5000, "month")]),
    "tight": plan(quotas=[per("subject", "requests", 2)], max_tokens=50, max_prompt_chars=40),
    "brief": plan(session_ttl_seconds=600, max_session_age_seconds=3600),
}
PRICES = [{"id": id_, "price_per_compute_second": 0.0006} for id_ in (NEXT, COUNTING)]
QUEUED = "[[pace hold=IN_QUEUE]] ?"


@pytest.fixture(scope="module")
def limited(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with limited_proxy(shared_sandbox, tmp_path_factory.mktemp("capabilities"), PLANS, endpoints=PRICES) as stack:
        yield stack


@pytest.fixture
def proxy(limited: Stack, sandbox: SandboxControl) -> Stack:
    return limited


def minted(proxy: Stack, tenant: str = "acme", **form: Any) -> dict[str, Any]:
    with proxy.client(proxy.tenant_key(tenant)) as backend:
        answer = backend.post(MINT, json={"subject": "alice", **form})
    assert answer.status_code == 201, answer.text
    body: dict[str, Any] = answer.json()
    return body


def holder(proxy: Stack, tenant: str = "acme", surface: str = "hosts", **form: Any) -> Client:
    return Client(proxy, minted(proxy, tenant, **form)["token"], surface)


def quota(unit: str, limit: float) -> dict[str, Any]:
    return {"unit": unit, "limit": limit}


def own_quotas(client: Client) -> dict[str, dict[str, Any]]:
    return {one["unit"]: one for one in client.facts()["quotas"] if one["per"] == "session"}


def shown(answer: httpx.Response) -> str:
    """What an answer says is left, next to what there was."""
    return f"{answer.headers.get('quota')} of {answer.headers.get('quota-policy')}"


# --- quotas


@pytest.mark.parametrize("surface", ["hosts", PROTOCOL])
def test_a_session_gets_exactly_its_quota_and_others_of_its_subject_go_on(proxy: Stack, surface: str) -> None:
    with holder(proxy, surface=surface, quotas=[quota("requests", 2)]) as one, holder(proxy, surface=surface) as other:
        assert [one.run().status_code, one.submit().status_code] == [200, 200]
        for refused in (one.run(), one.submit(), one.call("POST", f"run/{NEXT}/stream", asking("?"))):
            body = assert_refused_with(refused, 402, "quota_exceeded", "session")
            assert body["detail"] == "The lifetime quota of requests of this session is used up: 0 left."
            assert "retry_after" not in body
        assert len(posts(proxy.sandbox)) == 2
        assert other.run().status_code == 200
        assert own_quotas(other) == {} and own_quotas(one)["requests"]["left"] == 0


def test_the_account_of_a_session_is_charged_beside_those_of_subject_and_tenant(proxy: Stack) -> None:
    with holder(proxy, subject="carl", quotas=[quota("requests", 5)]) as carl:
        before = used_by(carl)
        held = carl.submitted(QUEUED)
        own = own_quotas(carl)["requests"]
        assert (own["window"], own["limit"], own["used"], own["reserved"], own["left"]) == ("session", 5, 0, 1, 4)
        assert own["resets_at"] is None
        assert carl.cancel(held).status_code == 202 and carl.status(held).is_success
        assert own_quotas(carl)["requests"]["left"] == 5, "a job that did not run is free"
        assert carl.run().status_code == 200
        assert {per: used - before[per] for per, used in used_by(carl).items()} == {
            "session": 1,
            "subject": 1,
            "tenant": 1,
        }


def used_by(client: Client) -> dict[str, int]:
    return {one["per"]: one["used"] for one in client.facts()["quotas"]}


def test_a_session_wider_than_the_plan_has_the_limits_of_the_plan(proxy: Stack) -> None:
    wide = {"quotas": [quota("requests", 9)], "limits": {"max_tokens": 900, "max_prompt_chars": 900}}
    with holder(proxy, "tight", **wide) as alice:
        assert_refused_with(alice.run(max_tokens=51), 422, "invalid_input")
        assert_refused_with(alice.run("x" * 41), 422, "invalid_input")
        assert [alice.run().status_code, alice.run().status_code] == [200, 200]
        assert_refused_with(alice.run(), 402, "quota_exceeded", "subject")
        assert own_quotas(alice)["requests"]["left"] == 7


def test_limits_narrow_each_input(proxy: Stack) -> None:
    with holder(proxy, limits={"max_tokens": 20, "max_prompt_chars": 10}) as alice:
        assert_refused_with(alice.run(max_tokens=21), 422, "invalid_input")
        assert_refused_with(alice.run("x" * 11), 422, "invalid_input")
        assert alice.run("x" * 10, max_tokens=20).status_code == 200
        assert alice.facts()["limits"] == {"max_tokens": 20, "max_prompt_chars": 10}
    assert len(posts(proxy.sandbox)) == 1


@pytest.mark.parametrize("way", ["slot", "native", "cdn", "parts"])
def test_bytes_count_on_every_upload_route(proxy: Stack, way: str) -> None:
    with holder(proxy, quotas=[quota("upload_bytes", 300)]) as alice:
        assert upload(alice, 200, way).is_success
        assert own_quotas(alice)["upload_bytes"]["left"] == 100
        body = assert_refused_with(upload(alice, 101, way), 402, "quota_exceeded", "session")
        assert "100 left" in body["detail"]
        assert upload(alice, 100, way).is_success
        assert own_quotas(alice)["upload_bytes"]["left"] == 0


def upload(client: Client, size: int, way: str) -> httpx.Response:
    content, headers = png(size), {"content-type": "image/png"}
    if way == "native":
        return client.http.post("/v1/uploads", content=content, headers=headers)
    if way == "cdn":
        token = client.call("POST", "rest/storage/auth/token?storage_type=fal-cdn-v3", {}).json()
        headers["authorization"] = f"{token['token_type']} {token['token']}"
        return client.http.post(f"{token['base_url']}/files/upload", content=content, headers=headers)
    slot = open_slot(client, "initiate-multipart" if way == "parts" else "initiate")
    return httpx.put(
        f"{slot}/1" if way == "parts" else slot, content=content, headers=headers, trust_env=False, timeout=60
    )


def open_slot(client: Client, kind: str = "initiate") -> str:
    wanted = {"content_type": "image/png", "file_name": "a.png"}
    return str(client.call("POST", f"rest/storage/upload/{kind}", wanted).json()["upload_url"])


def test_an_upload_slot_whose_limit_was_changed_is_refused(proxy: Stack) -> None:
    with holder(proxy, quotas=[quota("upload_bytes", 100)]) as alice:
        slot = open_slot(alice)
        assert slot.endswith(".100000000")
        for other in (slot.removesuffix(".100000000"), slot.replace(".100000000", ".900000000"), f"{slot}.1"):
            answer = httpx.put(
                other, content=png(200), headers={"content-type": "image/png"}, trust_env=False, timeout=60
            )
            assert_refused_with(answer, 404, "not_found")
        assert httpx.put(
            slot, content=png(90), headers={"content-type": "image/png"}, trust_env=False, timeout=60
        ).is_success


# --- what answers say


def test_every_answer_says_what_is_left(proxy: Stack) -> None:
    quotas = [quota("requests", 4), quota("compute_seconds", 240.5), quota("tokens", 1000)]
    with holder(proxy, quotas=quotas) as alice:
        policy = '"requests";q=4, "compute_seconds";q=240.5, "tokens";q=1000'
        first = alice.http.get("/v1/session")
        assert shown(first) == f'"requests";r=4, "compute_seconds";r=240.5, "tokens";r=1000 of {policy}'
        held = alice.submit(QUEUED, endpoint=COUNTING, max_tokens=64)
        assert shown(held) == f'"requests";r=3, "compute_seconds";r=180.5, "tokens";r=936 of {policy}'
        for answer in [*(alice.status(held.json()["request_id"], COUNTING) for _ in range(3)), alice.run("x" * 20_000)]:
            assert shown(answer) == shown(held)
        with alice.http.stream("POST", f"/fal/run/{NEXT}/stream", json=asking("?", max_tokens=100)) as stream:
            assert '"requests";r=2' in stream.headers["quota"]
        before = own_quotas(alice)["requests"]
        assert (before["used"], before["reserved"]) == (1, 1) or before["left"] == 2
        ran = alice.run(max_tokens=10)
        assert '"requests";r=1' in ran.headers["quota"]
        assert re.fullmatch(
            r'"requests";r=1, "compute_seconds";r=\d+(\.\d{1,3})?, "tokens";r=\d+', ran.headers["quota"]
        )


def test_a_page_may_read_the_quota_headers_and_other_sessions_have_none(proxy: Stack) -> None:
    with holder(proxy, quotas=[quota("requests", 4)]) as alice, holder(proxy) as bob:
        answer = alice.http.get("/v1/session", headers={"origin": proxy.url})
        exposed = {name.strip() for name in answer.headers["access-control-expose-headers"].split(",")}
        assert {"quota", "quota-policy"} <= exposed
        assert not {"quota", "quota-policy"} & {*bob.http.get("/v1/session").headers, *bob.run().headers}


@pytest.mark.parametrize("prompt", ["?", "[[fault fail=content_policy_violation]] ?"])
def test_the_last_event_of_a_job_has_what_is_left(proxy: Stack, prompt: str) -> None:
    with holder(proxy, quotas=[quota("requests", 4)]) as alice, holder(proxy) as bob:
        for client, expected in ((alice, True), (bob, False)):
            body = client.http.post(JOBS, json=new(prompt=prompt), headers=SSE).text
            last = [line for line in body.splitlines() if line.startswith("data: {")][-1]
            left = own_quotas(alice)["requests"]["left"]
            assert (f'"quotas":[{{"unit":"requests","limit":4,"left":{left}}}]' in last) is expected, last


def test_tags_and_limits_are_shown_to_their_holder(proxy: Stack) -> None:
    form = {"tags": ["chat:17", "trial", "chat:17"], "limits": {"max_tokens": 9}}
    session = minted(proxy, "brief", **form)
    with proxy.client(session["token"]) as alice:
        for document in (session, alice.get("/v1/session").json(), alice.post("/v1/sessions/renew").json()):
            assert (document["tags"], document["limits"]) == (["chat:17", "trial"], {"max_tokens": 9})
    assert not {"tags", "limits"} & set(minted(proxy))


# --- renewal


def test_a_renewal_keeps_the_account_and_what_narrows_it(proxy: Stack) -> None:
    form = {"quotas": [quota("requests", 3)], "limits": {"max_tokens": 20}, "tags": ["trial"]}
    session = minted(proxy, "brief", **form)
    tokens = [session["token"]]
    for _ in range(3):
        proxy.clock.advance(300)
        with proxy.client(tokens[-1]) as alice:
            tokens.append(alice.post("/v1/sessions/renew").json()["token"])
    with Client(proxy, tokens[-2]) as old, Client(proxy, tokens[-1]) as new_:
        assert [old.run().status_code, new_.run().status_code] == [200, 200]
        assert_refused_with(new_.run(max_tokens=21), 422, "invalid_input")
        assert own_quotas(new_) == own_quotas(old) and own_quotas(new_)["requests"]["left"] == 1
        assert [new_.run().status_code, new_.run().status_code, old.run().status_code] == [200, 402, 402]
        with proxy.client("", headers={"cookie": proxy.cookie(tokens[-1])}) as page:
            assert page.get("/v1/session").headers["quota"] == '"requests";r=0'


# --- minting


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ({"quotas": [quota("requests", 0)]}, "quotas.0.limit"),
        ({"quotas": [quota("requests", 1e-9)]}, "quotas.0.limit"),
        ({"quotas": [quota("requests", -1)]}, "quotas.0.limit"),
        ({"quotas": [quota("requests", 1e13)]}, "quotas.0.limit"),
        ({"quotas": [{"unit": "requests", "limit": True}]}, "quotas.0.limit"),
        ({"quotas": [{"unit": "requests", "limit": "5"}]}, "quotas.0.limit"),
        ({"quotas": [quota("calls", 1)]}, "quotas.0.unit"),
        ({"quotas": [{**quota("requests", 1), "window": "day"}]}, "quotas.0.window"),
        ({"quotas": [quota("usd", 1), quota("usd", 2)]}, "quotas: give one quota for each unit"),
        ({"quotas": [quota("usd", 1)] * 6}, "quotas"),
        ({"limits": {"max_tokens": 0}}, "limits.max_tokens"),
        ({"limits": {"max_prompt_chars": 10**13}}, "limits.max_prompt_chars"),
        ({"limits": {"max_images": 1}}, "limits.max_images"),
        ({"tags": ["t"] * 11}, "tags"),
        ({"tags": ["t" * 65]}, "tags.0"),
        ({"tags": [""]}, "tags.0"),
        ({"tags": ["two words"]}, "tags.0"),
        ({"tags": ["-x"]}, "tags.0"),
        ({"tags": ["x\n"]}, "tags.0"),
    ],
)
def test_a_field_that_narrows_nothing_is_refused_by_name(proxy: Stack, form: dict[str, Any], says: str) -> None:
    with proxy.client(proxy.tenant_key("acme")) as backend, operating(proxy) as operator:
        for answer in (
            backend.post(MINT, json={"subject": "alice", **form}),
            operator.post("/v1/admin/sessions", json={"tenant": "acme", "subject": "alice", **form}),
        ):
            assert says in assert_refused_with(answer, 400, "bad_request")["detail"]


def test_a_token_with_every_field_stays_small(proxy: Stack) -> None:
    units = ("requests", "tokens", "compute_seconds", "usd", "upload_bytes")
    letters = random.Random(5)
    tags = ["".join(letters.choices(string.ascii_letters + string.digits, k=64)) for _ in range(10)]
    limits = {"max_tokens": 10**12, "max_prompt_chars": 10**12}
    session = minted(proxy, quotas=[quota(unit, 10**12 - 0.5) for unit in units], tags=tags, limits=limits)
    assert session["tags"] == tags and len(session["token"]) < MAX_TOKEN_LENGTH / 3


def test_the_operator_can_mint_capability_sessions(proxy: Stack) -> None:
    with operating(proxy) as operator:
        form = {"tenant": "acme", "subject": "alice", "quotas": [quota("requests", 1)], "tags": ["trial"]}
        session = operator.post("/v1/admin/sessions", json=form).json()
    with Client(proxy, session["token"]) as alice:
        assert [alice.run().status_code, alice.run().status_code] == [200, 402]


# --- many at once, and afterwards


def test_calls_at_once_get_exactly_what_is_left(proxy: Stack) -> None:
    """Several tokens of one session, each with calls of every kind; some fail at fal and give back what they took."""
    session = minted(proxy, "brief", quotas=[quota("requests", 30)])
    with proxy.client(session["token"]) as alice:
        tokens = [session["token"], alice.post("/v1/sessions/renew").json()["token"]]
    clients = [Client(proxy, token) for token in tokens]

    def call(number: int) -> int:
        client = clients[number % 2]
        prompt = "[[fault status=500]] ?" if number % 5 == 0 else "?"
        if number % 3 == 0:
            return client.submit().status_code
        return client.run(prompt).status_code

    with ThreadPoolExecutor(12) as pool:
        statuses = Counter(pool.map(call, range(90)))
    failed = sum(status >= 500 for status in statuses.elements())
    assert statuses[200] <= 30 and statuses[402] == 90 - statuses[200] - failed
    while clients[0].run().status_code == 200:
        statuses[200] += 1
    assert statuses[200] == 30
    own = own_quotas(clients[0])["requests"]
    assert (own["used"] + own["reserved"], own["left"]) == (30, 0)
    for client in clients:
        client.http.close()


def test_the_accounts_of_sessions_are_removed_after_their_time(sandbox: SandboxControl, tmp_path: Path) -> None:
    with limited_proxy(sandbox, tmp_path, {"brief": PLANS["brief"]}) as stack:
        with holder(stack, "brief", quotas=[quota("requests", 3)]) as alice:
            assert alice.run().status_code == 200
        stack.clock.advance(MAX_SESSION_SECONDS)
        assert clean_up(stack)["accounts"] == 0 and session_accounts(tmp_path) == 1
        stack.clock.advance(2 * DAY)
        assert clean_up(stack)["accounts"] == 1 and session_accounts(tmp_path) == 0


def clean_up(stack: Stack) -> Counter[str]:
    """Remove what is past its time, with a retention of a day."""

    async def once() -> Counter[str]:
        stores = SqlStores(stack.settings.stores.database_url.reveal())
        try:
            return await Cleaner(stores.retention, stack.clock, DAY, DAY).run_once()
        finally:
            await stores.close()

    return asyncio.run(once())


def session_accounts(folder: Path) -> int:
    wanted = "SELECT count(*) FROM quota_usage WHERE substr(subject, 1, ?) = ?"
    with contextlib.closing(sqlite3.connect(folder / "proxy.db", timeout=30)) as database:
        return int(database.execute(wanted, (len(SESSION_PREFIX), SESSION_PREFIX)).fetchone()[0])
