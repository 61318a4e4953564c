"""An open stream ends with its credential and says so; no result follows."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.routes.jobs import JOBS, SSE, created, new
from tests.support.limited import NEXT, account, asking, limited_proxy, operating, per, plan
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack
from tests.support.waiting import wait_until

ORIGIN = "https://app.acme.example"
PLANS = {"acme": plan(quotas=[per("subject", "requests", 100)]), "globex": plan()}
OWNERS = {"acme": {"allowed_origins": [ORIGIN], "guests": {"enabled": True, "plan": "acme", "per_address": None}}}
#: It runs until the test lets it end.
HELD = "[[pace hold=IN_PROGRESS queue_positions=0 run_seconds=0]]"
#: Its first word comes at once, its last one long after the end of any test.
SLOW = "[[pace run_seconds=0 words_per_second=10]]" + " What is it?" * 400
#: Five, and more for a busy machine.
MOST_SECONDS = 5.0 + 30


@pytest.fixture(scope="module")
def shared_proxy(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with limited_proxy(shared_sandbox, tmp_path_factory.mktemp("open-streams"), PLANS, tenants=OWNERS) as stack:
        yield stack


@pytest.fixture
def proxy(shared_proxy: Stack, sandbox: SandboxControl) -> Stack:
    return shared_proxy


@dataclass
class Reader:
    """A caller that reads a stream on a thread of its own, to its end."""

    client: httpx.Client
    method: str
    path: str
    options: dict[str, Any]
    names: list[str] = field(default_factory=list)
    documents: list[Any] = field(default_factory=list)
    is_cut: bool = False

    def __post_init__(self) -> None:
        self.has_begun = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        assert self.has_begun.wait(60), "the stream did not begin"

    def _read(self) -> None:
        name = ""
        try:
            with self.client.stream(self.method, self.path, **self.options) as stream:
                assert stream.status_code == 200, stream.read()
                for line in stream.iter_lines():
                    if line.startswith("event: "):
                        name = line.removeprefix("event: ")
                    elif line.startswith("data: "):
                        self.names.append(name)
                        self.documents.append(json.loads(line.removeprefix("data: ")))
                        name = ""
                        self.has_begun.set()
        except httpx.RemoteProtocolError:
            self.is_cut = True

    def wait(self) -> float:
        """Wait until the stream has ended; return the seconds."""
        began = time.monotonic()
        self._thread.join(60)
        assert not self._thread.is_alive(), "the stream did not end"
        return time.monotonic() - began

    def assert_ended(self, code: str) -> None:
        """The stream ended in time with an error that says why, and with nothing that looks like the job's end."""
        assert self.wait() < MOST_SECONDS
        assert self.names[-1] == "error"
        error = self.documents[-1]
        assert (error["error_type"], error["detail"]) == (code, error["message"])
        assert error["request_id"] and "status" not in error
        assert "result" not in self.names
        assert all(one.get("status") != "COMPLETED" for one in self.documents if isinstance(one, dict))


def status_stream(client: httpx.Client) -> Reader:
    job = client.post(f"/fal/queue/{NEXT}", json=asking(HELD)).raise_for_status().json()["request_id"]
    return Reader(client, "GET", f"/fal/queue/{NEXT}/requests/{job}/status/stream?logs=1", {})


def proxied_status_stream(client: httpx.Client) -> Reader:
    job = client.post(f"/fal/queue/{NEXT}", json=asking(HELD)).raise_for_status().json()["request_id"]
    target = f"https://queue.fal.run/{NEXT}/requests/{job}/status/stream"
    return Reader(client, "GET", "/api/fal/proxy", {"headers": {"x-fal-target-url": target}})


def events(client: httpx.Client) -> Reader:
    return Reader(client, "GET", f"{JOBS}/{created(client, HELD)}/events", {})


def job_as_stream(client: httpx.Client) -> Reader:
    return Reader(client, "POST", JOBS, {"headers": SSE, "json": new(HELD)})


