"""SIGHUP: plans, tenants and secrets are read again while calls go on; a mistake changes nothing and ends nothing."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from proxy.sandbox.app import SANDBOX_ADMIN_KEY, SANDBOX_KEY
from tests.server.commands import PLAINLY, PROXY, Commands, Server, serving
from tests.server.conftest import PLANS, Cli, cli_in
from tests.support.audit_log import read_entries
from tests.support.images import PIXEL
from tests.support.redis import Redis
from tests.support.sandbox import SandboxControl
from tests.support.secrets import SECRET
from tests.support.servers import free_port
from tests.support.stack import sandbox_environ
from tests.support.waiting import wait_until

RUN, QUEUE = "/fal/run/fal-ai/llava-next", "/fal/queue/fal-ai/llava-next"
INPUT = {"image_url": PIXEL, "prompt": "What is it?"}
HELD = {"image_url": PIXEL, "prompt": "[[pace hold=IN_PROGRESS]]"}
OTHER_SECRET = "another-secret-of-the-tests-with-more-than-32-bytes"
ADMIN_TOKENS = ("an-admin-token-of-the-tests-with-32-bytes", "another-admin-token-of-the-tests-32-bytes")
WRONG_KEY = "a-key-id-that-was:a-key-secret-that-fal-does-not-know"
FILES = {
    "FAL_KEY": SANDBOX_KEY,
    "FAL_USAGE_KEY": SANDBOX_ADMIN_KEY,
    "PROXY_SESSION_SECRETS": SECRET,
    "PROXY_ADMIN_TOKEN": ADMIN_TOKENS[0],
}


@dataclass
class Reloadable:
    """A server whose secrets are in files, and what its operator does to it."""

    cli: Cli
    server: Server
    reloads: int = 0
    processes: int = 1
    clients: list[httpx.Client] = field(default_factory=list)

    def write(self, name: str, text: str) -> None:
        (self.cli.folder / name).write_text(text)

    def write_plans(self, document: dict[str, Any]) -> None:
        self.write("plans.yaml", yaml.safe_dump(document))

    def reload(self) -> None:
        """Ask for a reload, and wait until each process has applied it."""
        self.reloads += self.processes
        self.server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: self.server.stderr.count("configuration reloaded") == self.reloads, "it is not reloaded")

    def reload_in_vain(self, problem: str) -> None:
        """Ask for a reload, and wait until the problem is in the log."""
        known = self.server.stderr.count(problem)
        self.server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: self.server.stderr.count(problem) > known, f"not in the log: {problem}")
        assert self.server.stderr.count("configuration reloaded") == self.reloads

    def caller(self, secret: str = SECRET) -> httpx.Client:
        mint = ("sessions", "mint", "--tenant", "acme", "--subject", "alice")
        token = self.cli.run(*mint, PROXY_SESSION_SECRETS=secret).stdout.strip()
        headers = {"authorization": f"Bearer {token}"}
        self.clients.append(httpx.Client(base_url=self.server.url, headers=headers, **PLAINLY))
        return self.clients[-1]

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.clients.clear()

    def admin(self, token: str) -> int:
        headers = {"authorization": f"Bearer {token}"}
        return httpx.get(f"{self.server.url}/v1/admin/tenants", headers=headers, **PLAINLY).status_code


def endpoints(caller: httpx.Client) -> list[str]:
    return [one["id"] for one in caller.get("/v1/endpoints").raise_for_status().json()["endpoints"]]


def environ_of(cli: Cli, sandbox: SandboxControl) -> dict[str, str]:
    """The environment of the command line, with its secrets in files."""
    for name, text in FILES.items():
        (cli.folder / name).write_text(text)
    # Longer than a test: a breaker that is open stays open.
    environ = {**cli.environ, **sandbox_environ(sandbox.url), "PROXY_UPSTREAM_PROBE_SECONDS": "15"}
    given = {name: value for name, value in environ.items() if name not in FILES}
    return {**given, **{f"{name}_FILE": str(cli.folder / name) for name in FILES}}


@pytest.fixture(scope="module")
def shared(
    shared_sandbox: SandboxControl, commands: Commands, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Reloadable]:
    cli = cli_in(tmp_path_factory.mktemp("reload"), commands)
    with serving("serve", environ=environ_of(cli, shared_sandbox), folder=cli.folder) as server:
        yield Reloadable(cli, server)


@pytest.fixture
def reloadable(shared: Reloadable, sandbox: SandboxControl) -> Iterator[Reloadable]:
    """The server, with the configuration that it was started with."""
    yield shared
    shared.close()
    shared.write_plans(PLANS)
    for name, text in FILES.items():
        shared.write(name, text)
    shared.reload()


def test_plans_and_tenants_are_applied(reloadable: Reloadable) -> None:
    caller = reloadable.caller()
    assert endpoints(caller) == ["fal-ai/llava-next", "fal-ai/llavav15-13b"]
    narrow = PLANS["plans"]["narrow"]
    tenants = [{"id": "acme", "plan": "full"}, {"id": "fresh", "plan": "full"}]
    reloadable.write_plans({"plans": {"full": narrow, "narrow": narrow}, "tenants": tenants})
    reloadable.reload()
    assert endpoints(caller) == ["fal-ai/llava-next"]
    assert "fresh" in reloadable.cli.data("tenants", "list")
    line = [one for one in reloadable.server.stderr.splitlines() if "configuration reloaded" in one][-1]
    assert '"plans":"changed"' in line and '"secrets":"unchanged"' in line


def test_endpoints_of_the_file_are_known_at_once(reloadable: Reloadable) -> None:
    caller = reloadable.caller()
    assert caller.get("/fal/queue/acme/own/requests/unknown/status").json()["error_type"] == "endpoint_not_allowed"
    reloadable.write("own.json", '{"type": "object", "required": ["prompt"]}')
    plan = {**PLANS["plans"]["full"], "endpoints": ["fal-ai/llava-next", "acme/own"]}
    more = {"endpoints": [{"id": "acme/own", "schema": "own.json"}]}
    reloadable.write_plans({**PLANS, "plans": {**PLANS["plans"], "full": plan}, **more})
    reloadable.reload()
    assert endpoints(caller) == ["acme/own", "fal-ai/llava-next"]
    assert caller.post("/fal/queue/acme/own", json={}).json()["error_type"] == "invalid_input"
    # The endpoint is open now, and only the job is unknown.
    assert caller.get("/fal/queue/acme/own/requests/unknown/status").json()["error_type"] == "not_found"


def test_a_mistake_is_named_and_changes_nothing(reloadable: Reloadable) -> None:
    caller = reloadable.caller()
    reloadable.write_plans({"plans": {"full": {"endpoints": ["fal-ai/llava-nxt"]}}, "tenants": []})
    reloadable.write("PROXY_SESSION_SECRETS", "short")
    reloadable.write("PROXY_ADMIN_TOKEN", ADMIN_TOKENS[1])
    reloadable.reload_in_vain("did you mean fal-ai/llava-next?")
    assert "PROXY_SESSION_SECRETS: a secret has fewer than 32 bytes" in reloadable.server.stderr
    assert caller.post(RUN, json=INPUT).status_code == 200
    assert endpoints(caller) == ["fal-ai/llava-next", "fal-ai/llavav15-13b"]
    assert [reloadable.admin(token) for token in ADMIN_TOKENS] == [200, 401]
    metrics = httpx.get(f"{reloadable.server.url}/metrics", **PLAINLY).text
    assert 'fal_proxy_config_reloads_total{outcome="refused"}' in metrics


@pytest.mark.parametrize("text", [None, "plans: [", ""], ids=["gone", "no-yaml", "empty"])
def test_a_missing_or_half_written_plan_file_is_refused(reloadable: Reloadable, text: str | None) -> None:
    path = reloadable.cli.folder / "plans.yaml"
    path.unlink() if text is None else path.write_text(text)
    reloadable.reload_in_vain("PROXY_CONFIG: ")
    assert reloadable.caller().post(RUN, json=INPUT).status_code == 200


def count_refusals(reloadable: Reloadable) -> int:
    return reloadable.server.stderr.count("configuration not reloaded")


@pytest.mark.parametrize("make", [None, Path.mkdir, os.mkfifo], ids=["nothing", "folder", "pipe"])
def test_what_is_no_plan_file_is_named_once(reloadable: Reloadable, make: Callable[[Path], None] | None) -> None:
    """A pipe that nothing writes to keeps no later reload waiting."""
    path, before = reloadable.cli.folder / "plans.yaml", count_refusals(reloadable)
    path.unlink()
    if make is not None:
        make(path)
    reloadable.reload_in_vain("PROXY_CONFIG: ")
    path.rmdir() if make is Path.mkdir else path.unlink(missing_ok=True)
    reloadable.write_plans(PLANS)
    reloadable.reload()
    assert count_refusals(reloadable) == before + 1


def test_the_key_of_fal_is_replaced(reloadable: Reloadable) -> None:
    caller = reloadable.caller()
    reloadable.write("FAL_KEY", WRONG_KEY)
    reloadable.reload()
    assert caller.post(RUN, json=INPUT).json()["error_type"] == "upstream_rejected_key"
    reloadable.write("FAL_KEY", SANDBOX_KEY)
    reloadable.reload()
    assert caller.post(RUN, json=INPUT).status_code == 200
    assert WRONG_KEY not in reloadable.server.stderr and WRONG_KEY.partition(":")[2] not in reloadable.server.stderr


def test_a_lock_of_the_old_keys_account_does_not_hold_for_the_new_key(
    reloadable: Reloadable, sandbox: SandboxControl
) -> None:
    caller = reloadable.caller()
    sandbox.fault("refuse", reason="account_locked")
    assert caller.post(RUN, json=INPUT).json()["error_type"] == "upstream_account_locked"
    sandbox.clear_faults()
    sandbox.forget()
    assert caller.post(RUN, json=INPUT).json()["error_type"] == "upstream_account_locked"
    assert not sandbox.requests()
    reloadable.write("FAL_KEY", WRONG_KEY)
    reloadable.reload()
    assert caller.post(RUN, json=INPUT).json()["error_type"] == "upstream_rejected_key"


def test_session_secrets_are_rotated_and_dropped(reloadable: Reloadable) -> None:
    caller = reloadable.caller()
    job = caller.post(QUEUE, json=HELD).raise_for_status().json()["request_id"]
    poll = f"{QUEUE}/requests/{job}/status"
    # From the second poll on the answer comes from memory, for as long as the session lasts.
    assert [caller.get(poll).status_code for _ in range(3)] == [202] * 3
    reloadable.write("PROXY_SESSION_SECRETS", f"{OTHER_SECRET},{SECRET}")
    reloadable.reload()
    assert [caller.get(poll).status_code for _ in range(3)] == [202] * 3
    reloadable.write("PROXY_SESSION_SECRETS", OTHER_SECRET)
    reloadable.reload()
    assert caller.get(poll).json()["error_type"] == "unauthenticated"
    assert reloadable.caller(OTHER_SECRET).get(poll).status_code == 202


def test_streams_end_with_the_secret_of_their_session(reloadable: Reloadable, sandbox: SandboxControl) -> None:
    reloadable.write("PROXY_SESSION_SECRETS", f"{OTHER_SECRET},{SECRET}")
    reloadable.reload()
    old, new = reloadable.caller(), reloadable.caller(OTHER_SECRET)
    job = old.post("/v1/jobs", json={"endpoint": "fal-ai/llava-next", "input": HELD}).raise_for_status().json()["id"]
    with old.stream("GET", f"/v1/jobs/{job}/events") as ends, new.stream("GET", f"/v1/jobs/{job}/events") as stays:
        assert (ends.status_code, stays.status_code) == (200, 200)
        lines, others = ends.iter_lines(), stays.iter_lines()
        next(lines), next(others)
        reloadable.write("PROXY_SESSION_SECRETS", OTHER_SECRET)
        reloadable.reload()
        # A stream that stays open sends comments for as long as the job runs.
        shown = itertools.takewhile(lambda line: line != ": ping", lines)
        assert any('"error_type":"unauthenticated"' in line for line in shown)
        sandbox.move_job(sandbox.jobs()[-1]["id"], "COMPLETED")
        assert not any("unauthenticated" in line for line in others)


def test_the_admin_token_is_replaced(reloadable: Reloadable) -> None:
    reloadable.write("PROXY_ADMIN_TOKEN", ADMIN_TOKENS[1])
    reloadable.reload()
    assert [reloadable.admin(token) for token in ADMIN_TOKENS] == [401, 200]
    entry = read_entries(reloadable.cli.environ["PROXY_DATABASE_URL"])[-1]
    assert [entry[name] for name in ("by", "action", "target")] == [
        "server:reload",
        "secret.replace",
        "PROXY_ADMIN_TOKEN",
    ]
    assert entry["before"] is None and entry["after"] is None


def test_the_key_for_fals_usage_is_replaced(reloadable: Reloadable) -> None:
    def compare() -> int:
        headers = {"authorization": f"Bearer {ADMIN_TOKENS[0]}"}
        return httpx.get(f"{reloadable.server.url}/v1/admin/reconciliation", headers=headers, **PLAINLY).status_code

    assert compare() == 200
    for key, status in ((WRONG_KEY, 500), ("", 400), (SANDBOX_ADMIN_KEY, 200)):
        reloadable.write("FAL_USAGE_KEY", key)
        reloadable.reload()
        assert compare() == status


def test_many_hangups_are_not_lost_and_end_nothing(reloadable: Reloadable) -> None:
    caller = reloadable.caller()
    for _ in range(100):
        os.kill(reloadable.server.process.pid, signal.SIGHUP)
    reloadable.write("PROXY_ADMIN_TOKEN", ADMIN_TOKENS[1])
    os.kill(reloadable.server.process.pid, signal.SIGHUP)
    wait_until(lambda: reloadable.admin(ADMIN_TOKENS[1]) == 200, "the last one was lost")
    assert caller.post(RUN, json=INPUT).status_code == 200
    wait_until(_is_still(reloadable), "it reloads for ever")
    reloadable.reloads = reloadable.server.stderr.count("configuration reloaded")


def _is_still(reloadable: Reloadable) -> Any:
    counts = [-1, 0]

    def is_still() -> bool:
        counts[:] = [counts[1], reloadable.server.stderr.count("configuration reloaded")]
        return counts[0] == counts[1]

    return is_still


def test_a_hangup_during_the_start_waits(sandbox: SandboxControl, cli: Cli) -> None:
    environ = {**environ_of(cli, sandbox), "PROXY_PORT": str(free_port()), "PATH": os.environ["PATH"]}
    log = cli.folder / "log"
    with log.open("wb") as out, subprocess.Popen([*PROXY, "serve"], env=environ, stderr=out) as process:
        wait_until(lambda: "Started server process" in log.read_text(), "it does not start")
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: "configuration reloaded" in log.read_text() or process.poll(), "it was lost")
        process.terminate()
        assert process.wait(timeout=180) == -signal.SIGTERM, log.read_text()


def test_a_changed_database_needs_a_restart(sandbox: SandboxControl, cli: Cli) -> None:
    environ = environ_of(cli, sandbox)
    path = cli.folder / "database-url"
    path.write_text(environ.pop("PROXY_DATABASE_URL"))
    with serving("serve", environ={**environ, "PROXY_DATABASE_URL_FILE": str(path)}, folder=cli.folder) as server:
        path.write_text(f"sqlite:///{cli.folder}/other.db")
        reloadable = Reloadable(cli, server)
        reloadable.reload()
        assert "a changed setting needs a restart" in server.stderr and "PROXY_DATABASE_URL" in server.stderr
        assert not Path(f"{cli.folder}/other.db").exists()
        assert reloadable.caller().post(RUN, json=INPUT).status_code == 200
        reloadable.close()


@pytest.mark.tools
def test_several_workers_reload_together(sandbox: SandboxControl, cli: Cli, redis: Redis) -> None:
    environ = {**environ_of(cli, sandbox), "PROXY_WORKERS": "2", "PROXY_REDIS_URL": redis.url}
    with serving("serve", environ=environ, folder=cli.folder) as server:
        wait_until(lambda: server.stderr.count("Started server process") == 2, "a worker does not start")
        reloadable = Reloadable(cli, server, processes=2)
        reloadable.write("PROXY_ADMIN_TOKEN", ADMIN_TOKENS[1])
        reloadable.reload()
        # Each request has a connection of its own, so that both workers are asked.
        assert {reloadable.admin(ADMIN_TOKENS[1]) for _ in range(30)} == {200}
        assert server.stop(signal.SIGTERM) == 0
