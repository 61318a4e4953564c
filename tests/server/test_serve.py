"""`serve`, `dev` and `sandbox` as processes: what they say, what works when pasted, and how they stop."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import yaml

from tests.server.commands import PLAINLY, SECRET, eventually, serving
from tests.server.conftest import PLANS, Desk, Running
from tests.support.sandbox import SandboxControl
from tests.support.servers import free_port
from tests.support.stack import sandbox_environ

pytestmark = pytest.mark.slow

RUN, QUEUE = "/fal/run/fal-ai/llava-next", "/fal/queue/fal-ai/llava-next"
#: A stop by signal ends a process with the signal, as a shell or an orchestrator expects it.
STOPPED = {signal.SIGTERM: (0, -signal.SIGTERM), signal.SIGINT: (0, -signal.SIGINT)}


def client(url: str, token: str) -> httpx.Client:
    headers = {"authorization": f"Bearer {token}"}
    return httpx.Client(base_url=url, headers=headers, **PLAINLY)


def asked(prompt: str) -> dict[str, str]:
    # The sandbox cannot load this, so its answer is 422; the way is the same, and the body small.
    return {"image_url": "data:image/png;base64,AAAA", "prompt": prompt}


def in_background(work: Callable[[], httpx.Response]) -> tuple[threading.Thread, list[httpx.Response]]:
    answers: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: answers.append(work()))
    thread.start()
    return thread, answers


def test_a_stop_finishes_what_runs_and_the_next_start_knows_whose_the_jobs_are(
    sandbox: SandboxControl, desk: Desk
) -> None:
    environ = {**desk.environ, **sandbox_environ(sandbox.url), "PROXY_SESION_SECRETS": "canary-of-a-value"}
    token, other = (desk.data("sessions", "mint", "--tenant", "acme", "--subject", name) for name in ("alice", "bob"))
    with serving("serve", environ=environ, folder=desk.folder) as server, client(server.url, token) as alice:
        # Kubernetes injects variables named after services, so an unknown one cannot stop a start.
        assert "PROXY_SESION_SECRETS: is not a setting; did you mean PROXY_SESSION_SECRETS?" in server.stderr
        job = alice.post(QUEUE, json=asked("?")).json()["request_id"]
        thread, answers = in_background(lambda: alice.post(RUN, json=asked("[[fault delay=1.5]]")))
        eventually(lambda: any(one["host"] == "run" for one in sandbox.requests()), "the run did not start")
        assert server.stop(signal.SIGTERM) in STOPPED[signal.SIGTERM]
        thread.join(timeout=10)
        assert answers[0].status_code == 422 and answers[0].json()["detail"][0]["loc"] == ["body", "image_url"]
        assert "canary" not in server.stderr and SECRET not in server.stderr and "Traceback" not in server.stderr
    with (
        serving("serve", environ=environ, folder=desk.folder) as server,
        client(server.url, token) as alice,
        client(server.url, other) as bob,
    ):
        assert alice.get(f"{QUEUE}/requests/{job}/status").json()["request_id"] == job
        assert bob.get(f"{QUEUE}/requests/{job}/status").status_code == 404


def test_running_calls_that_take_longer_than_the_drain_are_cut(sandbox: SandboxControl, desk: Desk) -> None:
    environ = {**desk.environ, **sandbox_environ(sandbox.url), "PROXY_DRAIN_SECONDS": "1"}
    token = desk.data("sessions", "mint", "--tenant", "acme", "--subject", "alice")
    with serving("serve", environ=environ, folder=desk.folder) as server, client(server.url, token) as alice:

        def run() -> httpx.Response:
            try:
                return alice.post(RUN, json=asked("[[fault delay=60]]"))
            except httpx.RemoteProtocolError:
                return httpx.Response(499)

        thread, answers = in_background(run)
        eventually(lambda: any(one["host"] == "run" for one in sandbox.requests()), "the run did not start")
        assert server.stop(signal.SIGTERM) in STOPPED[signal.SIGTERM]
        thread.join(timeout=10)
        assert answers[0].status_code >= 499


def test_the_log_of_a_server_is_json_lines_without_secrets(beside: Running) -> None:
    token = beside.desk.data("sessions", "mint", "--tenant", "acme", "--subject", "alice")
    with client(beside.server.url, token) as alice:
        done = alice.get(f"/s/{token}/api/fal/proxy", headers={"x-request-id": "log-line-1"})
        assert done.status_code == 400
    eventually(lambda: "log-line-1" in beside.server.stderr, "there is no line")
    (line,) = [line for line in beside.server.stderr.splitlines() if "log-line-1" in line]
    facts = json.loads(line)
    assert (facts["method"], facts["status"], facts["error_type"]) == ("GET", 400, "bad_target")
    assert facts["route"].endswith("/api/fal/proxy") and facts["message"] == "request"
    assert token not in beside.server.stderr


# The sandbox and dev


def test_the_sandbox_prints_settings_that_work(desk: Desk) -> None:
    port = free_port()
    command = ("sandbox", "--port", str(port))
    with serving(*command, environ={}, folder=desk.folder, live_at="/_sandbox/pace", port=port) as server:
        settings = dict(line.split("=", 1) for line in server.stdout.splitlines())
        assert sorted(settings) == ["FAL_CDN_URL", "FAL_KEY", "FAL_QUEUE_URL", "FAL_REST_URL", "FAL_RUN_URL"]
        assert desk.run("check-config", **settings).stdout == "ok\n"
        headers = {"authorization": f"Key {settings['FAL_KEY']}"}
        url = f"{settings['FAL_RUN_URL']}/fal-ai/llava-next"
        assert httpx.post(url, headers=headers, json=asked("?"), **PLAINLY).status_code == 422
        assert server.stop(signal.SIGTERM) in STOPPED[signal.SIGTERM]


@pytest.mark.tools
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "terminate"])
def test_dev_prints_a_page_a_session_and_a_line_that_works_when_pasted(tmp_path: Path, stop: signal.Signals) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with serving("dev", environ={"TMPDIR": str(temporary)}, folder=tmp_path) as server:
        eventually(lambda: "Ctrl-C" in server.stdout, "dev says nothing")
        words = server.stdout
        assert httpx.get(_told(words, "page"), **PLAINLY).headers["content-type"].startswith("text/html")
        with client(server.url, _told(words, "session")) as developer:
            assert developer.get("/v1/session").json()["tenant"] == "demo"
        (line,) = re.findall(r"^  curl .*?'$(?=\n\n)", words, re.MULTILINE | re.DOTALL)
        pasted = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
        assert "16 × 16" in pasted.stdout, pasted
        assert server.stop(stop) in STOPPED[stop]
    assert list(temporary.iterdir()) == [], "the database of the trial outlived it"
    assert "Traceback" not in server.stderr


def _told(words: str, name: str) -> str:
    (value,) = re.findall(rf"^  {name} +(\S+)$", words, re.MULTILINE)
    return str(value)


def test_dev_refuses_settings_that_cannot_be_used(desk: Desk) -> None:
    done = desk.commands("dev", environ={"PROXY_PORT": "none", "FAL_KEY": "an id"}, cwd=desk.folder)
    assert (done.code, done.stdout) == (1, "")
    assert sorted(line.partition(":")[0] for line in done.stderr.splitlines()) == ["FAL_KEY", "PROXY_PORT"]


def test_dev_needs_a_tenant_to_be(desk: Desk) -> None:
    (desk.folder / "plans.yaml").write_text(yaml.safe_dump({"plans": PLANS["plans"]}))
    done = desk.run("dev", FAL_KEY="an-id:a-secret")
    assert (done.code, done.stdout) == (1, "")
    assert done.stderr == "PROXY_CONFIG: names no tenant to try things out as\n"
