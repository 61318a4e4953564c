"""Idempotency-Key, on both surfaces: one key and one body, one call at fal, whatever happens in between."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.calls.idempotency import KEPT_SECONDS
from tests.support.limited import (
    HOSTS,
    NEXT,
    PROTOCOL,
    Booked,
    Client,
    account,
    asking,
    assert_refused_with,
    hanging_up,
    limited_proxy,
    meanwhile,
    per,
    plan,
    posts,
)
from tests.support.sandbox import SandboxControl
from tests.support.stack import UNLIMITED, Stack
from tests.support.waiting import wait_until

KEY = "idempotency-key"
KINDS = ("run", "queue")
QUEUED, RUNNING = "[[pace hold=IN_QUEUE]] ?", "[[pace hold=IN_PROGRESS]] ?"
RATES = {**UNLIMITED["rate_limits"], "session": "2/minute"}
PLANS = {
    "plenty": plan(quotas=[per("tenant", "requests", 10_000, "month")]),
    "other": plan(),
    "single": plan(concurrency={"subject": 1, "tenant": None}),
    "rated": plan(rate_limits=RATES, poll_limits={"session": "3/minute"}),
    "quota": plan(quotas=[per("subject", "requests", 1, "hour")]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("once")


@pytest.fixture(scope="module")
def limited(shared_sandbox: SandboxControl, folder: Path) -> Iterator[Stack]:
    with limited_proxy(shared_sandbox, folder, PLANS) as stack:
        yield stack


@pytest.fixture
def proxy(limited: Stack, sandbox: SandboxControl) -> Stack:
    return limited


@pytest.fixture(params=[HOSTS, PROTOCOL])
def alice(proxy: Stack, request: pytest.FixtureRequest) -> Iterator[Client]:
    """A user of her own for each test, so that no key was used before."""
    with Client(proxy, proxy.token(request.node.name, tenant="plenty", ttl_seconds=10**6), request.param) as client:
        yield client


def send(client: Client, kind: str, key: str, prompt: str = "?", **more: Any) -> httpx.Response:
    return client.call("POST", f"{kind}/{NEXT}", asking(prompt, **more), **{KEY: key})


def is_replay(answer: httpx.Response) -> bool:
    return answer.headers.get("idempotency-replayed") == "true"


# --- the same, another


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_key_and_body_get_the_same_answer(alice: Client, sandbox: SandboxControl, kind: str) -> None:
    first, *others = [send(alice, kind, "one") for _ in range(3)]
    assert first.status_code == 200 and not is_replay(first)
    for other in others:
        assert (other.status_code, other.json(), is_replay(other)) == (200, first.json(), True)
        assert other.headers["x-fal-request-id"] == first.headers["x-fal-request-id"]
    assert len(posts(sandbox)) == 1


def test_bodies_are_the_same_however_they_are_written(alice: Client, sandbox: SandboxControl) -> None:
    send(alice, "run", "one", temperature=0.5)
    turned = dict(reversed(asking("?", temperature=0.5).items()))
    assert is_replay(alice.call("POST", f"run/{NEXT}", turned, **{KEY: "one"}))
    assert len(posts(sandbox)) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_another_body_is_refused(alice: Client, sandbox: SandboxControl, kind: str) -> None:
    assert send(alice, kind, "one").status_code == 200
    other_kind = "queue" if kind == "run" else "run"
    other_endpoint = alice.call("POST", f"{kind}/fal-ai/llavav15-13b", asking("?"), **{KEY: "one"})
    for answer in (send(alice, kind, "one", "!"), send(alice, other_kind, "one"), other_endpoint):
        body = assert_refused_with(answer, 422, "invalid_input")
        assert body["detail"][0]["type"] == "idempotency_key_reused"
    assert len(posts(sandbox)) == 1
    assert is_replay(send(alice, kind, "one"))


@pytest.mark.parametrize("kind", KINDS)
def test_another_key_and_no_key_are_other_calls(alice: Client, sandbox: SandboxControl, kind: str) -> None:
    answers = [send(alice, kind, "one"), send(alice, kind, "two"), alice.call("POST", f"{kind}/{NEXT}", asking("?"))]
    assert not any(map(is_replay, answers)) and len(posts(sandbox)) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_is_its_callers_own(proxy: Stack, alice: Client, kind: str, request: pytest.FixtureRequest) -> None:
    key = request.node.name
    first = send(alice, kind, key)
    tokens = {
        "another user": proxy.token("another user", tenant="plenty"),
        "another tenant": proxy.token(tenant="other"),
        "the tenant itself": proxy.tenant_key("plenty"),
    }
    for token in tokens.values():
        with Client(proxy, token) as other:
            # The body is another than alice's: were the key shared, it would be refused.
            answer = send(other, kind, key, "!")
            assert answer.status_code == 200 and not is_replay(answer)
    assert is_replay(send(alice, kind, key)) and first.status_code == 200


def test_another_session_of_the_same_user_has_the_same_keys(proxy: Stack, alice: Client) -> None:
    first = send(alice, "queue", "one").json()
    name = alice.facts()["subject"]
    with Client(proxy, proxy.token(name, tenant="plenty")) as again:
        answer = send(again, "queue", "one")
        assert is_replay(answer) and answer.json()["request_id"] == first["request_id"]


def test_each_surface_gets_the_answer_in_its_own_form(proxy: Stack, sandbox: SandboxControl) -> None:
    """A client of the host form follows the URLs: fal's own would take the session to fal."""
    for name, surfaces in (("there", (PROTOCOL, HOSTS)), ("back", (HOSTS, PROTOCOL))):
        token = proxy.token(f"{name} and back", tenant="plenty")
        ids = set()
        for surface in surfaces:
            with Client(proxy, token, surface) as client:
                answer = send(client, "queue", "one").json()
                ids.add(answer["request_id"])
                if surface == HOSTS:
                    assert answer["status_url"].startswith(f"{proxy.url}/fal/queue/")
                    assert httpx.get(
                        answer["status_url"], headers=client.http.headers, trust_env=False, verify=False, timeout=60
                    ).is_success
        assert len(ids) == 1
    assert len(posts(sandbox)) == 2