def model_stream(client: httpx.Client) -> Reader:
    return Reader(client, "POST", f"/fal/run/{NEXT}/stream", {"json": asking(SLOW, max_tokens=1000)})


def proxied_model_stream(client: httpx.Client) -> Reader:
    target = {"x-fal-target-url": f"https://fal.run/{NEXT}/stream"}
    return Reader(client, "POST", "/api/fal/proxy", {"json": asking(SLOW, max_tokens=1000), "headers": target})


KINDS: dict[str, Callable[[httpx.Client], Reader]] = {
    "status-stream": status_stream,
    "status-stream-of-the-protocol": proxied_status_stream,
    "events": events,
    "job-as-stream": job_as_stream,
    "model-stream": model_stream,
    "model-stream-of-the-protocol": proxied_model_stream,
}
kinds = pytest.mark.parametrize("kind", KINDS)


@kinds
def test_a_stream_ends_when_its_session_is_revoked(proxy: Stack, kind: str) -> None:
    with proxy.client(proxy.token("alice")) as alice, proxy.client(proxy.token("bob")) as bob:
        reader, other = KINDS[kind](alice), events(bob)
        assert alice.delete("/v1/session").status_code == 204
        reader.assert_ended("session_revoked")
        # Some clients take the last event for the result.
        assert reader.is_cut is kind.startswith("model-stream")
        assert other.names[-1] == "status"
        assert bob.delete("/v1/session").status_code == 204
        other.assert_ended("session_revoked")


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_ends_when_its_session_expires(proxy: Stack, kind: str) -> None:
    with proxy.client(proxy.token("alice", ttl_seconds=600)) as alice:
        reader = KINDS[kind](alice)
        if kind.startswith("model-stream"):
            proxy.clock.advance(600)
        else:
            # It only reads a job, which the session may do for ten more minutes, so it stays open.
            other = model_stream(alice)
            proxy.clock.advance(1199)
            other.assert_ended("session_expired")
            assert "error" not in reader.names
            proxy.clock.advance(1)
        reader.assert_ended("session_expired")


@kinds
def test_streams_end_when_their_subject_is_revoked(proxy: Stack, kind: str) -> None:
    subject = f"carol-{time.monotonic_ns()}"
    with proxy.client(proxy.token(subject)) as one, proxy.client(proxy.token(subject)) as two:
        readers = [KINDS[kind](one), KINDS[kind](two)]
        with operating(proxy) as operator:
            form = {"tenant": "acme", "subject": subject}
            assert operator.request("DELETE", "/v1/admin/sessions", json=form).status_code == 204
        for reader in readers:
            reader.assert_ended("session_revoked")


@kinds
def test_streams_end_when_their_tenant_key_is_revoked(proxy: Stack, kind: str) -> None:
    with operating(proxy) as operator:
        made = operator.post("/v1/admin/tenants/acme/keys", json={}).json()
        with proxy.client(made["key"]) as backend:
            reader = KINDS[kind](backend)
            assert operator.delete(f"/v1/admin/keys/{made['id']}").status_code == 204
            reader.assert_ended("unauthenticated")


@kinds
def test_streams_end_when_their_tenant_is_suspended(proxy: Stack, kind: str) -> None:
    of_user = proxy.token("alice", tenant="globex")
    with operating(proxy) as operator, proxy.client(of_user) as user, proxy.client(proxy.tenant_key("globex")) as own:
        readers = [KINDS[kind](user), KINDS[kind](own)]
        assert operator.post("/v1/admin/tenants/globex/suspend").status_code == 200
        for reader in readers:
            reader.assert_ended("tenant_suspended")
        assert operator.post("/v1/admin/tenants/globex/resume").status_code == 200


