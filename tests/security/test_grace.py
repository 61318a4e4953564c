"""A session that expired while its job ran still reads that job for ten minutes, and can do nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.routes.jobs import JOBS, SSE, created, new, read_all_events, watching
from tests.support.limited import COUNTING, NEXT, asking, assert_refused_with, limited_proxy, operating, plan
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack

TTL, GRACE = 300, 600
ORIGIN = "https://app.acme.example"
OWNERS = {"acme": {"allowed_origins": [ORIGIN], "guests": {"enabled": True, "plan": "acme", "per_address": None}}}
HELD = "[[pace hold=IN_PROGRESS queue_positions=0 run_seconds=0]]"
JOB = f"queue/{NEXT}/requests/{{job}}"
FAL_JOB = f"https://queue.fal.run/{NEXT}/requests/{{job}}"


@pytest.fixture(scope="module")
def shared_proxy(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    plans = {"acme": plan(session_ttl_seconds=TTL), "globex": plan()}
    with limited_proxy(shared_sandbox, tmp_path_factory.mktemp("grace"), plans, tenants=OWNERS) as stack:
        yield stack


@pytest.fixture
def proxy(shared_proxy: Stack, sandbox: SandboxControl) -> Stack:
    return shared_proxy


Ask = Callable[[httpx.Client, str, str], httpx.Response]


def by_hosts(client: httpx.Client, job: str, tail: str) -> httpx.Response:
    return client.get(f"/fal/{JOB.format(job=job)}{tail}")


def by_queue_host(client: httpx.Client, job: str, tail: str) -> httpx.Response:
    """As the Python client before 0.11 does, which makes the queue's host of the other."""
    host = {"host": f"queue.{client.base_url.host}"}
    return client.get(f"/fal/{JOB.format(job=job).replace('queue', 'run', 1)}{tail}", headers=host)


def by_protocol(client: httpx.Client, job: str, tail: str) -> httpx.Response:
    return client.get("/api/fal/proxy", headers={"x-fal-target-url": FAL_JOB.format(job=job) + tail})


def by_path(client: httpx.Client, job: str, tail: str) -> httpx.Response:
    """As the Swift client does, which can set no header."""
    session = client.headers["authorization"].removeprefix("Bearer ")
    headers = {"x-fal-target-url": FAL_JOB.format(job=job) + tail}
    return httpx.get(
        f"{client.base_url}/s/{session}/api/fal/proxy", headers=headers, timeout=60, trust_env=False, verify=False
    )


def natively(client: httpx.Client, job: str, tail: str) -> httpx.Response:
    own = {"": "/result", "/status": "", "/status/stream": "/events"}
    return client.get(f"{JOBS}/{job}{own[tail]}")


SURFACES: dict[str, Ask] = {
    "hosts": by_hosts,
    "queue-host": by_queue_host,
    "protocol": by_protocol,
    "path": by_path,
    "native": natively,
}
surfaces = pytest.mark.parametrize("surface", SURFACES)
TAILS = ("/status", "", "/status/stream")


@surfaces
def test_a_job_is_read_to_its_result_across_the_expiry(proxy: Stack, surface: str) -> None:
    ask = SURFACES[surface]
    with proxy.client(proxy.token("alice", ttl_seconds=TTL)) as alice:
        job = created(alice, HELD)
        assert ask(alice, job, "/status").status_code in (200, 202)
        proxy.clock.advance(TTL)
        answer = ask(alice, job, "/status")
        assert answer.status_code in (200, 202) and answer.json()["status"] != "COMPLETED"
        # Asked once more: the remembered answer to the last poll has expired with the session.
        assert ask(alice, job, "/status").status_code in (200, 202)
        proxy.sandbox.move_job(job, "COMPLETED")
        proxy.clock.advance(GRACE - 1)
        assert '"COMPLETED"' in ask(alice, job, "/status/stream").text
        assert ask(alice, job, "").json()["output"]
        proxy.clock.advance(1)
        for tail in TAILS:
            assert_refused_with(ask(alice, job, tail), 401, "session_expired")


@pytest.mark.parametrize("place", ["cookie", "x-fal-proxy-session"])
def test_the_grace_period_holds_wherever_the_session_is_sent(proxy: Stack, place: str) -> None:
    token = proxy.token("alice", ttl_seconds=TTL)
    said = {"cookie": proxy.cookie(token), "origin": ORIGIN} if place == "cookie" else {place: token}
    with proxy.client("", headers=said) as alice:
        job = created(alice, "?")
        proxy.clock.advance(TTL + 1)
        for ask in (by_hosts, by_protocol, natively):
            assert ask(alice, job, "/status").status_code in (200, 202)


def test_a_cookie_from_a_foreign_page_has_no_grace_period(proxy: Stack) -> None:
    token = proxy.token("alice", ttl_seconds=TTL)
    with proxy.client(token) as alice, proxy.client("", headers={"cookie": proxy.cookie(token)}) as page:
        job = created(alice, "?")
        proxy.clock.advance(TTL + 1)
        page.headers["origin"] = "https://evil.example"
        for ask in (by_hosts, by_protocol, natively):
            assert_refused_with(ask(page, job, "/status"), 403, "origin_not_allowed")


