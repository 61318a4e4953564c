"""Quotas as callers meet them: what is reserved, what is booked for each way a call can end, and what is refused."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.jobs.reconciler import QUIET_SECONDS
from proxy.limits.quotas import COMPUTE_SECONDS_CEILING, JOB_SECONDS
from proxy.stores.memory import MemoryCounters
from proxy.upstream.engine import Reply, Request
from proxy.upstream.transport import EngineTransport
from tests.support.clock import MovableClock
from tests.support.images import png
from tests.support.limited import (
    COUNTING,
    NEXT,
    NOTHING,
    PROTOCOL,
    Booked,
    Client,
    account,
    asking,
    assert_refused_with,
    hanging_up,
    limited_proxy,
    look_after,
    meanwhile,
    per,
    plan,
    posts,
)
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack
from tests.support.waiting import wait_until


def warning(holder: str, unit: str, limit: float, window: str = "day") -> dict[str, Any]:
    return {**per(holder, unit, limit, window), "mode": "warn"}


QUEUED, RUNNING = "[[pace hold=IN_QUEUE]] ?", "[[pace hold=IN_PROGRESS]] ?"
PRICE = 0.0006
PRICES = [{"id": NEXT, "price_per_compute_second": PRICE}, {"id": COUNTING, "price_per_compute_second": PRICE}]
UNITS = ("requests", "tokens", "compute_seconds", "usd")
PLENTY = [per("tenant", unit, 1_000_000, "month") for unit in UNITS]
PLANS = {
    "requests": plan(quotas=[per("subject", "requests", 2), per("tenant", "requests", 3)]),
    "tokens": plan(quotas=[per("tenant", "tokens", 200)]),
    "compute": plan(quotas=[per("subject", "compute_seconds", 2 * COMPUTE_SECONDS_CEILING - 1)]),
    "usd": plan(quotas=[per("tenant", "usd", COMPUTE_SECONDS_CEILING * PRICE + 0.001, "month")]),
    "uploads": plan(quotas=[per("tenant", "upload_bytes", 250)], uploads={"bytes_per_day": 150, "max_bytes": 200}),
    **{window: plan(quotas=[per("subject", "requests", 1, window)]) for window in ("minute", "hour", "day", "month")},
    "twice": plan(
        quotas=[per("subject", "upload_bytes", 100), per("tenant", "requests", 9)], uploads={"bytes_per_day": 150}
    ),
    "once": plan(quotas=[per("subject", "requests", 2, "lifetime")]),
    "together": plan(quotas=[per("tenant", "requests", 1, "lifetime")]),
    "warned": plan(quotas=[warning("subject", "requests", 1), warning("tenant", "tokens", 5, "month")]),
    "both": plan(quotas=[per("subject", "requests", 3), warning("subject", "requests", 1)]),
    "plenty": plan(quotas=[*PLENTY, per("subject", "requests", 1000)]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quotas")


@pytest.fixture(scope="module")
def limited(shared_sandbox: SandboxControl, folder: Path) -> Iterator[Stack]:
    with limited_proxy(shared_sandbox, folder, PLANS, endpoints=PRICES) as stack:
        yield stack


@pytest.fixture
def proxy(limited: Stack, sandbox: SandboxControl) -> Stack:
    return limited


def seconds_until(proxy: Stack, moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp() - proxy.clock.now()


def logged(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """What was logged of quotas that only warn."""
    return [record.log_fields for record in caplog.records if record.getMessage() == "quota exceeded"]  # type: ignore[attr-defined]


# --- warnings


def test_a_quota_that_warns_counts_logs_once_a_window_and_refuses_nothing(
    proxy: Stack, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.clock.advance(86_400)
    with Client(proxy, proxy.token("dan", tenant="warned", ttl_seconds=10**8)) as dan:
        assert dan.run(endpoint=COUNTING, max_tokens=5).status_code == 200
        assert logged(caplog) == []
        assert [dan.run(endpoint=COUNTING, max_tokens=5).status_code for _ in range(4)] == [200] * 4
        assert logged(caplog) == [
            {"tenant": "warned", "holder": "dan", "unit": "requests", "window": "day", "limit": 1},
            {"tenant": "warned", "holder": "this tenant", "unit": "tokens", "window": "month", "limit": 5},
        ]
        assert account(folder, "warned", "requests", "dan") == Booked(5, 0)
        quota = dan.facts()["quotas"][0]
        assert (quota["mode"], quota["limit"], quota["used"], quota["left"]) == ("warn", 1, 5, 0)
        caplog.clear()
        proxy.clock.set(quota["resets_at"])
        assert [dan.run(endpoint=COUNTING, max_tokens=5).status_code for _ in range(3)] == [200] * 3
        assert [one["unit"] for one in logged(caplog) if one["window"] == "day"] == ["requests"]


def test_one_account_can_warn_before_it_refuses(proxy: Stack, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Client(proxy, proxy.token("eve", tenant="both")) as eve:
        assert [eve.run().status_code for _ in range(4)] == [200, 200, 200, 402]
        assert [(one["unit"], one["limit"]) for one in logged(caplog)] == [("requests", 1)]
        assert account(folder, "both", "requests", "eve") == Booked(3, 0), "a call counts there once"
        figures = [(one["mode"], one["limit"], one["left"]) for one in eve.facts()["quotas"]]
        assert figures == [("enforce", 3, 0), ("warn", 1, 0)]


# --- refusals


@pytest.mark.parametrize("surface", ["hosts", PROTOCOL])
def test_a_user_and_a_tenant_get_exactly_their_quota(proxy: Stack, folder: Path, surface: str) -> None:
    proxy.clock.advance(86_400)
    names = [f"{name} {surface}" for name in ("ann", "ben")]
    ann, ben = (Client(proxy, proxy.token(name, tenant="requests"), surface) for name in names)
    assert [ann.run().status_code, ann.submit().status_code] == [200, 200]
    for refused in (ann.run(), ann.submit(), ann.call("POST", f"run/{NEXT}/stream", asking("?"))):
        body = assert_refused_with(refused, 402, "quota_exceeded", "subject")
        assert "requests" in body["detail"] and "0 left" in body["detail"]
    # The subject's refusals took nothing from the tenant: one is left for ben, and no second.
    assert ben.run().status_code == 200
    assert_refused_with(ben.run(), 402, "quota_exceeded", "tenant")
    assert len(posts(proxy.sandbox)) == 3
    quotas = {one["per"]: one for one in ben.facts()["quotas"]}
    # Nor did the tenant's refusal take anything from ben.
    assert (quotas["subject"]["left"], quotas["tenant"]["left"]) == (1, 0)
    ann.http.close()
    ben.http.close()


@pytest.mark.parametrize("window", ["minute", "hour", "day", "month"])
def test_the_wait_goes_to_the_end_of_the_calendar_window(proxy: Stack, window: str) -> None:
    with Client(proxy, proxy.token(tenant=window, ttl_seconds=10**8)) as alice:
        proxy.clock.advance(7.5)
        assert alice.run().status_code == 200
        wait = assert_refused_with(alice.run(), 402, "quota_exceeded", "subject")["retry_after"]
        (quota,) = alice.facts()["quotas"]
        assert 0 <= wait - seconds_until(proxy, quota["resets_at"]) < 1
        proxy.clock.advance(wait - 1)
        assert assert_refused_with(alice.run(), 402, "quota_exceeded", "subject")["retry_after"] == 1
        proxy.clock.advance(1)
        assert [alice.run().status_code, alice.run().status_code] == [200, 402]


@pytest.mark.parametrize(
    ("window", "last", "next_one"),
    [
        ("day", "2040-02-28T23:59:59Z", "2040-02-29T00:00:00Z"),
        ("month", "2040-02-29T23:59:59Z", "2040-03-01T00:00:00Z"),
        ("month", "2040-12-31T23:59:59Z", "2041-01-01T00:00:00Z"),
    ],
)
def test_a_window_ends_where_the_calendar_says(
    sandbox: SandboxControl, tmp_path: Path, window: str, last: str, next_one: str
) -> None:
    clock = MovableClock()
    clock.set(last)
    with (
        limited_proxy(sandbox, tmp_path, {window: PLANS[window]}, clock=clock) as own,
        Client(own, own.token(tenant=window)) as alice,
    ):
        held = alice.submitted(QUEUED)
        assert assert_refused_with(alice.run(), 402, "quota_exceeded", "subject")["retry_after"] == 1
        clock.set(next_one)
        assert [alice.run().status_code, alice.run().status_code] == [200, 402]
        # What was reserved in the old window is booked, or freed, there.
        assert account(tmp_path, window, "requests", "alice") == Booked(1, 1)
        assert alice.cancel(held).status_code == 202 and alice.status(held).is_success
        assert account(tmp_path, window, "requests", "alice") == Booked(1, 0)
        assert alice.run().status_code == 402


def test_a_lifetime_quota_is_never_refilled(proxy: Stack) -> None:
    with Client(proxy, proxy.token(tenant="once", ttl_seconds=10**9)) as alice:
        assert [alice.run().status_code, alice.submit().status_code] == [200, 200]
        for days in (0, 32, 3660):
            proxy.clock.advance(days * 86_400)
            body = assert_refused_with(alice.run(), 402, "quota_exceeded", "subject")
            assert body["detail"] == "The lifetime quota of requests of this subject is used up: 0 left."
            assert "retry_after" not in body
        (quota,) = alice.facts()["quotas"]
        assert (quota["window"], quota["left"], quota["resets_at"]) == ("lifetime", 0, None)
    with Client(proxy, proxy.token("bob", tenant="together")) as bob:
        assert bob.run().status_code == 200
        body = assert_refused_with(bob.run(), 402, "quota_exceeded", "tenant")
        assert body["detail"] == "The lifetime quota of requests of this tenant is used up: 0 left."


def test_a_refused_call_spends_nothing_of_any_quota(proxy: Stack, folder: Path) -> None:
    with Client(proxy, proxy.token(tenant="plenty")) as alice:
        before = {unit: account(folder, "plenty", unit) for unit in UNITS}
        for status, answer in (
            (422, alice.run(temperature=3)),
            (422, alice.submit(image_url="ftp://example.com/")),
            (403, alice.submit(endpoint="fal-ai/llava-llama3-8b-v11")),
            (400, alice.http.post(f"/fal/run/{NEXT}", content=b"{", headers={"content-type": "application/json"})),
        ):
            assert answer.status_code == status
        assert {unit: account(folder, "plenty", unit) for unit in UNITS} == before
    assert not posts(proxy.sandbox)


# --- units


def test_tokens_are_reserved_as_the_ceiling_and_booked_as_reported(proxy: Stack, folder: Path) -> None:
    with Client(proxy, proxy.token(tenant="tokens")) as alice:
        job = alice.submitted(QUEUED, COUNTING, max_tokens=150)
        assert account(folder, "tokens", "tokens") == Booked(0, 150)
        assert_refused_with(alice.run(endpoint=COUNTING, max_new_tokens=51), 402, "quota_exceeded", "tenant")
        proxy.sandbox.move_job(job, "finish")
        # The end of a job reports no tokens: they stay reserved until the result reports them.
        assert alice.status(job, COUNTING).json()["status"] == "COMPLETED"
        assert account(folder, "tokens", "tokens") == Booked(0, 150)
        wrote = alice.result(job, COUNTING).json()["stats"]["num_output_tokens"]
        assert 0 < wrote < 50
        assert account(folder, "tokens", "tokens") == Booked(wrote, 0)
        # A second read of the result books nothing more.
        assert alice.result(job, COUNTING).status_code == 200 and alice.status(job, COUNTING).is_success
        again = alice.run(endpoint=COUNTING, max_tokens=200 - wrote).json()["stats"]["num_output_tokens"]
        assert account(folder, "tokens", "tokens") == Booked(wrote + again, 0)
        # One that reports none is booked with its ceiling.
        assert alice.run(max_tokens=30).status_code == 200
        assert account(folder, "tokens", "tokens") == Booked(wrote + again + 30, 0)


def test_without_a_ceiling_the_models_own_is_reserved(proxy: Stack, folder: Path) -> None:
    before = account(folder, "tokens", "tokens")
    with Client(proxy, proxy.token(tenant="tokens")) as alice:
        job = alice.submitted(QUEUED)
        assert account(folder, "tokens", "tokens") == Booked(before.used, 64)
        alice.cancel(job)
        assert alice.status(job).is_success
    assert account(folder, "tokens", "tokens") == before


def test_compute_seconds_are_those_that_fal_reports(proxy: Stack, folder: Path) -> None:
    with Client(proxy, proxy.token(tenant="compute")) as alice:

        def seconds() -> Booked:
            return account(folder, "compute", "compute_seconds", "alice")

        assert alice.run("[[pace run_seconds=0.25]] ?").status_code == 200
        assert seconds() == Booked(0.25, 0)
        job = alice.submitted("[[pace run_seconds=0.5 hold=IN_QUEUE]] ?")
        assert seconds() == Booked(0.25, COMPUTE_SECONDS_CEILING)
        assert_refused_with(alice.run(), 402, "quota_exceeded", "subject")
        proxy.sandbox.move_job(job, "go")
        done = wait_until(
            lambda: (found := alice.status(job).json())["status"] == "COMPLETED" and found, "the job does not end"
        )
        assert done["metrics"]["inference_time"] == 0.5
        assert seconds() == Booked(0.75, 0)
        # A stream reports no compute seconds: its duration counts.
        with meanwhile(lambda: alice.call("POST", f"run/{NEXT}/stream", asking(RUNNING)), proxy.sandbox) as stream:
            proxy.clock.advance(2)
            proxy.sandbox.move_job(stream[1], "finish")
            assert stream[0].result().status_code == 200
        assert seconds() == Booked(2.75, 0)


def test_money_is_compute_seconds_at_the_operators_price(proxy: Stack, folder: Path) -> None:
    with Client(proxy, proxy.token(tenant="usd")) as alice:
        job = alice.submitted(QUEUED, COUNTING)
        assert account(folder, "usd", "usd") == Booked(0, COMPUTE_SECONDS_CEILING * PRICE)
        assert_refused_with(alice.run(), 402, "quota_exceeded", "tenant")
        proxy.sandbox.move_job(job, "finish")
        answer = alice.result(job, COUNTING)
        units = float(answer.headers["x-fal-billable-units"])
        assert units > 0 and account(folder, "usd", "usd") == Booked(pytest.approx(units * PRICE, abs=1e-6), 0)


def test_bytes_of_uploads_are_charged_to_the_user_and_the_tenant(proxy: Stack, folder: Path) -> None:
    def slot(client: Client) -> str:
        wanted = {"content_type": "image/png", "file_name": "a.png"}
        answer = client.call("POST", "rest/storage/upload/initiate", wanted)
        assert answer.status_code == 200, answer.text
        url: str = answer.json()["upload_url"]
        return url

    def put(client: Client, url: str, size: int) -> httpx.Response:
        return client.http.put(url, content=png(size), headers={"content-type": "image/png"})

    def total(subject: str = "") -> Booked:
        return account(folder, "uploads", "upload_bytes", subject)

    tokens = [proxy.token(name, tenant="uploads", ttl_seconds=10**6) for name in ("ann", "ben")]
    with Client(proxy, tokens[0]) as ann, Client(proxy, tokens[1]) as ben:
        assert_refused_with(put(ann, slot(ann), 201), 413, "body_too_large")
        assert put(ann, slot(ann), 100).status_code == 200
        assert (total("ann"), total()) == (Booked(100, 0), Booked(100, 0))
        place = slot(ann)
        wait = assert_refused_with(put(ann, place, 51), 402, "quota_exceeded", "subject")["retry_after"]
        assert put(ben, slot(ben), 120).status_code == 200
        assert_refused_with(put(ann, place, 40), 402, "quota_exceeded", "tenant")
        assert (total("ann"), total("ben"), total()) == (Booked(100, 0), Booked(120, 0), Booked(220, 0))
        # A file that fal's store does not take is not counted, and can be sent again.
        proxy.sandbox.fault("status", status=500, on={"host": "cdn", "method": "PUT"})
        assert put(ann, place, 30).status_code == 502 and total() == Booked(220, 0)
        proxy.sandbox.clear_faults()
        assert put(ann, place, 30).status_code == 200 and total() == Booked(250, 0)
        sent = [record["body_size"] for record in proxy.sandbox.requests() if record["host"] == "cdn"]
        assert sent == [100, 120, 30, 30]
        proxy.clock.advance(wait)
        assert put(ann, slot(ann), 150).status_code == 200


# --- what is booked for each end


Call = Callable[[Client, SandboxControl], Any]


def fails(fault: str, operation: str, **more: Any) -> Call:
    """A call, of that operation, that suffers a fault."""

    def call(alice: Client, sandbox: SandboxControl) -> None:
        sandbox.fault(fault, on={"operation": operation}, **more)
        answer = alice.run("?", COUNTING) if operation == "run" else alice.submit("?", COUNTING)
        assert answer.status_code >= 400

    return call


def failing_job(error_type: str, *, at: str) -> Call:
    def call(alice: Client, sandbox: SandboxControl) -> None:
        job = alice.submitted(f"[[fault fail={error_type}]] [[pace hold=IN_QUEUE]] ?", COUNTING)
        sandbox.move_job(job, "finish")
        answer = alice.status(job, COUNTING) if at == "status" else alice.result(job, COUNTING)
        assert answer.is_success == (at == "status")

    return call


def cancelled(state: str) -> Call:
    def call(alice: Client, sandbox: SandboxControl) -> None:
        job = alice.submitted(QUEUED, COUNTING)
        sandbox.move_job(job, state)
        assert alice.cancel(job, COUNTING).status_code == 202
        assert alice.status(job, COUNTING).json()["error_type"] == "client_cancelled"
        assert alice.result(job, COUNTING).status_code == 499

    return call


def hung_up_on(path: str) -> Call:
    def call(alice: Client, sandbox: SandboxControl) -> None:
        before = alice.slots()
        with hanging_up(alice.stack, alice.token, path, asking(RUNNING)):
            pass
        wait_until(lambda: alice.slots() == before, "the call does not end")

    return call


def too_late(alice: Client, sandbox: SandboxControl) -> None:
    job = alice.submitted("?", COUNTING)
    sandbox.move_job(job, "finish")
    assert alice.cancel(job, COUNTING).json() == {"status": "ALREADY_COMPLETED"}
    assert alice.result(job, COUNTING).status_code == 200


def streamed(alice: Client, sandbox: SandboxControl) -> None:
    answer = alice.call("POST", f"run/{COUNTING}/stream", asking("?"))
    assert answer.status_code == 200 and '"num_output_tokens"' in answer.text


def broken_stream(alice: Client, sandbox: SandboxControl) -> None:
    sandbox.fault("drop_at", bytes=200, on={"operation": "stream"})
    with contextlib.suppress(httpx.RemoteProtocolError):
        alice.call("POST", f"run/{COUNTING}/stream", asking("?"))


RESERVED = Booked(1, 64)  # of requests and of tokens, as the model's default is
REPORTED = Booked(1, 22)  # the sandbox answers "?" about this picture in this many words
ENDS: dict[str, tuple[Call, Booked | None]] = {
    "run": (lambda alice, _: alice.run("?", COUNTING), REPORTED),
    "stream": (streamed, REPORTED),
    "cancelled too late": (too_late, REPORTED),
    "run: 422": (lambda alice, _: alice.run("[[fault fail=image_load_error]] ?", COUNTING), None),
    "run: 500": (fails("status", "run", status=500), None),
    "run: 503": (fails("status", "run", status=503), None),
    "run: 429": (fails("status", "run", status=429), None),
    "run: key refused": (fails("status", "run", status=401), None),
    "run: answer lost": (fails("drop", "run", when="lost"), RESERVED),
    "run: gateway": (fails("nginx", "run", status=502), RESERVED),
    "submit: 422": (fails("status", "submit", status=422), None),
    "submit: 500": (fails("status", "submit", status=500), None),
    "submit: 429": (fails("status", "submit", status=429), None),
    "submit: key refused": (fails("refuse", "submit", reason="no_permission"), None),
    "submit: answer lost": (fails("drop", "submit", when="lost"), RESERVED),
    "submit: gateway": (fails("nginx", "submit", status=504), RESERVED),
    "submit: no id": (fails("status", "submit", status=200, body={"status": "IN_QUEUE"}), RESERVED),
    "422 at the status": (failing_job("image_load_error", at="status"), None),
    "422 at the result": (failing_job("image_load_error", at="result"), None),
    "500 at the status": (failing_job("runner_server_error", at="status"), None),
    "cancelled before it ran": (cancelled("IN_QUEUE"), None),
    "cancelled while it ran": (cancelled("IN_PROGRESS"), RESERVED),
    "run: caller gone": (hung_up_on(f"run/{COUNTING}"), RESERVED),
    "stream: caller gone": (hung_up_on(f"run/{COUNTING}/stream"), RESERVED),
    "stream: broken": (broken_stream, RESERVED),
}


@pytest.mark.parametrize("end", ENDS)
def test_each_end_of_a_call_books_its_own_amount(proxy: Stack, folder: Path, end: str) -> None:
    call, booked = ENDS[end]
    with Client(proxy, proxy.token(end, tenant="plenty")) as alice:
        before = {unit: account(folder, "plenty", unit) for unit in UNITS}
        call(alice, proxy.sandbox)

        def change() -> dict[str, float]:
            now = {unit: account(folder, "plenty", unit) for unit in UNITS}
            assert all(now[unit].reserved >= before[unit].reserved for unit in UNITS)
            return {unit: round(now[unit].used - before[unit].used, 6) for unit in UNITS}

        wait_until(lambda: account(folder, "plenty", "requests").reserved == before["requests"].reserved, "not settled")
        found = change()
        if booked is None:
            assert not any(found.values())
        else:
            assert (found["requests"], found["tokens"]) == (booked.used, booked.reserved)
            assert found["usd"] == pytest.approx(found["compute_seconds"] * PRICE, abs=1e-6)
        if booked is RESERVED:
            assert found["compute_seconds"] == COMPUTE_SECONDS_CEILING
        # The user's own account shows the same.
        own = Booked(found["requests"], 0)
        assert account(folder, "plenty", "requests", end) == own


class Hurried(EngineTransport):
    """Waits a tenth of a second for fal, as no operator would."""

    async def fetch(self, request: Request) -> Reply:
        return await super().fetch(request._replace(timeouts={**request.timeouts, "read": 0.1}))


def test_a_call_that_fal_is_silent_about_is_booked_as_reserved(sandbox: SandboxControl, tmp_path: Path) -> None:
    with (
        limited_proxy(sandbox, tmp_path, {"plenty": PLANS["plenty"]}, endpoints=PRICES, transport=Hurried()) as own,
        Client(own, own.token(tenant="plenty")) as alice,
    ):
        sandbox.fault("hang")
        for count, answer in enumerate((alice.run(), alice.submit()), start=1):
            assert_refused_with(answer, 500, "upstream_ambiguous")
            assert account(tmp_path, "plenty", "requests").used >= 1, count
        assert account(tmp_path, "plenty", "tokens") == Booked(128, 0)


# --- jobs without watchers


@pytest.mark.parametrize(
    ("end", "booked"),
    [
        ({"state": "finish"}, REPORTED),
        ({"state": "fail"}, NOTHING),
        ({"state": "lose"}, RESERVED),
    ],
    ids=["finished", "failed", "forgotten by fal"],
)
def test_a_job_without_watchers_is_booked(
    sandbox: SandboxControl, tmp_path: Path, end: dict[str, str], booked: Booked
) -> None:
    counters = MemoryCounters()
    with (
        limited_proxy(sandbox, tmp_path, {"plenty": PLANS["plenty"]}, endpoints=PRICES, counters=counters) as own,
        Client(own, own.token(tenant="plenty")) as alice,
    ):
        job = alice.submitted(QUEUED, COUNTING)
        own.clock.advance(QUIET_SECONDS + 1)
        look_after(own, counters)
        assert account(tmp_path, "plenty", "tokens") == Booked(0, 64)
        sandbox.move_job(job, end["state"])
        own.clock.advance(QUIET_SECONDS + 1)
        look_after(own, counters)
        wait_until(lambda: account(tmp_path, "plenty", "tokens").reserved == 0, "it stays reserved")
        assert account(tmp_path, "plenty", "requests") == Booked(booked.used, 0)
        assert account(tmp_path, "plenty", "tokens") == Booked(booked.reserved, 0)
        assert alice.slots() == (0, 0)


def test_nothing_stays_reserved_beyond_its_time(sandbox: SandboxControl, tmp_path: Path) -> None:
    counters = MemoryCounters()
    with limited_proxy(sandbox, tmp_path, {"plenty": PLANS["plenty"]}, endpoints=PRICES, counters=counters) as own:
        with Client(own, own.token(tenant="plenty")) as alice:
            alice.submitted(QUEUED)
        sandbox.fault("drop", when="before")
        own.clock.advance(JOB_SECONDS - 1)
        look_after(own, counters)
        assert account(tmp_path, "plenty", "tokens") == Booked(0, 64)
        own.clock.advance(QUIET_SECONDS + 1)
        look_after(own, counters)
        wait_until(lambda: account(tmp_path, "plenty", "tokens") == Booked(64, 0), "it stays reserved")


def test_of_two_quotas_of_one_account_the_lower_one_holds_and_is_shown(proxy: Stack) -> None:
    with Client(proxy, proxy.token("ann", tenant="twice")) as ann:
        assert ann.http.post("/v1/uploads", content=png(64), headers={"content-type": "image/png"}).status_code == 201
        assert ann.run().status_code == 200
        quotas = [(one["per"], one["unit"], one["limit"], one["used"], one["left"]) for one in ann.facts()["quotas"]]
        assert quotas == [
            ("subject", "upload_bytes", 100, 64, 36),
            ("tenant", "requests", 9, 1, 8),
        ]
        refused = ann.http.post("/v1/uploads", content=png(64), headers={"content-type": "image/png"})
        assert_refused_with(refused, 402, "quota_exceeded", "subject")