def test_streams_of_guests_end_when_guests_are_no_longer_allowed(proxy: Stack) -> None:
    with operating(proxy) as operator, proxy.client("") as page:
        guest_token = page.post("/v1/sessions/guest", headers={"origin": ORIGIN}).json()["token"]
        tenant = {"id": "acme", "plan": "acme", "allowed_origins": [ORIGIN]}
        with proxy.client(guest_token) as guest, proxy.client(proxy.token("alice")) as alice:
            reader, of_a_user = events(guest), events(alice)
            assert operator.put("/v1/admin/tenants", json={"plans": PLANS, "tenants": [tenant]}).status_code == 200
            reader.assert_ended("unauthenticated")
            assert of_a_user.names[-1] == "status"
            again = {"plans": PLANS, "tenants": [{**tenant, **OWNERS["acme"]}]}
            assert operator.put("/v1/admin/tenants", json=again).status_code == 200
            assert alice.delete("/v1/session").status_code == 204
            of_a_user.assert_ended("session_revoked")


def test_no_result_follows_the_end_of_a_session(proxy: Stack) -> None:
    """The job ends just after the session: the stream does not show the result."""
    with proxy.client(proxy.token("alice")) as alice:
        job = created(alice, HELD)
        reader = Reader(alice, "GET", f"{JOBS}/{job}/events", {})
        proxy.sandbox.forget()
        assert alice.delete("/v1/session").status_code == 204
        proxy.sandbox.move_job(job, "COMPLETED")
        reader.assert_ended("session_revoked")
        assert f"/requests/{job}" not in [
            record["path"][-len(f"/requests/{job}") :] for record in proxy.sandbox.requests()
        ]


def test_a_new_session_goes_on_where_the_stream_ended(proxy: Stack) -> None:
    """The error has no event id, so the caller's last id still marks its place."""
    with proxy.client(proxy.token("alice")) as alice, proxy.client(proxy.token("alice")) as again:
        job = created(alice, HELD)
        reader = Reader(alice, "GET", f"{JOBS}/{job}/events", {})
        assert alice.delete("/v1/session").status_code == 204
        reader.assert_ended("session_revoked")
        proxy.sandbox.move_job(job, "COMPLETED")
        resumed = Reader(again, "GET", f"{JOBS}/{job}/events", {})
        resumed.wait()
        assert resumed.names[-1] == "result"


def test_a_cut_stream_of_a_model_is_booked(proxy: Stack, shared_proxy: Stack) -> None:
    subject = f"dora-{time.monotonic_ns()}"
    database = Path(proxy.settings.stores.database_url.reveal().removeprefix("sqlite:///"))
    with proxy.client(proxy.token(subject)) as dora:
        reader = model_stream(dora)
        assert dora.delete("/v1/session").status_code == 204
        reader.assert_ended("session_revoked")
    wait_until(lambda: account(database.parent, "acme", "requests", subject).reserved == 0, "it stays reserved")
    assert account(database.parent, "acme", "requests", subject).used == 1
    wait_until(
        lambda: "fal_proxy_streams 0" in metrics(proxy) or "streams 0.0" in metrics(proxy), "a stream stays open"
    )


def metrics(proxy: Stack) -> str:
    with proxy.client("") as client:
        return client.get("/metrics").text


def test_a_refused_stream_is_counted(proxy: Stack) -> None:
    line = 'fal_proxy_refusals_total{error_type="session_revoked"}'

    def count() -> float:
        return next((float(one.split()[-1]) for one in metrics(proxy).splitlines() if one.startswith(line)), 0.0)

    with proxy.client(proxy.token("alice")) as alice:
        before, reader = count(), events(alice)
        assert alice.delete("/v1/session").status_code == 204
        reader.assert_ended("session_revoked")
        assert count() == before + 1


def test_another_process_ends_its_streams_too(sandbox: SandboxControl, tmp_path: Path) -> None:
    with (
        limited_proxy(sandbox, tmp_path, PLANS, tenants=OWNERS) as first,
        limited_proxy(sandbox, tmp_path, PLANS, tenants=OWNERS) as second,
    ):
        token = first.token("alice")
        with first.client(token) as here, second.client(token) as there:
            reader = events(there)
            assert here.delete("/v1/session").status_code == 204
            # The second process gets no calls: it reads the directory only for its stream.
            second.clock.advance(3)
            reader.assert_ended("session_revoked")