@pytest.mark.parametrize("key", ["", "two words", "x" * 256, "käse", "tab\there"])
def test_a_malformed_key_is_refused(alice: Client, sandbox: SandboxControl, key: str) -> None:
    headers = [*alice.http.headers.raw, (KEY.encode(), key.encode())]
    answer = alice.http.post(f"/fal/run/{NEXT}", json=asking("?"), headers=headers)
    assert_refused_with(answer, 400, "bad_request")
    assert not posts(sandbox)


def test_two_keys_are_refused_and_the_longest_is_not(alice: Client, sandbox: SandboxControl) -> None:
    twice = [*alice.http.headers.raw, (KEY.encode(), b"one"), (KEY.encode(), b"one")]
    assert_refused_with(alice.http.post(f"/fal/run/{NEXT}", json=asking("?"), headers=twice), 400, "bad_request")
    assert not posts(sandbox)
    assert send(alice, "run", "~" * 255).status_code == 200 and is_replay(send(alice, "run", "~" * 255))


# --- at the same time


@pytest.mark.parametrize("kind", KINDS)
def test_calls_at_the_same_time_are_one_at_fal(alice: Client, sandbox: SandboxControl, kind: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: send(alice, kind, "one"), range(8)))
    assert [answer.status_code for answer in answers] == [200] * 8
    assert len({answer.text for answer in answers}) == 1 and len(posts(sandbox)) == 1
    assert sum(map(is_replay, answers)) == 7


def test_a_repetition_while_the_first_call_runs_waits_for_it(proxy: Stack, alice: Client) -> None:
    running = meanwhile(lambda: send(alice, "run", "one", RUNNING), proxy.sandbox)
    with running as (first, call), ThreadPoolExecutor(1) as pool:
        second = pool.submit(send, alice, "run", "one", RUNNING)
        assert_refused_with(send(alice, "run", "one", "!"), 422, "invalid_input")
        assert not second.done() and len(posts(proxy.sandbox)) == 1
        proxy.sandbox.move_job(call, "finish")
        assert (first.result().json(), is_replay(second.result())) == (second.result().json(), True)
    assert len(posts(proxy.sandbox)) == 1


