"""The operator's routes and commands about one job, and about fal's keys."""

from __future__ import annotations

import asyncio
import itertools
import json
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from proxy.sandbox.app import SANDBOX_KEY
from proxy.upstream.slow_start import MOST_UNCONFIRMED
from tests.limits.callers import http
from tests.server.commands import Commands, Done
from tests.support.limited import (
    ADMIN_TOKEN,
    COUNTING,
    NEXT,
    Client,
    asking,
    assert_refused_with,
    limited_proxy,
    operating,
    per,
    plan,
)
from tests.support.sandbox import SandboxControl
from tests.support.servers import free_port, running
from tests.support.stack import Stack
from tests.support.waiting import wait_until

JOBS, UPSTREAMS = "/v1/admin/jobs", "/v1/admin/upstreams"
WAITS = "[[pace hold=IN_QUEUE]] ?"
PLANS = {"acme": plan(quotas=[per("subject", "requests", 1000), per("tenant", "tokens", 100_000, "month")])}
GUARDED = {"PROXY_UPSTREAM_PROBE_SECONDS": "1"}


@pytest.fixture
def proxy(sandbox: SandboxControl, tmp_path: Path) -> Iterator[Stack]:
    with limited_proxy(sandbox, tmp_path, PLANS, environ=GUARDED) as stack:
        yield stack


@pytest.fixture
def alice(proxy: Stack) -> Iterator[Client]:
    with Client(proxy, proxy.token("alice", tenant="acme")) as client:
        yield client


@pytest.fixture
def operator(proxy: Stack) -> Iterator[httpx.Client]:
    with operating(proxy) as client:
        yield client


class Operator:
    """The operator's commands, on the database of a proxy and on the proxy itself."""

    def __init__(self, proxy: Stack, folder: Path, commands: Commands) -> None:
        self._commands = commands
        self._folder = folder
        self._environ = {
            "PROXY_DATABASE_URL": proxy.settings.stores.database_url.reveal(),
            "PROXY_ADMIN_TOKEN": ADMIN_TOKEN,
            "PROXY_PUBLIC_URL": proxy.url,
        }

    def run(self, *arguments: str, **more: str) -> Done:
        return self._commands(*arguments, environ={**self._environ, **more}, cwd=self._folder)

    def read(self, *arguments: str) -> Any:
        done = self.run(*arguments, "--json")
        assert done.code == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def console(proxy: Stack, tmp_path: Path, commands: Commands) -> Operator:
    return Operator(proxy, tmp_path, commands)


# --- one job


def test_a_job_is_shown_with_its_charges_and_its_timeline(
    proxy: Stack, alice: Client, operator: httpx.Client, console: Operator
) -> None:
    id_ = alice.submitted(WAITS, max_tokens=70)
    job = operator.get(f"{JOBS}/{id_}").raise_for_status().json()
    assert (job["request_id"], job["state"], job["upstream"], job["subject"]) == (id_, "accepted", "default", "alice")
    assert job["used"]["tokens"] == 70
    assert [(one["account"], one["unit"], one["reserved"]) for one in job["charges"]] == [
        ("alice", "requests", 1),
        ("", "tokens", 70),
    ]
    assert [one["event"] for one in job["timeline"]] == ["submitted", "checked", "expires"]
    assert operator.get(f"{JOBS}/{job['id']}").json() == job == console.read("jobs", "show", id_)
    assert console.read("jobs", "show", job["id"]) == job


def test_jobs_are_listed_by_whether_they_are_over(alice: Client, operator: httpx.Client, console: Operator) -> None:
    waiting = alice.submitted(WAITS)
    assert alice.run().status_code == 200

    def listed(**query: str) -> list[tuple[str, bool]]:
        jobs = operator.get(JOBS, params={"tenant": "acme", **query}).raise_for_status().json()["jobs"]
        return sorted((job["state"], job["request_id"] == waiting) for job in jobs)

    assert listed() == [("accepted", True), ("settled", False)]
    assert (listed(status="over"), listed(status="open")) == ([("settled", False)], [("accepted", True)])
    for status in ("over", "open"):
        (row,) = console.read("jobs", "list", "--tenant", "acme", "--status", status)
        assert (row["request_id"] == waiting) is (status == "open")
    assert_refused_with(operator.get(JOBS, params={"tenant": "acme", "status": "OPEN"}), 400, "bad_request")
    alice.cancel(waiting)


def test_a_job_that_is_already_summed_up_is_shown_as_settled(
    alice: Client, operator: httpx.Client, tmp_path: Path
) -> None:
    alice.run()
    with closing(sqlite3.connect(tmp_path / "proxy.db")) as database:
        database.execute("UPDATE jobs SET state = 'counted'")
        database.commit()
    (listed,) = operator.get(JOBS, params={"tenant": "acme"}).json()["jobs"]
    shown = operator.get(f"{JOBS}/{listed['id']}").json()
    assert listed["state"] == shown["state"] == "settled"
    assert [one["event"] for one in shown["timeline"]] == ["submitted", "settled"]