def test_a_guest_has_a_grace_period(proxy: Stack) -> None:
    with proxy.client("") as page:
        token = page.post("/v1/sessions/guest", headers={"origin": ORIGIN}).json()["token"]
    with proxy.client(token) as guest:
        job = created(guest, "?")
        proxy.clock.advance(TTL + 1)
        assert natively(guest, job, "/status").status_code == 200


def test_an_open_stream_of_a_job_goes_on_to_its_result(proxy: Stack) -> None:
    with (
        proxy.client(proxy.token("alice", ttl_seconds=TTL)) as alice,
        proxy.client(proxy.token("bob", ttl_seconds=TTL)) as bob,
    ):
        job = created(alice, HELD)
        slow = asking("[[pace run_seconds=0 words_per_second=0.1]] What is it?")
        with watching(alice, job) as events, bob.stream("POST", f"/fal/run/{NEXT}/stream", json=slow) as run:
            assert next(events)["event"] == "status"
            proxy.clock.advance(GRACE + TTL - 1)
            # A model's stream has no grace period: its end shows that the sessions of both were checked.
            with pytest.raises(httpx.RemoteProtocolError):
                run.read()
            proxy.sandbox.move_job(job, "COMPLETED")
            assert [event["event"] for event in events][-1] == "result"


def test_a_stream_that_broke_is_resumed_in_the_grace_period(proxy: Stack) -> None:
    with proxy.client(proxy.token("alice", ttl_seconds=TTL)) as alice:
        job = created(alice, HELD)
        with watching(alice, job) as events:
            mark = next(events)["id"]
        proxy.clock.advance(TTL + 1)
        proxy.sandbox.move_job(job, "COMPLETED")
        assert [event["event"] for event in read_all_events(alice, job, mark)][-1] == "result"


# Nothing else


OTHERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "run": ("POST", f"/fal/run/{NEXT}", {"json": asking("?")}),
    "model-stream": ("POST", f"/fal/run/{NEXT}/stream", {"json": asking("?")}),
    "submit": ("POST", f"/fal/queue/{NEXT}", {"json": asking("?")}),
    "cancel": ("PUT", f"/fal/{JOB}/cancel", {}),
    "upload": ("POST", "/fal/rest/storage/upload/initiate", {"json": {}}),
    "upload-token": ("POST", "/fal/rest/storage/auth/token", {"json": {}}),
    "no-target": ("GET", "/fal/queue/nothing", {}),
    "no-job-id": ("GET", f"/fal/queue/{NEXT}/requests/{'x' * 200}/status", {}),
    "protocol-submit": ("POST", "/api/fal/proxy", {"headers": {"x-fal-target-url": f"https://queue.fal.run/{NEXT}"}}),
    "protocol-cancel": ("PUT", "/api/fal/proxy", {"headers": {"x-fal-target-url": f"{FAL_JOB}/cancel"}}),
    "protocol-without-target": ("GET", "/api/fal/proxy", {}),
    "native-submit": ("POST", JOBS, {"json": new("?")}),
    "native-submit-and-watch": ("POST", JOBS, {"json": new("?"), "headers": SSE}),
    "native-cancel": ("DELETE", f"{JOBS}/{{job}}", {}),
    "native-list": ("GET", JOBS, {}),
    "native-upload": ("POST", "/v1/uploads", {"content": b"x", "headers": {"content-type": "image/png"}}),
    "facts": ("GET", "/v1/session", {}),
    "revoke": ("DELETE", "/v1/session", {}),
    "cookie": ("POST", "/v1/sessions/cookie", {}),
    "renew": ("POST", "/v1/sessions/renew", {}),
    "mint": ("POST", "/v1/sessions", {"json": {"subject": "bob"}}),
    "endpoints": ("GET", "/v1/endpoints", {}),
    "endpoint": ("GET", f"/v1/endpoints/{NEXT}", {}),
    "usage": ("GET", "/v1/usage", {}),
    "estimate": ("POST", "/v1/estimate", {"json": {"endpoint": NEXT, "input": {}}}),
}


@pytest.mark.parametrize("call", OTHERS)
def test_an_expired_session_can_do_nothing_else(proxy: Stack, call: str) -> None:
    method, path, options = OTHERS[call]
    with proxy.client(proxy.token("alice", ttl_seconds=TTL)) as alice:
        job = created(alice, HELD)
        proxy.clock.advance(TTL)
        proxy.sandbox.forget()
        headers = {name: value.format(job=job) for name, value in options.get("headers", {}).items()}
        answer = alice.request(method, path.replace("{job}", job), **{**options, "headers": headers})
        assert_refused_with(answer, 401, "session_expired")
        assert "set-cookie" not in answer.headers
        assert [one for one in proxy.sandbox.requests() if one["method"] != "GET"] == []
        assert natively(alice, job, "/status").json()["status"] == "IN_PROGRESS"


