"""`serve`, `dev` and `sandbox` as processes: what they say, what works when pasted, and how they stop."""

from __future__ import annotations

import json
import re
import signal
import socket
import stat
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import yaml

from proxy.auth.sessions import Sessions
from proxy.clock import SystemClock
from proxy.settings import Secret
from tests.server.commands import PLAINLY, PROXY, SERVABLE, Server, serving
from tests.server.conftest import PLANS, Cli, Running
from tests.support.sandbox import SandboxControl
from tests.support.secrets import SECRET
from tests.support.servers import free_port
from tests.support.stack import sandbox_environ
from tests.support.waiting import wait_until

RUN, QUEUE = "/fal/run/fal-ai/llava-next", "/fal/queue/fal-ai/llava-next"
#: A stop by signal ends a process with the signal, as a shell or an orchestrator expects it.
STOPPED = {signal.SIGTERM: (0, -signal.SIGTERM), signal.SIGINT: (0, -signal.SIGINT)}


def client(url: str, token: str) -> httpx.Client:
    headers = {"authorization": f"Bearer {token}"}
    return httpx.Client(base_url=url, headers=headers, **PLAINLY)


def question(prompt: str) -> dict[str, str]:
    # The sandbox cannot load this, so its answer is 422; the way is the same, and the body small.
    return {"image_url": "data:image/png;base64,AAAA", "prompt": prompt}


def in_background(work: Callable[[], httpx.Response]) -> tuple[threading.Thread, list[httpx.Response]]:
    answers: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: answers.append(work()))
    thread.start()
    return thread, answers


def test_a_stop_finishes_running_calls_and_the_next_start_knows_the_owners_of_jobs(
    sandbox: SandboxControl, cli: Cli
) -> None:
    environ = {**cli.environ, **sandbox_environ(sandbox.url), "PROXY_SESION_SECRETS": "canary-of-a-value"}
    token, other = (cli.data("sessions", "mint", "--tenant", "acme", "--subject", name) for name in ("alice", "bob"))
    with serving("serve", environ=environ, folder=cli.folder) as server, client(server.url, token) as alice:
        # Kubernetes injects variables named after services, so an unknown one cannot stop a start.
        assert "PROXY_SESION_SECRETS: is not a setting; did you mean PROXY_SESSION_SECRETS?" in server.stderr
        job = alice.post(QUEUE, json=question("?")).json()["request_id"]
        thread, answers = in_background(lambda: alice.post(RUN, json=question("[[fault delay=1.5]]")))
        wait_until(lambda: any(one["host"] == "run" for one in sandbox.requests()), "the run did not start")
        assert server.stop(signal.SIGTERM) in STOPPED[signal.SIGTERM]
        thread.join(timeout=180)
        assert answers[0].status_code == 422 and answers[0].json()["detail"][0]["loc"] == ["body", "image_url"]
        assert "canary" not in server.stderr and SECRET not in server.stderr and "Traceback" not in server.stderr
    with (
        serving("serve", environ=environ, folder=cli.folder) as server,
        client(server.url, token) as alice,
        client(server.url, other) as bob,
    ):
        assert alice.get(f"{QUEUE}/requests/{job}/status").json()["request_id"] == job
        assert bob.get(f"{QUEUE}/requests/{job}/status").status_code == 404


def test_running_calls_that_take_longer_than_the_drain_are_cut(sandbox: SandboxControl, cli: Cli) -> None:
    environ = {**cli.environ, **sandbox_environ(sandbox.url), "PROXY_DRAIN_SECONDS": "1"}
    token = cli.data("sessions", "mint", "--tenant", "acme", "--subject", "alice")
    with serving("serve", environ=environ, folder=cli.folder) as server, client(server.url, token) as alice:

        def run() -> httpx.Response:
            try:
                return alice.post(RUN, json=question("[[fault delay=60]]"))
            except httpx.RemoteProtocolError:
                return httpx.Response(499)

        thread, answers = in_background(run)
        wait_until(lambda: any(one["host"] == "run" for one in sandbox.requests()), "the run did not start")
        assert server.stop(signal.SIGTERM) in STOPPED[signal.SIGTERM]
        thread.join(timeout=180)
        assert answers[0].status_code >= 499