def test_the_operator_cancels_a_job(
    alice: Client, operator: httpx.Client, console: Operator, sandbox: SandboxControl
) -> None:
    jobs = [alice.submitted(WAITS) for _ in range(3)]
    own_id = operator.get(f"{JOBS}/{jobs[1]}").json()["id"]
    answer = operator.delete(f"{JOBS}/{jobs[0]}")
    assert (answer.status_code, answer.json()["status"]) == (202, "CANCELLATION_REQUESTED")
    assert operator.delete(f"{JOBS}/{own_id}").status_code == 202
    assert console.run("jobs", "cancel", jobs[2]).stdout == "CANCELLATION_REQUESTED\n"
    for job in jobs:
        wait_until(lambda job=job: alice.status(job).status_code == 200, "the job does not end")
        assert alice.slots() == (0, 0) or job != jobs[-1]
    again = operator.delete(f"{JOBS}/{jobs[0]}")
    assert (again.status_code, again.json()["status"]) == (400, "ALREADY_COMPLETED")
    done = console.run("jobs", "cancel", jobs[0])
    assert done.code == 1 and "(400)" in done.stderr and done.stdout == ""


def test_only_a_job_in_fals_queue_is_cancelled(alice: Client, operator: httpx.Client, sandbox: SandboxControl) -> None:
    alice.run()
    (run,) = operator.get(JOBS, params={"tenant": "acme"}).json()["jobs"]
    sandbox.forget()
    assert "queue" in assert_refused_with(operator.delete(f"{JOBS}/{run['id']}"), 400, "bad_request")["message"]
    assert sandbox.requests() == []


def test_an_unknown_job_is_not_found(operator: httpx.Client, console: Operator) -> None:
    for method in ("GET", "DELETE"):
        assert_refused_with(operator.request(method, f"{JOBS}/unknown"), 404, "not_found")
        assert_refused_with(operator.request(method, f"{JOBS}/no%20id"), 400, "bad_target")
        assert_refused_with(operator.request(method, f"{JOBS}/{'x' * 129}"), 400, "bad_target")
        assert (
            "query key"
            in assert_refused_with(operator.request(method, f"{JOBS}/unknown?a=1"), 400, "bad_request")["message"]
        )
    for command in ("show", "cancel"):
        done = console.run("jobs", command, "no id")
        assert (done.code, done.stderr) == (1, "'no id' is not the id of a job\n")
    assert console.run("jobs", "show", "unknown").stderr == "there is no job unknown\n"
    assert console.run("jobs", "cancel", "unknown").stderr == "the proxy refused (404): There is no such job.\n"


def test_jobs_are_listed_by_a_command(alice: Client, proxy: Stack, console: Operator) -> None:
    first = alice.submitted(WAITS)
    proxy.clock.advance(60)
    alice.run(endpoint=COUNTING)
    rows = console.read("jobs", "list", "--tenant", "acme")
    assert [(one["kind"], one["endpoint"]) for one in rows] == [("run", COUNTING), ("submit", NEXT)]
    for narrow in (["--endpoint", NEXT], ["--subject", "alice", "--endpoint", NEXT]):
        assert console.read("jobs", "list", "--tenant", "acme", *narrow) == rows[1:]
    assert console.read("jobs", "list", "--tenant", "acme", "--limit", "1") == rows[:1]
    assert console.read("jobs", "list", "--tenant", "acme", "--subject", "bob") == []
    since = rows[0]["submitted_at"].replace("+00:00", "Z")
    assert console.read("jobs", "list", "--tenant", "acme", "--since", since) == rows[:1]
    assert f"\t{first}\tsubmit\taccepted\t{NEXT}\talice\n" in console.run("jobs", "list", "--tenant", "acme").stdout
    for wrong, word in (
        (["--tenant", "nobody"], "there is no tenant"),
        (["--tenant", "acme", "--since", "yesterday"], "since"),
        (["--tenant", "acme", "--endpoint", "../x"], "endpoint"),
    ):
        done = console.run("jobs", "list", *wrong)
        assert done.code == 1 and word in done.stderr and done.stdout == ""
    assert console.run("jobs", "list", "--tenant", "acme", "--limit", "10001").code == 2


# --- fal's keys


def read_default(operator: httpx.Client) -> dict[str, Any]:
    answer = operator.get(UPSTREAMS).raise_for_status()
    assert SANDBOX_KEY not in answer.text and SANDBOX_KEY.partition(":")[2] not in answer.text
    (one,) = answer.json()["upstreams"]
    found: dict[str, Any] = one
    assert found.pop("name") == "default"
    return found


def test_a_working_key_is_healthy(alice: Client, operator: httpx.Client) -> None:
    healthy = {"state": "healthy", "closed": [], "waiting": 0, "last_refusal": None, "in_flight": 0}
    assert read_default(operator) == healthy
    job = alice.submitted(WAITS)
    alice.call("POST", "rest/storage/upload/initiate", {"content_type": "image/png", "file_name": "a.png"})
    assert read_default(operator) == {**healthy, "in_flight": 1}
    alice.cancel(job)
    wait_until(lambda: alice.status(job).status_code == 200, "the job does not end")
    assert read_default(operator) == healthy
    assert "query key" in assert_refused_with(operator.get(f"{UPSTREAMS}?a=1"), 400, "bad_request")["message"]