@surfaces
def test_a_job_of_another_user_is_not_read(proxy: Stack, surface: str) -> None:
    token, other = proxy.token("alice", ttl_seconds=TTL), proxy.token("bob", ttl_seconds=TTL)
    namesake = proxy.token("alice", tenant="globex", ttl_seconds=TTL)
    with proxy.client(token) as alice, proxy.client(other) as bob, proxy.client(namesake) as stranger:
        jobs = [created(bob, "?"), created(stranger, "?"), "no-such-job"]
        proxy.clock.advance(TTL)
        for job in jobs:
            for tail in TAILS:
                assert_refused_with(SURFACES[surface](alice, job, tail), 401, "session_expired")


@surfaces
def test_a_job_that_was_submitted_later_is_not_read(proxy: Stack, surface: str) -> None:
    """It was submitted with another session, which can read it."""
    with proxy.client(proxy.token("alice", ttl_seconds=TTL)) as old:
        proxy.clock.advance(TTL)
        with proxy.client(proxy.token("alice", ttl_seconds=TTL)) as fresh:
            job = created(fresh, "?")
            assert SURFACES[surface](fresh, job, "/status").status_code in (200, 202)
        for tail in TAILS:
            assert_refused_with(SURFACES[surface](old, job, tail), 401, "session_expired")


def test_a_narrowed_session_reads_the_jobs_of_its_endpoints_only(proxy: Stack) -> None:
    with (
        proxy.client(proxy.token("alice", ttl_seconds=TTL)) as alice,
        proxy.client(proxy.token("alice", endpoints=[COUNTING], ttl_seconds=TTL)) as narrow,
    ):
        job = created(alice, "?")
        proxy.clock.advance(TTL)
        for ask in SURFACES.values():
            assert_refused_with(ask(narrow, job, "/status"), 401, "session_expired")
            assert ask(alice, job, "/status").status_code in (200, 202)


@surfaces
@pytest.mark.parametrize("is_revoked_late", [False, True], ids=["before-the-expiry", "after-the-expiry"])
def test_a_revoked_session_reads_nothing(proxy: Stack, surface: str, is_revoked_late: bool) -> None:
    subject = f"mallory-{surface}-{is_revoked_late}"
    with proxy.client(proxy.token(subject, ttl_seconds=TTL)) as client, operating(proxy) as operator:
        job = created(client, HELD)

        def revoke() -> None:
            form = {"tenant": "acme", "subject": subject}
            assert operator.request("DELETE", "/v1/admin/sessions", json=form).status_code == 204

        if is_revoked_late:
            proxy.clock.advance(TTL)
            assert SURFACES[surface](client, job, "/status").status_code in (200, 202)
            revoke()
        else:
            revoke()
            proxy.clock.advance(TTL)
        for tail in TAILS:
            assert_refused_with(SURFACES[surface](client, job, tail), 401, "session_revoked")


def test_a_session_that_revoked_itself_reads_nothing_to_the_end_of_its_grace(proxy: Stack) -> None:
    with proxy.client(proxy.token("alice", ttl_seconds=TTL)) as alice:
        job = created(alice, HELD)
        assert alice.delete("/v1/session").status_code == 204
        proxy.clock.advance(TTL + GRACE - 1)
        for ask in SURFACES.values():
            assert_refused_with(ask(alice, job, "/status"), 401, "session_revoked")


def test_polls_in_the_grace_period_are_counted(
    sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory
) -> None:
    polls = {"ip": None, "session": "5/hour", "subject": None, "tenant": None}
    plans = {"acme": plan(session_ttl_seconds=TTL, poll_limits=polls)}
    with (
        limited_proxy(sandbox, tmp_path_factory.mktemp("counted"), plans) as own,
        own.client(own.token("alice", ttl_seconds=TTL)) as alice,
    ):
        job = created(alice, HELD)
        own.clock.advance(TTL)
        for _ in range(5):
            assert natively(alice, job, "/status").status_code == 200
        assert_refused_with(natively(alice, job, "/status"), 429, "rate_limited", "session")


def test_an_address_that_is_not_heard_still_reads_its_job(
    sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory
) -> None:
    environ = {"PROXY_REFUSALS_PER_ADDRESS": "5/minute"}
    plans = {"acme": plan(session_ttl_seconds=TTL)}
    with (
        limited_proxy(sandbox, tmp_path_factory.mktemp("budget"), plans, environ=environ) as own,
        own.client(own.token("alice", ttl_seconds=TTL)) as alice,
        own.client("") as stranger,
    ):
        job = created(alice, HELD)
        own.clock.advance(TTL)
        for _ in range(5):
            assert_refused_with(stranger.get("/v1/session"), 401, "unauthenticated")
        assert_refused_with(stranger.get("/v1/session"), 429, "rate_limited", "ip")
        for ask in SURFACES.values():
            assert ask(alice, job, "/status").status_code in (200, 202)
        assert_refused_with(alice.get("/v1/session"), 429, "rate_limited", "ip")
        own.clock.advance(GRACE)
        for _ in range(5):
            stranger.get("/v1/session")
        assert_refused_with(natively(alice, job, "/status"), 429, "rate_limited", "ip")
