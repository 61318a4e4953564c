"""The breakers: what fal is spared while it fails, what goes on, and what closes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.calls.idempotency import KEPT_SECONDS
from tests.limits.callers import http
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
from tests.support.sandbox import SandboxControl
from tests.support.servers import free_port
from tests.support.stack import UNLIMITED, Stack
from tests.support.waiting import wait_until

PLANS = {
    "plenty": plan(
        concurrency={"subject": 9, "tenant": 999},
        uploads={"max_bytes": 1000},
        quotas=[{"per": "tenant", "unit": "requests", "limit": 100_000, "window": "day"}],
    )
}
CALLS: dict[str, tuple[str, Any]] = {
    "run": (f"run/{NEXT}", asking("?")),
    "stream": (f"run/{NEXT}/stream", asking("?")),
    "submit": (f"queue/{NEXT}", asking("?")),
    "rest": ("rest/storage/upload/initiate", {"content_type": "image/png", "file_name": "a.png"}),
}
OUTAGES: dict[str, dict[str, Any]] = {
    "unavailable": {"fault": "status", "status": 503},
    "internal errors": {"fault": "status", "status": 500},
    "a gateway's page": {"fault": "nginx", "status": 502},
    "dropped connections": {"fault": "drop"},
    "a locked account": {"fault": "refuse", "reason": "account_locked"},
}
GUARDED = {"PROXY_UPSTREAM_PROBE_SECONDS": "1"}


@pytest.fixture
def proxy(sandbox: SandboxControl, tmp_path: Path) -> Iterator[Stack]:
    with limited_proxy(sandbox, tmp_path, PLANS, environ=GUARDED) as stack:
        yield stack


@pytest.fixture
def alice(proxy: Stack) -> Iterator[Client]:
    with Client(proxy, proxy.token("alice", tenant="plenty")) as client:
        yield client


@pytest.fixture
def bob(proxy: Stack) -> Iterator[Client]:
    with Client(proxy, proxy.token("bob", tenant="plenty")) as client:
        yield client


def closed_targets(client: Client) -> list[str]:
    """The targets that take no new calls, as `/readyz` names them; the gauge has the same number."""

    def look() -> httpx.Response | None:
        answer = client.http.get("/readyz")
        if answer.is_success:
            return answer
        # On a busy machine the database was late once, and the answer is kept until the clock moves.
        client.stack.clock.advance(1)
        return None

    names: list[str] = wait_until(look, "it is not ready").json()["upstream"]["closed"]
    assert f"fal_proxy_upstream_breakers_open {len(names)}.0" in client.http.get("/metrics").text
    return names


def fail(client: Client, times: int = 5, call: str = "run") -> None:
    path, body = CALLS[call]
    for _ in range(times):
        assert client.call("POST", path, body).status_code >= 500


async def rush(stack: Stack, tokens: list[str], **headers: str) -> list[httpx.Response]:
    """A run for each of these callers, all at once."""
    # Not by httpx, whose pool goes through all of its connections for each request.
    async with http() as session:

        async def call(token: str) -> httpx.Response:
            sent = {"authorization": f"Bearer {token}", **headers}
            async with session.post(f"{stack.url}/fal/run/{NEXT}", json=asking("?"), headers=sent) as answer:
                return httpx.Response(answer.status, headers=list(answer.headers.items()), content=await answer.read())

        return await asyncio.gather(*map(call, tokens))


def outage(sandbox: SandboxControl, name: str) -> None:
    """Every new call fails from now on."""
    for operation in ("run", "stream", "submit", "rest"):
        sandbox.fault(**OUTAGES[name], on={"operation": operation})


@pytest.mark.parametrize("name", OUTAGES)
def test_an_outage_of_a_minute_costs_fal_few_calls(proxy: Stack, sandbox: SandboxControl, name: str) -> None:
    tokens = [proxy.token(f"user-{number}", tenant="plenty") for number in range(200)]
    outage(sandbox, name)
    answers = asyncio.run(rush(proxy, tokens))
    for second in range(1, 61):
        proxy.clock.advance(1)
        answers += asyncio.run(rush(proxy, tokens[second % 60 :: 60]))
    assert len(answers) == 400 and all(answer.status_code in (500, 503) for answer in answers)
    held_back = [answer for answer in answers if "retry-after" in answer.headers]
    assert len(posts(sandbox)) <= 60 and len(held_back) >= 340
    sandbox.clear_faults()
    proxy.clock.advance(25)
    # A caller who made none of the last probes: the caller of the last probe waits longer.
    assert asyncio.run(rush(proxy, tokens[1:2]))[0].status_code == 200
    assert {answer.status_code for answer in asyncio.run(rush(proxy, tokens[:50]))} == {200}


def reservations(folder: Path) -> int:
    """How many calls the ledger has ever written down, also those that were freed."""
    with contextlib.closing(sqlite3.connect(folder / "proxy.db", timeout=30)) as database:
        (number,) = database.execute("SELECT count(*) FROM jobs").fetchone()
        return int(number)


def test_an_outage_writes_nothing_for_calls_that_are_not_sent(
    proxy: Stack, alice: Client, sandbox: SandboxControl, tmp_path: Path
) -> None:
    tokens = [proxy.token(f"user-{number}", tenant="plenty") for number in range(200)]
    sandbox.fault("status", status=503)
    fail(alice)
    sandbox.forget()
    written = reservations(tmp_path)
    answers = asyncio.run(rush(proxy, tokens))
    assert {answer.status_code for answer in answers} == {503}
    assert all(float(answer.headers["retry-after"]) >= 1 for answer in answers)
    assert posts(sandbox) == [] and reservations(tmp_path) == written
    # A probe is due: one of them is booked and sent.
    proxy.clock.advance(2)
    assert {answer.status_code for answer in asyncio.run(rush(proxy, tokens))} == {503}
    assert len(posts(sandbox)) == 1 and reservations(tmp_path) == written + 1
    sandbox.clear_faults()
    proxy.clock.advance(5)
    assert 200 in {answer.status_code for answer in asyncio.run(rush(proxy, tokens))} and closed_targets(alice) == []


@contextlib.contextmanager
def recording_claims(folder: Path) -> Iterator[sqlite3.Connection]:
    """Let the database itself note each Idempotency-Key that is written, also those that are freed again."""
    with contextlib.closing(sqlite3.connect(folder / "proxy.db", timeout=30)) as database:
        database.executescript(
            "CREATE TABLE claims (at TEXT);"
            "CREATE TRIGGER note_claim AFTER INSERT ON idempotency BEGIN INSERT INTO claims VALUES ('now'); END;"
        )
        yield database


@pytest.mark.slow
def test_an_outage_writes_no_key_for_calls_that_are_not_sent(
    proxy: Stack, alice: Client, sandbox: SandboxControl, tmp_path: Path
) -> None:
    tokens = [proxy.token(f"user-{number}", tenant="plenty", ttl_seconds=2 * KEPT_SECONDS) for number in range(200)]
    known = {"idempotency-key": "known"}
    assert asyncio.run(rush(proxy, tokens[:1], **known))[0].status_code == 200
    with recording_claims(tmp_path) as database:

        def claims() -> int:
            return int(database.execute("SELECT count(*) FROM claims").fetchone()[0])

        sandbox.fault("status", status=503)
        fail(alice)
        sandbox.forget()
        for answer in asyncio.run(rush(proxy, tokens, **{"idempotency-key": "new"})):
            assert_refused_with(answer, 503, "upstream_unavailable", "upstream")
        # A repetition gets the stored answer.
        first, *others = asyncio.run(rush(proxy, tokens, **known))
        assert (first.status_code, first.headers["idempotency-replayed"]) == (200, "true")
        assert {answer.status_code for answer in others} == {503} and claims() == 0 and posts(sandbox) == []
        # An expired key counts as no key.
        proxy.clock.advance(KEPT_SECONDS + 1)
        assert {answer.status_code for answer in asyncio.run(rush(proxy, tokens, **known))} == {503}
        assert claims() == len(posts(sandbox)) == 1


def test_keys_count_against_rate_limits_while_fal_fails(sandbox: SandboxControl, tmp_path: Path) -> None:
    plans = {**PLANS, "rated": plan(rate_limits={**UNLIMITED["rate_limits"], "session": "2/minute"})}
    with (
        limited_proxy(sandbox, tmp_path, plans, environ=GUARDED) as stack,
        Client(stack, stack.token("bob", tenant="plenty")) as bob,
    ):
        sandbox.fault("status", status=503)
        fail(bob)
        token = stack.token("carol", tenant="rated")
        answers = [asyncio.run(rush(stack, [token], **{"idempotency-key": key}))[0] for key in "abc"]
        assert [answer.status_code for answer in answers] == [503, 503, 429]


def test_a_caller_without_quota_takes_no_probe_from_others(sandbox: SandboxControl, tmp_path: Path) -> None:
    plans = {**PLANS, "spent": plan(quotas=[per("subject", "requests", 5)])}
    with (
        limited_proxy(sandbox, tmp_path, plans, environ=GUARDED) as stack,
        Client(stack, stack.token("carol", tenant="spent")) as carol,
        Client(stack, stack.token("bob", tenant="plenty")) as bob,
    ):
        for _ in range(5):
            assert carol.run().status_code == 200
        sandbox.fault("status", status=503, times=5)
        fail(bob)
        stack.clock.advance(2)
        assert_refused_with(carol.run(), 402, "quota_exceeded", "subject")
        assert_refused_with(bob.run(), 503, "upstream_unavailable", "upstream")
        stack.clock.advance(1)
        # However often she calls, it is the turn of other callers now.
        assert_refused_with(carol.run(), 503, "upstream_unavailable", "upstream")
        assert bob.run().status_code == 200 and closed_targets(bob) == []


@pytest.mark.parametrize("reason", ["account_locked", "balance_used_up"])
def test_a_locked_account_takes_nothing_new_and_goes_on_with_the_rest(
    alice: Client, proxy: Stack, sandbox: SandboxControl, tmp_path: Path, reason: str
) -> None:
    job = alice.submitted("[[pace hold=IN_QUEUE]] ?")
    booked = account(tmp_path, "plenty", "requests")
    sandbox.fault("refuse", reason=reason, on={"operation": "submit"})
    assert_refused_with(alice.submit(), 503, "upstream_account_locked", "upstream")
    sandbox.forget()
    for call, (path, body) in CALLS.items():
        found = assert_refused_with(alice.call("POST", path, body), 503, "upstream_account_locked", "upstream")
        assert found["retry_after"] <= 2, call
    assert posts(sandbox) == [] and closed_targets(alice) == ["account"]
    assert account(tmp_path, "plenty", "requests") == booked and alice.slots() == (1, 1)
    assert alice.status(job).status_code == 202 and alice.cancel(job).status_code == 202
    # The first success of any kind ends it.
    proxy.clock.advance(2)
    assert alice.run().status_code == 200 and closed_targets(alice) == []


@pytest.mark.parametrize(
    ("call", "host"), [("run", "run"), ("stream", "run"), ("submit", "queue"), ("rest", "storage")]
)
def test_an_endpoint_that_fails_takes_nothing_new_and_others_do(
    alice: Client, sandbox: SandboxControl, tmp_path: Path, call: str, host: str
) -> None:
    sandbox.fault("nginx", status=502, on={"operation": call})
    fail(alice, 4, call)
    assert closed_targets(alice) == []
    fail(alice, 1, call)
    sandbox.forget()
    booked = account(tmp_path, "plenty", "requests")
    path, body = CALLS[call]
    assert_refused_with(alice.call("POST", path, body), 503, "upstream_unavailable", "upstream")
    assert posts(sandbox) == [] and account(tmp_path, "plenty", "requests") == booked
    assert closed_targets(alice) == ["storage" if host == "storage" else f"{host} {NEXT}"]
    sandbox.clear_faults()
    assert alice.run(endpoint=COUNTING).status_code == 200 and alice.submit(endpoint=COUNTING).status_code == 200
    if host != "queue":
        assert alice.submit().status_code == 200


def test_probes_become_rare_and_a_success_ends_the_pause(
    alice: Client, bob: Client, proxy: Stack, sandbox: SandboxControl, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "proxy.upstream.breaker")
    sandbox.fault("status", status=503)
    fail(alice)
    sandbox.forget()
    probed_at = []
    for second in range(120):
        proxy.clock.advance(1)
        # Taking turns, so that no caller is the one that probed last.
        (alice, bob)[len(probed_at) % 2].run()
        if len(posts(sandbox)) > len(probed_at):
            probed_at.append(second)
    pauses = [later - earlier for earlier, later in pairwise(probed_at)]
    assert 8 <= len(probed_at) <= 14 and max(pauses) <= 19
    for pause, (least, most) in zip(pauses, [(1, 4), (3, 6), (6, 11), (12, 19)], strict=False):
        assert least <= pause <= most
    sandbox.clear_faults()
    proxy.clock.advance(30)
    assert alice.run().status_code == 200 and closed_targets(alice) == []
    events = [record.getMessage() for record in caplog.records if record.name == "proxy.upstream.breaker"]
    assert events[0] == "upstream breaker opened" and events[-1] == "upstream breaker closed"
    assert events.count("upstream probe sent") == len(probed_at) + 1


def test_a_relapse_is_probed_less_often(alice: Client, proxy: Stack, sandbox: SandboxControl) -> None:
    waits = []
    for _ in range(4):
        sandbox.fault("refuse", reason="account_locked")
        waits.append(assert_refused_with(alice.run(), 503, "upstream_account_locked", "upstream")["retry_after"])
        sandbox.clear_faults()
        proxy.clock.advance(11)
        assert alice.run().status_code == 200
    assert waits == sorted(waits) and waits[0] <= 2 and waits[-1] >= 7
    proxy.clock.advance(31)
    sandbox.fault("refuse", reason="account_locked")
    assert assert_refused_with(alice.run(), 503, "upstream_account_locked", "upstream")["retry_after"] <= 2


@pytest.mark.parametrize(
    "marker",
    [
        "[[fault fail=image_load_error]]",
        "[[fault fail=internal_server_error]]",
        "[[fault fail=generation_timeout]]",
        "[[fault status=500]]",
        "[[fault status=504]]",
        "[[fault drop=before]]",
    ],
)
def test_the_input_of_one_caller_closes_nothing(
    alice: Client, bob: Client, sandbox: SandboxControl, marker: str
) -> None:
    for _ in range(8):
        assert alice.run(f"{marker} ?").status_code >= 422
        # On a busy machine fal may refuse after the head of the stream went out: then the stream is cut.
        with contextlib.suppress(httpx.RemoteProtocolError):
            assert alice.call("POST", f"run/{NEXT}/stream", asking(f"{marker} ?")).status_code >= 422
    assert closed_targets(alice) == []
    assert bob.run().status_code == 200


def test_time_that_callers_set_closes_nothing(proxy: Stack, alice: Client, sandbox: SandboxControl) -> None:
    sandbox.fault("fail", error_type="request_timeout")
    tokens = [proxy.token(f"user-{number}", tenant="plenty") for number in range(8)]
    assert {answer.status_code for answer in asyncio.run(rush(proxy, tokens))} == {504}
    assert closed_targets(alice) == []


def test_a_failure_for_many_callers_counts_as_one_of_fal(proxy: Stack, alice: Client, sandbox: SandboxControl) -> None:
    sandbox.fault("status", status=500)
    tokens = [proxy.token(f"user-{number}", tenant="plenty") for number in range(5)]
    asyncio.run(rush(proxy, tokens[:4]))
    assert closed_targets(alice) == []
    asyncio.run(rush(proxy, tokens))
    assert closed_targets(alice) == [f"run {NEXT}"]


def test_one_bad_input_does_not_take_every_probe(
    alice: Client, bob: Client, proxy: Stack, sandbox: SandboxControl
) -> None:
    sandbox.fault("status", status=503, times=5)
    fail(alice)
    proxy.clock.advance(1.5)
    assert alice.run("[[fault status=500]] ?").status_code == 500
    proxy.clock.advance(2.5)
    assert_refused_with(alice.run("[[fault status=500]] ?"), 503, "upstream_unavailable", "upstream")
    assert bob.run().status_code == 200 and closed_targets(alice) == []


def test_successes_in_between_and_old_failures_do_not_count(
    alice: Client, proxy: Stack, sandbox: SandboxControl
) -> None:
    for _ in range(3):
        sandbox.fault("status", status=503, times=4)
        fail(alice, 4)
        assert alice.run().status_code == 200
    sandbox.fault("status", status=503)
    for _ in range(3):
        fail(alice, 4)
        proxy.clock.advance(31)
    assert closed_targets(alice) == []


def test_a_clock_that_is_set_back_prolongs_no_pause(alice: Client, proxy: Stack, sandbox: SandboxControl) -> None:
    sandbox.fault("status", status=503, times=5)
    fail(alice)
    proxy.clock.advance(-3600)
    assert assert_refused_with(alice.run(), 503, "upstream_unavailable", "upstream")["retry_after"] <= 2


def test_a_host_that_cannot_be_reached_is_left_alone(sandbox: SandboxControl, tmp_path: Path) -> None:
    nowhere = {"FAL_RUN_URL": f"http://127.0.0.1:{free_port()}"}
    with (
        limited_proxy(sandbox, tmp_path, PLANS, environ={**GUARDED, **nowhere}) as stack,
        Client(stack, stack.token(tenant="plenty")) as alice,
    ):
        for endpoint in (NEXT, COUNTING, NEXT, COUNTING, NEXT):
            assert_refused_with(alice.run(endpoint=endpoint), 503, "upstream_unavailable", "upstream")
        assert closed_targets(alice) == ["run"]
        assert_refused_with(alice.run(endpoint=COUNTING), 503, "upstream_unavailable", "upstream")
        assert 'reason="unreachable"} 5.0' in alice.http.get("/metrics").text
        assert account(tmp_path, "plenty", "requests") == NOTHING and alice.slots() == (0, 0)
        assert alice.submit().status_code == 200


def test_without_probes_every_call_is_sent(sandbox: SandboxControl, tmp_path: Path) -> None:
    with limited_proxy(sandbox, tmp_path, PLANS, environ={"PROXY_UPSTREAM_PROBE_SECONDS": "0"}) as stack:
        tokens = [stack.token(f"user-{number}", tenant="plenty") for number in range(40)]
        sandbox.fault("status", status=503)
        asyncio.run(rush(stack, tokens))
        assert len(posts(sandbox)) == 40


def test_a_slow_model_holds_back_no_call_for_long(alice: Client, proxy: Stack, sandbox: SandboxControl) -> None:
    """Calls wait for the first success when many come at once, and all are answered."""
    sandbox.pace(run_seconds=0.3)
    tokens = [proxy.token(f"user-{number}", tenant="plenty") for number in range(60)]
    assert {answer.status_code for answer in asyncio.run(rush(proxy, tokens))} == {200}