def test_a_key_holds_in_two_processes(proxy: Stack, folder: Path, sandbox: SandboxControl, tmp_path: Path) -> None:
    """Two processes over one database: the second finds the job, or waits for the answer."""
    same = {"PROXY_DATABASE_URL": proxy.settings.stores.database_url.reveal()}
    token = proxy.token("two processes", tenant="plenty")
    with (
        limited_proxy(sandbox, tmp_path, PLANS, environ=same, clock=proxy.clock) as other,
        Client(proxy, token) as here,
        Client(other, token) as there,
    ):
        submitted = send(here, "queue", "submit").json()
        again = send(there, "queue", "submit")
        assert is_replay(again) and again.json()["request_id"] == submitted["request_id"]
        with (
            meanwhile(lambda: send(here, "run", "run", RUNNING), sandbox) as (first, call),
            ThreadPoolExecutor(1) as pool,
        ):
            second = pool.submit(send, there, "run", "run", RUNNING)
            sandbox.move_job(call, "finish")
            assert is_replay(second.result()) and second.result().json() == first.result().json()
    assert len(posts(sandbox)) == 2


# --- refusals


def test_a_call_that_the_proxy_refuses_frees_its_key(proxy: Stack, sandbox: SandboxControl) -> None:
    with Client(proxy, proxy.token("freed", tenant="single")) as client:
        held = client.submitted(QUEUED)
        assert_refused_with(send(client, "queue", "one"), 429, "too_many_jobs", "subject")
        assert_refused_with(send(client, "queue", "one", temperature=9), 422, "invalid_input")
        sandbox.move_job(held, "finish")
        client.status(held)
        answer = send(client, "queue", "one")
        assert answer.status_code == 200 and not is_replay(answer)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_refusal_of_fal_frees_the_key(alice: Client, sandbox: SandboxControl, kind: str, status: int) -> None:
    sandbox.fault("status", status=status, times=1)
    # A limit of fal's own is not one of the caller's.
    assert send(alice, kind, "one").status_code == (503 if status == 429 else status)
    answer = send(alice, kind, "one")
    assert answer.status_code == 200 and not is_replay(answer)
    assert len(posts(sandbox)) == 2


def test_a_permanent_refusal_of_fal_is_kept(alice: Client, sandbox: SandboxControl) -> None:
    prompt = "[[fault fail=image_load_error]] ?"
    first, second = send(alice, "run", "one", prompt), send(alice, "run", "one", prompt)
    assert first.status_code == second.status_code == 422 and first.json() == second.json() and is_replay(second)
    assert len(posts(sandbox)) == 1


def test_a_quota_that_is_used_up_frees_the_key(proxy: Stack) -> None:
    with Client(proxy, proxy.token("poor", tenant="quota", ttl_seconds=10**5)) as client:
        assert send(client, "run", "one").status_code == 200
        wait = assert_refused_with(send(client, "run", "two"), 402, "quota_exceeded", "subject")["retry_after"]
        # What was paid for is replayed, whatever is left.
        assert is_replay(send(client, "run", "one"))
        proxy.clock.advance(wait)
        assert not is_replay(send(client, "run", "two"))


def test_a_replay_costs_what_a_poll_costs(proxy: Stack) -> None:
    with Client(proxy, proxy.token("rated", tenant="rated")) as client:
        first = send(client, "run", "one")
        assert first.headers["ratelimit"] == '"session";r=1;t=60'
        assert [send(client, "run", "one").status_code for _ in range(4)] == [200, 200, 200, 429]
        # The right to call is untouched by it, and one that was refused has freed its key.
        assert [send(client, "run", f"{n}").status_code for n in (2, 3)] == [200, 429]
        proxy.clock.advance(60)
        answer = send(client, "run", "3")
        assert answer.status_code == 200 and not is_replay(answer)