@pytest.mark.parametrize("options", [(), ("--workers", "1")], ids=["plain", "with options"])
def test_ctrl_c_in_a_start_that_waits_for_its_database_shows_no_traceback(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, (tmp_path / "server.err").open("w") as errors:
        url = f"postgresql://fal:secret@127.0.0.1:{silent.getsockname()[1]}/fal"
        environ = {**SERVABLE, "PROXY_DATABASE_URL": url, "PROXY_PORT": str(free_port())}
        # A shell lets what it starts in the background ignore Ctrl+C, and with it all that the tests start.
        command = ["env", "--default-signal=INT", *PROXY, "serve", *options]
        process = subprocess.Popen(command, env=environ, cwd=tmp_path, stderr=errors)
        try:
            silent.settimeout(180)
            connection, _ = silent.accept()
            process.send_signal(signal.SIGINT)
            # It serves already if this comes late.
            assert process.wait() in (128 + signal.SIGINT, *STOPPED[signal.SIGINT])
            connection.close()
        finally:
            process.kill()
    assert "Traceback" not in (tmp_path / "server.err").read_text()


def test_the_log_of_a_server_is_json_lines_without_secrets(beside: Running) -> None:
    token = beside.cli.data("sessions", "mint", "--tenant", "acme", "--subject", "alice")
    with client(beside.server.url, token) as alice:
        done = alice.get(f"/s/{token}/api/fal/proxy", headers={"x-request-id": "log-line-1"})
        assert done.status_code == 400
    wait_until(lambda: "log-line-1" in beside.server.stderr, "there is no line")
    (line,) = [line for line in beside.server.stderr.splitlines() if "log-line-1" in line]
    facts = json.loads(line)
    assert (facts["method"], facts["status"], facts["error_type"]) == ("GET", 400, "bad_target")
    assert facts["route"].endswith("/api/fal/proxy") and facts["message"] == "request"
    assert token not in beside.server.stderr


# The sandbox and dev


def test_the_sandbox_prints_settings_that_work(cli: Cli) -> None:
    port = free_port()
    command = ("sandbox", "--port", str(port))
    with serving(*command, environ={}, folder=cli.folder, live_at="/_sandbox/pace", port=port) as server:
        settings = dict(line.split("=", 1) for line in server.stdout.splitlines())
        hosts = [f"FAL_{name}_URL" for name in ("API", "CDN", "QUEUE", "REST", "RUN")]
        verifiers = [f"PROXY_{kind}_URL" for kind in ("APP_CHECK", "HCAPTCHA", "RECAPTCHA", "TURNSTILE")]
        assert sorted(settings) == sorted([*hosts, "FAL_KEY", "FAL_USAGE_KEY", *verifiers])
        assert cli.run("check-config", **settings).stdout == "ok\n"
        headers = {"authorization": f"Key {settings['FAL_KEY']}"}
        url = f"{settings['FAL_RUN_URL']}/fal-ai/llava-next"
        assert httpx.post(url, headers=headers, json=question("?"), **PLAINLY).status_code == 422
        assert server.stop(signal.SIGTERM) in STOPPED[signal.SIGTERM]


@pytest.mark.tools
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "terminate"])
def test_dev_prints_a_page_a_session_and_a_line_that_works_when_pasted(tmp_path: Path, stop: signal.Signals) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with serving("dev", environ={"TMPDIR": str(temporary)}, folder=tmp_path) as server:
        wait_until(lambda: "Ctrl-C" in server.stdout, "dev says nothing")
        words = server.stdout
        assert httpx.get(_value_of(words, "page"), **PLAINLY).headers["content-type"].startswith("text/html")
        with client(server.url, _value_of(words, "session")) as developer:
            assert developer.get("/v1/session").json()["tenant"] == "demo"
        (line,) = re.findall(r"^  curl .*?'$(?=\n\n)", words, re.MULTILINE | re.DOTALL)
        pasted = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=300)
        assert "16 × 16" in pasted.stdout, pasted
        assert server.stop(stop) in STOPPED[stop]
    assert list(temporary.iterdir()) == [], "the database of the trial outlived it"
    assert "Traceback" not in server.stderr


@pytest.mark.parametrize(("command", "tenant"), [("serve", "default"), ("dev", "demo")])
def test_no_command_logs_a_secret(tmp_path: Path, command: str, tenant: str) -> None:
    """Names of users are logged; here each is called like a secret of the settings."""
    path = tmp_path / "a-database-with-a-name.db"
    database = f"sqlite:///{path}"
    environ = {
        **SERVABLE,
        "PROXY_ADMIN_TOKEN": "an-admin-token-of-the-tests-with-32-bytes",
        "PROXY_DATABASE_URL": database,
    }
    sessions = Sessions((Secret(SECRET),), SystemClock())
    with serving(command, environ=environ, folder=tmp_path) as server:
        for subject in environ.values():
            with client(server.url, sessions.mint(tenant, subject, 60)[0]) as user:
                assert user.get("/v1/session").json()["subject"] == subject
                assert user.post("/v1/uploads").status_code == 400
        # The line is written after the answer.
        wait_until(lambda: server.stderr.count("****") >= len(environ), "no line")
        assert not [secret for secret in environ.values() if secret in server.stderr]
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        server.stop(signal.SIGTERM)


def _value_of(words: str, name: str) -> str:
    (value,) = re.findall(rf"^  {name} +(\S+)$", words, re.MULTILINE)
    return str(value)


def has_a_key(sandbox: SandboxControl) -> dict[str, str]:
    """Settings with a key and a fal of its own, for which `dev` assumes that calls cost money."""
    return sandbox_environ(sandbox.url)