def test_a_failing_endpoint_is_shown(alice: Client, operator: httpx.Client, sandbox: SandboxControl) -> None:
    sandbox.fault("nginx", status=502)
    for _ in range(5):
        alice.run()
    found = read_default(operator)
    assert (found["state"], found["closed"]) == ("degraded", [f"run {NEXT}"])
    assert found["last_refusal"]["reason"] == "server_error"


def test_a_locked_account_is_shown(
    proxy: Stack, alice: Client, operator: httpx.Client, sandbox: SandboxControl, console: Operator
) -> None:
    sandbox.fault("refuse", reason="concurrency_limit", times=1)
    alice.run()
    assert read_default(operator)["last_refusal"]["reason"] == "concurrency_limit"
    proxy.clock.advance(5)
    sandbox.fault("refuse", reason="account_locked")
    alice.run()
    found = read_default(operator)
    assert (found["state"], found["closed"]) == ("unavailable", ["account"])
    assert found["last_refusal"]["reason"] == "account_locked"
    assert console.read("upstreams") == [{"name": "default", **found}]
    line = console.run("upstreams").stdout
    assert line == f"default\tunavailable\taccount\t0\t0\taccount_locked at {found['last_refusal']['at']}\n"


def test_calls_that_wait_to_be_sent_are_counted(proxy: Stack, operator: httpx.Client, sandbox: SandboxControl) -> None:
    sandbox.pace(run_seconds=1.5)
    tokens = [proxy.token(f"user-{number}", tenant="acme") for number in range(MOST_UNCONFIRMED + 3)]

    async def rush() -> None:
        async with http() as session:

            async def call(token: str) -> None:
                headers = {"authorization": f"Bearer {token}"}
                async with session.post(f"{proxy.url}/fal/run/{NEXT}", json=asking("?"), headers=headers) as answer:
                    assert answer.status == 200

            await asyncio.gather(*map(call, tokens))

    with ThreadPoolExecutor(1) as pool:
        calls = pool.submit(asyncio.run, rush())
        wait_until(lambda: read_default(operator)["waiting"] == 3, "no call waits")
        assert read_default(operator)["in_flight"] == MOST_UNCONFIRMED + 3
        calls.result()
    assert read_default(operator)["waiting"] == 0


# --- commands and a proxy that does not answer


def _answering(document: Any) -> Callable[[Request], Response]:
    return lambda request: JSONResponse(document)


def test_an_answer_without_an_end_is_given_up(console: Operator) -> None:
    async def answer(request: Request) -> Response:
        return StreamingResponse(itertools.repeat(b" " * 65536))

    with running(Starlette(routes=[Route("/{path:path}", answer)])) as page:
        assert "does not answer (AnswerTooLong)" in console.run("upstreams", "--url", page).stderr
        done = console.run("doctor", page)
        assert done.code == 1 and "no answer (AnswerTooLong)" in done.stdout


def test_a_command_says_why_it_has_no_answer(console: Operator, proxy: Stack) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    assert "does not answer (ConnectError)" in console.run("upstreams", "--url", nowhere).stderr
    assert console.run("upstreams", "--url", "http://a:b").stderr == "--url: 'http://a:b' is not a URL\n"
    for scheme in ("http", "ftp"):
        refused = console.run("upstreams", "--url", f"{scheme}://alice:canary@127.0.0.1:{free_port()}")
        assert refused.code == 1 and refused.stderr.startswith("--url: has a user or a password; give it without")
        assert "canary" not in refused.stderr + refused.stdout
    with running(Starlette()) as page:
        done = console.run("upstreams", "--url", page)
        assert "does not answer as this proxy does (status 404)" in done.stderr
    for answer in ([1], {"upstream": []}, None):
        with running(Starlette(routes=[Route("/v1/admin/upstreams", _answering(answer))])) as page:
            done = console.run("upstreams", "--url", page)
            assert done.code == 1 and "does not answer as this proxy does (status 200)" in done.stderr
    wrong = console.run("upstreams", PROXY_ADMIN_TOKEN="another-admin-token-of-more-than-32-bytes")
    assert wrong.code == 1 and "(401)" in wrong.stderr and "another-admin" not in wrong.stderr
    missing = console.run("upstreams", PROXY_ADMIN_TOKEN="")
    assert missing.stderr == "PROXY_ADMIN_TOKEN: is not set; set it to that of the running proxy\n"


def test_a_command_asks_the_ops_port(sandbox: SandboxControl, proxy: Stack, console: Operator) -> None:
    port = proxy.url.rpartition(":")[2]
    done = console.run("upstreams", PROXY_PUBLIC_URL="", PROXY_OPS_PORT=port, PROXY_OPS_HOST="0.0.0.0")
    assert done.stdout.startswith("default\thealthy\t"), done.stderr