def test_an_endpoint_that_is_not_open_any_more_is_not_replayed(proxy: Stack, alice: Client) -> None:
    name = alice.facts()["subject"]
    assert send(alice, "run", "one").status_code == 200
    narrowed = proxy.token(name, tenant="plenty", endpoints=["fal-ai/llavav15-13b"])
    with Client(proxy, narrowed) as client:
        assert_refused_with(send(client, "run", "one"), 403, "endpoint_not_allowed")


# --- answers that were lost


@pytest.mark.parametrize("kind", KINDS)
def test_a_lost_answer_is_never_made_up_for_by_a_second_call(
    alice: Client, sandbox: SandboxControl, folder: Path, kind: str
) -> None:
    before = account(folder, "plenty", "requests")
    sandbox.fault("drop", when="lost", times=1)
    for _ in range(3):
        assert_refused_with(send(alice, kind, "one"), 500, "upstream_ambiguous")
    assert len(posts(sandbox)) == 1
    assert account(folder, "plenty", "requests") == Booked(before.used + 1, before.reserved)
    assert send(alice, kind, "another").status_code == 200


@pytest.mark.parametrize("kind", KINDS)
def test_a_lost_answer_is_not_made_up_for_after_a_restart(sandbox: SandboxControl, tmp_path: Path, kind: str) -> None:
    with limited_proxy(sandbox, tmp_path, PLANS) as before, Client(before, before.token(tenant="plenty")) as alice:
        good = send(alice, kind, "good")
        sandbox.fault("drop", when="lost", times=1)
        assert_refused_with(send(alice, kind, "lost"), 500, "upstream_ambiguous")
    with (
        limited_proxy(sandbox, tmp_path, PLANS, clock=before.clock) as after,
        Client(after, after.token(tenant="plenty")) as alice,
    ):
        assert_refused_with(send(alice, kind, "lost"), 500, "upstream_ambiguous")
        again = send(alice, kind, "good")
        assert is_replay(again)
        if kind == "run":
            assert again.json() == good.json()
        else:
            assert again.json()["request_id"] == good.json()["request_id"]
            assert again.json()["status_url"].startswith(after.url)
    assert len(posts(sandbox)) == 2


def test_a_process_that_is_stopped_in_the_middle_gives_no_second_call(sandbox: SandboxControl, tmp_path: Path) -> None:
    with limited_proxy(sandbox, tmp_path, PLANS) as before:
        token = before.token(tenant="plenty")
        with hanging_up(before, token, f"run/{NEXT}", asking(RUNNING), **{KEY: "one"}):
            pass
        # The caller is gone, the call goes on; now the server stops without waiting for it.
    sandbox.forget()
    with limited_proxy(sandbox, tmp_path, PLANS, clock=before.clock) as after, Client(after, token) as alice:
        assert_refused_with(send(alice, "run", "one", RUNNING), 500, "upstream_ambiguous")
    assert not posts(sandbox)
    assert account(tmp_path, "plenty", "requests") == Booked(1, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_caller_who_hangs_up_finds_the_answer(proxy: Stack, alice: Client, kind: str) -> None:
    prompt = RUNNING if kind == "run" else QUEUED
    with hanging_up(proxy, alice.token, f"{kind}/{NEXT}", asking(prompt), **{KEY: "one"}) as call:
        pass
    if kind == "run":
        wait_until(lambda: alice.slots()[0] == 1, "the call does not go on")
        proxy.sandbox.move_job(call, "finish")
    answer = send(alice, kind, "one", prompt)
    assert answer.status_code == 200 and is_replay(answer)
    if kind == "queue":
        assert answer.json()["request_id"] == call
    assert len(posts(proxy.sandbox)) == 1


# --- time


def test_an_answer_is_kept_for_a_day(alice: Client, proxy: Stack) -> None:
    first = send(alice, "queue", "one").json()["request_id"]
    proxy.clock.advance(KEPT_SECONDS)
    assert send(alice, "queue", "one").json()["request_id"] == first
    proxy.clock.advance(1)
    answer = send(alice, "queue", "one")
    assert answer.json()["request_id"] != first and not is_replay(answer)
