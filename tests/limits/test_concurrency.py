"""In-flight slots: taken before a call, returned at its end, whatever that end is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.jobs.reconciler import QUIET_SECONDS
from proxy.limits.leases import LEASE_SECONDS
from proxy.limits.quotas import JOB_SECONDS
from proxy.stores.memory import MemoryCounters
from tests.support.limited import (
    COUNTING,
    NEXT,
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
from tests.support.redis import Redis
from tests.support.sandbox import SandboxControl
from tests.support.servers import free_port
from tests.support.stack import Stack
from tests.support.waiting import wait_until

QUEUED, RUNNING = "[[pace hold=IN_QUEUE]] ?", "[[pace hold=IN_PROGRESS]] ?"
PLANS = {
    "one": plan(concurrency={"subject": 1, "tenant": None}),
    "two": plan(concurrency={"subject": 2, "tenant": 3}),
    "poor": plan(concurrency={"subject": 1, "tenant": 1}, quotas=[per("tenant", "tokens", 100)]),
    "free": plan(),
}


@pytest.fixture(scope="module")
def limited(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with limited_proxy(shared_sandbox, tmp_path_factory.mktemp("slots"), PLANS) as stack:
        yield stack


@pytest.fixture
def proxy(limited: Stack, sandbox: SandboxControl) -> Stack:
    return limited


@pytest.fixture
def alice(proxy: Stack, request: pytest.FixtureRequest) -> Iterator[Client]:
    """A user of her own for each test, with one lease."""
    with Client(proxy, proxy.token(f"alice of {request.node.name}"[:200], tenant="one")) as client:
        yield client


def check_full(answer: httpx.Response, scope: str = "subject") -> None:
    assert assert_refused_with(answer, 429, "too_many_jobs", scope)["retry_after"] == 1


# --- how many


@pytest.mark.parametrize("surface", ["hosts", PROTOCOL])
def test_a_user_and_a_tenant_each_have_their_number_of_leases(proxy: Stack, surface: str) -> None:
    people = [Client(proxy, proxy.token(f"{name} {surface}", tenant="two"), surface) for name in ("ann", "ben", "cy")]
    ann, ben, cy = people
    jobs = [ann.submitted(QUEUED), ann.submitted(QUEUED)]
    for refused in (ann.submit(), ann.run(), ann.call("POST", f"run/{NEXT}/stream", asking("?"))):
        check_full(refused)
    assert ann.slots() == (2, 2)
    jobs.append(ben.submitted(QUEUED))
    for one in (ben, cy):
        check_full(one.submit(), "tenant")
    # A call that the tenant's limit refuses takes no lease of the user.
    assert (ben.slots(), cy.slots()) == ((1, 3), (0, 3))
    assert len(posts(proxy.sandbox)) == 3
    assert ann.cancel(jobs[0]).status_code == 202 and ann.status(jobs[0]).is_success
    jobs.append(cy.submitted(QUEUED))
    check_full(ann.submit(), "tenant")
    for job, owner in zip(jobs[1:], (ann, ben, cy), strict=True):
        proxy.sandbox.move_job(job, "finish")
        assert owner.status(job).json()["status"] == "COMPLETED"
    assert [one.slots() for one in people] == [(0, 0)] * 3
    for one in people:
        one.http.close()


def test_two_users_count_their_leases_apart(proxy: Stack, alice: Client) -> None:
    alice.submitted(QUEUED)
    with Client(proxy, proxy.token("another user", tenant="one")) as other:
        job = other.submitted(QUEUED)
        check_full(other.submit())
        assert other.cancel(job).status_code == 202


def test_a_tenants_own_calls_take_leases_too(proxy: Stack) -> None:
    with Client(proxy, proxy.tenant_key("one")) as server:
        job = server.submitted(QUEUED)
        check_full(server.submit())
        proxy.sandbox.move_job(job, "finish")
        assert server.status(job).is_success and server.slots()[0] == 0


def test_leases_are_counted_without_a_limit_too(proxy: Stack) -> None:
    with Client(proxy, proxy.token(tenant="free")) as client:
        jobs = [client.submitted(QUEUED) for _ in range(12)]
        facts = client.facts()["in_flight"]
        assert facts == {"subject": {"used": 12, "limit": None}, "tenant": {"used": 12, "limit": None}}
        for job in jobs:
            proxy.sandbox.move_job(job, "finish")
            client.status(job)
        assert client.slots() == (0, 0)


# --- for how long


def test_a_run_keeps_its_lease_until_its_answer(proxy: Stack, alice: Client) -> None:
    with meanwhile(lambda: alice.run(RUNNING), proxy.sandbox) as (answer, call):
        assert alice.slots()[0] == 1
        check_full(alice.run())
        proxy.sandbox.move_job(call, "finish")
        assert answer.result().status_code == 200
    assert alice.slots()[0] == 0 and alice.run().status_code == 200


def test_a_stream_keeps_its_lease_until_its_end(proxy: Stack, alice: Client) -> None:
    def streamed() -> list[str]:
        with alice.http.stream("POST", f"/fal/run/{NEXT}/stream", json=asking(RUNNING)) as answer:
            return [line for line in answer.iter_lines() if line.startswith("data:")]

    with meanwhile(streamed, proxy.sandbox) as (lines, call):
        assert alice.slots()[0] == 1
        check_full(alice.run())
        proxy.sandbox.move_job(call, "finish")
        assert lines.result()
    assert alice.slots()[0] == 0


def by_poll(alice: Client, job: str) -> None:
    assert alice.status(job, COUNTING).json()["status"] == "COMPLETED"


def by_result(alice: Client, job: str) -> None:
    assert alice.result(job, COUNTING).status_code == 200


def by_stream(alice: Client, job: str) -> None:
    with alice.http.stream("GET", f"/fal/queue/{COUNTING}/requests/{job}/status/stream") as answer:
        assert answer.is_success and '"COMPLETED"' in answer.read().decode()


@pytest.mark.parametrize("learn", [by_poll, by_result, by_stream])
def test_a_job_holds_its_lease_until_its_end_is_known(
    proxy: Stack, alice: Client, learn: Callable[[Client, str], None]
) -> None:
    job = alice.submitted(QUEUED, COUNTING)
    for state in ("IN_QUEUE", "IN_PROGRESS"):
        proxy.sandbox.move_job(job, state)
        assert alice.result(job, COUNTING).status_code == 400
        check_full(alice.submit())
    proxy.sandbox.move_job(job, "finish")
    check_full(alice.submit())
    learn(alice, job)
    assert alice.slots()[0] == 0 and alice.run().status_code == 200


def test_a_job_that_is_followed_returns_its_lease_by_itself(proxy: Stack, alice: Client) -> None:
    job = alice.submitted(QUEUED, COUNTING)
    assert alice.status(job, COUNTING).json()["status"] == "IN_QUEUE"
    check_full(alice.submit())
    proxy.sandbox.move_job(job, "finish")
    wait_until(lambda: alice.slots()[0] == 0, "the end of the job was not noticed")


@pytest.mark.parametrize("state", ["IN_QUEUE", "IN_PROGRESS"])
def test_a_cancelled_job_returns_its_lease_when_it_has_ended(proxy: Stack, alice: Client, state: str) -> None:
    job = alice.submitted(QUEUED)
    proxy.sandbox.move_job(job, state)
    assert alice.cancel(job).json() == {"status": "CANCELLATION_REQUESTED"}
    assert alice.status(job).json()["error_type"] == "client_cancelled"
    assert alice.slots()[0] == 0


def test_asking_too_early_returns_nothing(alice: Client) -> None:
    job = alice.submitted(QUEUED)
    assert alice.result(job).status_code == 400
    check_full(alice.submit())


# --- whatever the end


@pytest.mark.parametrize(
    "fault",
    [
        {"fault": "status", "status": 429},
        {"fault": "status", "status": 500},
        {"fault": "status", "status": 503},
        {"fault": "status", "status": 401},
        {"fault": "nginx", "status": 502},
        {"fault": "redirect"},
        {"fault": "fail", "error_type": "content_policy_violation"},
    ],
)
def test_a_refused_call_returns_its_lease(alice: Client, sandbox: SandboxControl, fault: dict[str, Any]) -> None:
    kinds = ("run",) if fault["fault"] == "fail" else ("run", "submit")
    for kind in kinds:
        sandbox.clear_faults()
        sandbox.fault(**fault, on={"operation": kind})
        answer = alice.run() if kind == "run" else alice.submit()
        assert answer.status_code >= 400
        lost = kind == "submit" and answer.json().get("error_type") == "upstream_ambiguous"
        # Without its answer a submit has no id, so fal cannot be asked about it: it may run for a while.
        assert alice.slots()[0] == int(lost)


@pytest.mark.parametrize("error_type", ["image_load_error", "client_cancelled", "no_media_generated"])
def test_a_job_that_fails_returns_its_lease_at_its_result(proxy: Stack, alice: Client, error_type: str) -> None:
    job = alice.submitted(f"[[fault fail={error_type}]] ?")
    proxy.sandbox.move_job(job, "finish")
    assert alice.result(job).status_code in (422, 499)
    assert alice.slots()[0] == 0


def test_a_call_that_the_proxy_refuses_takes_no_lease(proxy: Stack) -> None:
    with Client(proxy, proxy.token("pete", tenant="poor")) as pete:
        assert_refused_with(pete.run(max_tokens=101), 402, "quota_exceeded", "tenant")
        assert_refused_with(pete.run(temperature=9), 422, "invalid_input")
        assert pete.slots() == (0, 0) and pete.run(max_tokens=36).status_code == 200


def test_a_call_while_fal_is_out_of_reach_returns_its_lease(sandbox: SandboxControl, tmp_path: Path) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    environ = {"FAL_RUN_URL": f"{nowhere}/run", "FAL_QUEUE_URL": f"{nowhere}/queue"}
    with limited_proxy(sandbox, tmp_path, PLANS, environ=environ) as own, Client(own, own.token(tenant="one")) as alice:
        for answer in (alice.run(), alice.submit(), alice.call("POST", f"run/{NEXT}/stream", asking("?"))):
            assert_refused_with(answer, 503, "upstream_unavailable", "upstream")
        assert alice.slots() == (0, 0)


@pytest.mark.parametrize("path", [f"run/{NEXT}", f"run/{NEXT}/stream"])
def test_a_caller_who_hangs_up_returns_the_lease(proxy: Stack, alice: Client, path: str) -> None:
    with hanging_up(proxy, alice.token, path, asking(RUNNING)):
        assert alice.slots()[0] == 1
    wait_until(lambda: alice.slots()[0] == 0, "the slot did not come back")


def test_a_run_whose_answer_was_lost_returns_its_lease(alice: Client, sandbox: SandboxControl) -> None:
    sandbox.fault("drop", when="lost", on={"operation": "run"})
    assert_refused_with(alice.run(), 500, "upstream_ambiguous")
    assert alice.slots()[0] == 0


def test_a_submit_whose_answer_was_lost_keeps_its_lease_for_a_while(
    proxy: Stack, alice: Client, sandbox: SandboxControl
) -> None:
    sandbox.fault("drop", when="lost", on={"operation": "submit"})
    assert_refused_with(alice.submit(QUEUED), 500, "upstream_ambiguous")
    sandbox.clear_faults()
    check_full(alice.submit())
    proxy.clock.advance(LEASE_SECONDS - 1)
    check_full(alice.submit())
    proxy.clock.advance(1)
    assert alice.run().status_code == 200


# --- time, restarts, and jobs without watchers


def test_a_lease_ends_when_fal_reports_nothing(proxy: Stack, alice: Client, sandbox: SandboxControl) -> None:
    job = alice.submitted(QUEUED)
    # fal answers no question about the job, so only time frees the lease.
    sandbox.fault("drop", when="before", on={"operation": "status"})
    proxy.clock.advance(LEASE_SECONDS - 1)
    check_full(alice.submit())
    proxy.clock.advance(1)
    assert alice.run().status_code == 200
    sandbox.clear_faults()
    proxy.sandbox.move_job(job, "finish")


class NotedRenewals(MemoryCounters):
    """Counters that say how often leases were renewed."""

    renewals = 0

    async def renew(self, lease: str, keys: Sequence[str], now: float, expires_at: float) -> None:
        await super().renew(lease, keys, now, expires_at)
        self.renewals += 1


def test_a_job_that_is_asked_for_keeps_its_lease(sandbox: SandboxControl, tmp_path: Path) -> None:
    counters = NotedRenewals()
    with (
        limited_proxy(sandbox, tmp_path, PLANS, counters=counters) as own,
        Client(own, own.token(tenant="one")) as alice,
    ):
        job = alice.submitted(QUEUED)
        for renewals in range(1, 4):
            own.clock.advance(LEASE_SECONDS - 1)
            assert alice.status(job).json()["status"] == "IN_QUEUE"
            wait_until(lambda most=renewals: counters.renewals >= most, "the lease was not renewed")
        check_full(alice.submit())
        assert alice.cancel(job).status_code == 202


def test_leases_are_taken_again_after_a_restart(sandbox: SandboxControl, tmp_path: Path) -> None:
    with limited_proxy(sandbox, tmp_path, PLANS) as before:
        with Client(before, before.token(tenant="one")) as alice:
            waiting = alice.submitted(QUEUED)
        with Client(before, before.token("bob", tenant="one")) as bob:
            ended = bob.submitted(QUEUED)
            sandbox.move_job(ended, "finish")
            assert bob.status(ended).is_success
    with limited_proxy(sandbox, tmp_path, PLANS, clock=before.clock) as after:
        with Client(after, after.token(tenant="one")) as alice:
            assert alice.slots() == (1, 1)
            check_full(alice.submit())
            sandbox.move_job(waiting, "finish")
            assert alice.status(waiting).is_success and alice.slots() == (0, 0)
        with Client(after, after.token("bob", tenant="one")) as bob:
            assert bob.run().status_code == 200


def test_the_lease_of_a_job_without_watchers_is_renewed_and_released(sandbox: SandboxControl, tmp_path: Path) -> None:
    counters = MemoryCounters()
    with (
        limited_proxy(sandbox, tmp_path, PLANS, counters=counters) as own,
        Client(own, own.token(tenant="one")) as alice,
    ):
        job = alice.submitted(QUEUED)
        for _ in range(12):
            # It is still queued: asked for often enough, it keeps its lease for longer than one lasts.
            own.clock.advance(QUIET_SECONDS + 1)
            look_after(own, counters)
        check_full(alice.submit())
        sandbox.move_job(job, "finish")
        check_full(alice.submit())
        own.clock.advance(QUIET_SECONDS + 1)
        look_after(own, counters)
        wait_until(lambda: alice.slots() == (0, 0), "the slot did not come back")
        assert alice.run().status_code == 200


def test_a_failed_status_query_renews_no_lease(sandbox: SandboxControl, tmp_path: Path) -> None:
    """fal answers, but not about the job: its reservation and its lease end in their time."""
    counters = MemoryCounters()
    with (
        limited_proxy(sandbox, tmp_path, {"poor": PLANS["poor"]}, counters=counters) as own,
        Client(own, own.token(tenant="poor")) as alice,
    ):
        alice.submitted(QUEUED)
        sandbox.fault("status", status=500, on={"operation": "status"})
        own.clock.advance(LEASE_SECONDS + 1)
        look_after(own, counters)
        assert alice.slots() == (0, 0)
        assert account(tmp_path, "poor", "tokens") == Booked(0, 64)
        own.clock.advance(JOB_SECONDS)
        look_after(own, counters)
        wait_until(lambda: account(tmp_path, "poor", "tokens") == Booked(64, 0), "the reservation stayed")


@pytest.mark.tools
def test_a_proxy_that_starts_before_its_redis(sandbox: SandboxControl, tmp_path: Path, redis: Redis) -> None:
    """It is not ready and lets no call through; once Redis is there, the jobs of before have their slots."""
    environ = {"PROXY_REDIS_URL": redis.url}
    with limited_proxy(sandbox, tmp_path, PLANS) as before, Client(before, before.token(tenant="one")) as alice:
        job = alice.submitted(QUEUED)
    with contextlib.ExitStack() as stack:
        with redis.stopped():
            after = stack.enter_context(limited_proxy(sandbox, tmp_path, PLANS, clock=before.clock, environ=environ))
            alice = stack.enter_context(Client(after, after.token(tenant="one")))
            assert_refused_with(alice.http.get("/readyz"), 503, "store_unavailable")
            assert_refused_with(alice.run(), 503, "store_unavailable")
        check_full(alice.run())
        after.sandbox.move_job(job, "finish")
        assert alice.status(job).is_success and alice.slots() == (0, 0)
        after.clock.advance(1)
        assert alice.http.get("/readyz").status_code == 200