def ask_as_guest(server: Server) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/sessions/guest", headers={"origin": server.url}, json={}, **PLAINLY)


def test_dev_with_a_key_takes_no_guests_and_has_a_quota(sandbox: SandboxControl, tmp_path: Path) -> None:
    with serving("dev", environ=has_a_key(sandbox), folder=tmp_path) as server:
        wait_until(lambda: "Ctrl-C" in server.stdout, "dev says nothing")
        words = server.stdout
        assert "in front of fal." in words and "at most 100 requests a day" in words
        assert "Guests are off" in words and "--guests" in words
        refused = ask_as_guest(server)
        assert (refused.status_code, refused.json()["error_type"]) == (403, "origin_not_allowed")
        with client(server.url, _value_of(words, "session")) as developer:
            (quota,) = developer.get("/v1/session").json()["quotas"]
            expected = {"per": "tenant", "unit": "requests", "window": "day", "limit": 100}
            assert {name: quota[name] for name in expected} == expected
            assert developer.post(RUN, json=question("?")).status_code == 422
    assert any(one["host"] == "run" for one in sandbox.requests())


def test_dev_with_a_key_takes_guests_if_asked(sandbox: SandboxControl, tmp_path: Path) -> None:
    with serving("dev", "--guests", environ=has_a_key(sandbox), folder=tmp_path) as server:
        wait_until(lambda: "Ctrl-C" in server.stdout, "dev says nothing")
        assert "Guests may call from the page." in server.stdout
        token = ask_as_guest(server).json()["token"]
        with client(server.url, token) as guest:
            quotas = guest.get("/v1/session").json()["quotas"]
        assert {"per": "tenant", "unit": "requests", "limit": 100}.items() <= quotas[-1].items()


def test_dev_wants_work_of_guests_if_asked(tmp_path: Path) -> None:
    page = "http://localhost:5173"
    environ = {"PROXY_ALLOWED_ORIGINS": page}
    with serving("dev", "--proof-of-work", environ=environ, folder=tmp_path) as server:
        assert ask_as_guest(server).json()["error_type"] == "proof_required"
        answer = httpx.get(f"{server.url}/v1/sessions/challenge", headers={"origin": page}, **PLAINLY)
        assert answer.json()["parameters"]["data"] == {"tenant": "demo", "origin": page}


def test_dev_without_a_key_takes_guests_and_has_no_quota(tmp_path: Path) -> None:
    with serving(
        "dev", environ={"PROXY_HOST": "0.0.0.0", "PROXY_PUBLIC_URL": "http://ai.test"}, folder=tmp_path
    ) as server:
        wait_until(lambda: "Ctrl-C" in server.stdout, "dev says nothing")
        assert "Guests" not in server.stdout and "at most" not in server.stdout
        answer = httpx.post(f"{server.url}/v1/sessions/guest", headers={"origin": "http://ai.test"}, json={}, **PLAINLY)
        with client(server.url, answer.json()["token"]) as guest:
            assert guest.get("/v1/session").json()["quotas"] == []


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7", "dev.example"])
def test_dev_with_a_key_listens_on_loopback_only(sandbox: SandboxControl, cli: Cli, host: str) -> None:
    # The sandbox has that port: a command that did not refuse would end all the same, with other words.
    port = sandbox.url.rpartition(":")[2]
    environ = {**has_a_key(sandbox), "PROXY_HOST": host, "PROXY_PORT": port}
    for more in ({}, {"PROXY_CONFIG": cli.environ["PROXY_CONFIG"]}):
        done = cli.commands("dev", environ={**environ, **more}, cwd=cli.folder)
        assert (done.code, done.stdout) == (1, "")
        assert done.stderr.startswith(f"PROXY_HOST: others can reach {host}") and "--yes-expose" in done.stderr


def test_dev_with_a_key_can_be_exposed_on_purpose(sandbox: SandboxControl, tmp_path: Path) -> None:
    environ = {**has_a_key(sandbox), "PROXY_HOST": "0.0.0.0"}
    with serving("dev", "--yes-expose", environ=environ, folder=tmp_path) as server:
        wait_until(lambda: "in front of fal." in server.stdout, "dev says nothing")


def test_dev_refuses_settings_that_cannot_be_used(cli: Cli) -> None:
    done = cli.commands("dev", environ={"PROXY_PORT": "none", "FAL_KEY": "an id"}, cwd=cli.folder)
    assert (done.code, done.stdout) == (1, "")
    assert sorted(line.partition(":")[0] for line in done.stderr.splitlines()) == ["FAL_KEY", "PROXY_PORT"]


def test_dev_needs_a_tenant_to_be(cli: Cli) -> None:
    (cli.folder / "plans.yaml").write_text(yaml.safe_dump({"plans": PLANS["plans"]}))
    done = cli.run("dev", FAL_KEY="an-id:a-secret")
    assert (done.code, done.stdout) == (1, "")
    assert done.stderr == "PROXY_CONFIG: names no tenant to try things out as\n"
