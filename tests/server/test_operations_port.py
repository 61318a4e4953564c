"""With `PROXY_OPS_PORT`, what is for operators is served there and nowhere else; without it, nothing changes."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import httpx
import pytest

from tests.deploy.charts import VALUES_FILES, render, the
from tests.server.commands import PLAINLY, Commands, Server, serving
from tests.server.conftest import Cli, cli_in
from tests.server.listening import read_to_end, refusal
from tests.support.images import PIXEL
from tests.support.redis import Redis
from tests.support.sandbox import SandboxControl
from tests.support.servers import free_port
from tests.support.stack import sandbox_environ
from tests.support.waiting import wait_until

ADMIN_TOKEN = "an-admin-token-of-the-tests-with-more-than-32-bytes"
AS_ADMIN = {"authorization": f"Bearer {ADMIN_TOKEN}"}
OPERATORS = ("/metrics", "/readyz", "/v1/admin/tenants", "/console/sign-in")
CALLERS = ("/v1/session", "/v1/endpoints", "/openapi.json", "/api/fal/proxy", "/fal/run/fal-ai/llava-next")


@dataclass
class TwoListeners:
    server: Server
    operations: str

    def ask(self, base: str, path: str, method: str = "GET") -> httpx.Response:
        return httpx.request(method, base + path, headers=AS_ADMIN, **PLAINLY)


@contextmanager
def two_listeners(sandbox: SandboxControl, cli: Cli, **more: str) -> Iterator[TwoListeners]:
    port = free_port()
    environ = {
        **cli.environ,
        **sandbox_environ(sandbox.url),
        "PROXY_OPS_PORT": str(port),
        "PROXY_ADMIN_TOKEN": ADMIN_TOKEN,
        **more,
    }
    with serving("serve", environ=environ, folder=cli.folder) as server:
        yield TwoListeners(server, f"http://127.0.0.1:{port}")


@pytest.fixture(scope="module")
def both(
    shared_sandbox: SandboxControl, commands: Commands, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TwoListeners]:
    cli = cli_in(tmp_path_factory.mktemp("operations"), commands)
    with two_listeners(shared_sandbox, cli, PROXY_HEAD_SECONDS="1", PROXY_MAX_CONNECTIONS_PER_ADDRESS="3") as found:
        yield found


@pytest.mark.parametrize("path", OPERATORS)
def test_routes_for_operators_are_on_their_port_and_not_on_the_public_one(both: TwoListeners, path: str) -> None:
    assert both.ask(both.operations, path).status_code == 200
    for method in ("GET", "POST", "OPTIONS"):
        answer = both.ask(both.server.url, path, method)
        assert (answer.status_code, answer.json()["error_type"]) == (404, "not_found")


@pytest.mark.parametrize("path", CALLERS)
def test_routes_for_callers_are_not_on_the_port_of_operators(both: TwoListeners, path: str) -> None:
    answer = both.ask(both.operations, path)
    assert (answer.status_code, answer.json()["error_type"]) == (404, "not_found")
    assert answer.headers["x-request-id"] == answer.json()["request_id"]
    assert both.ask(both.server.url, path).json().get("detail") != answer.json()["detail"]


def test_both_ports_answer_livez(both: TwoListeners) -> None:
    for base in (both.server.url, both.operations):
        assert both.ask(base, "/livez").json() == {"status": "ok"}


def test_a_wrong_method_is_405_on_the_port_of_operators(both: TwoListeners) -> None:
    answer = both.ask(both.operations, "/metrics", "DELETE")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")


def test_no_credential_of_a_caller_opens_the_port_of_operators(both: TwoListeners) -> None:
    answer = httpx.get(f"{both.operations}/v1/admin/tenants", headers={"authorization": "Bearer x"}, **PLAINLY)
    assert (answer.status_code, answer.json()["error_type"]) == (401, "unauthenticated")


def test_the_port_of_operators_has_deadlines_too(both: TwoListeners) -> None:
    with socket.create_connection(("127.0.0.1", int(both.operations.rpartition(":")[2])), 60) as wire:
        wire.sendall(b"GET /livez HTTP/1.1\r\nhost: ser")
        assert refusal(read_to_end(wire)) == (408, "request_timeout")


def test_operators_are_let_in_while_callers_are_too_many(both: TwoListeners) -> None:
    address = ("127.0.0.1", int(both.server.url.rpartition(":")[2]))
    with ExitStack() as held:
        for _ in range(3):
            held.enter_context(socket.create_connection(address, 60))
        wait_until(lambda: both.ask(both.server.url, "/livez").status_code == 503, "callers are let in")
        metrics = both.ask(both.operations, "/metrics")
    assert metrics.status_code == 200
    assert 'fal_proxy_connections_refused_total{limit="address"}' in metrics.text


@pytest.mark.tools
def test_helm_test_passes_here_and_fails_where_operations_are_public(both: TwoListeners) -> None:
    """The script of the chart's test pod, sent to this server instead of to its Services."""
    (pod,) = the(render(VALUES_FILES[0]), "Pod")["spec"]["containers"]
    script, *lines = pod["args"]

    def check(public: str, operators: str) -> subprocess.CompletedProcess[str]:
        addresses = {"http://demo-fal-proxy-ops:9090": operators, "http://demo-fal-proxy:80": public}
        asked = [line.replace(name, base) for line in lines for name, base in addresses.items() if name in line]
        assert len(asked) == 4
        return subprocess.run([sys.executable, "-c", script, *asked], capture_output=True, text=True, timeout=300)

    done = check(both.server.url, both.operations)
    assert done.returncode == 0 and done.stdout.count(" 200\n") == 3, done.stderr
    done = check(both.operations, both.operations)
    assert done.returncode != 0 and "/metrics answered 200 instead of 404" in done.stderr
    done = check(both.server.url, both.server.url)
    assert done.returncode != 0 and "/readyz answered 404 instead of 200" in done.stderr


def test_wrong_settings_of_the_port_are_named(cli: Cli) -> None:
    done = cli.run("check-config", PROXY_PORT="8787", PROXY_OPS_PORT="8787", FAL_KEY="id:secret")
    assert done.code == 1 and "PROXY_OPS_PORT: is the same as PROXY_PORT" in done.stderr
    done = cli.run("check-config", PROXY_OPS_HOST="127.0.0.1", FAL_KEY="id:secret")
    assert done.code == 1 and "PROXY_OPS_HOST: means nothing without PROXY_OPS_PORT" in done.stderr


def test_an_address_that_is_taken_stops_the_start_with_its_name(cli: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = cli.run("serve", PROXY_PORT=str(free_port()), PROXY_OPS_PORT=port, FAL_KEY="id:secret")
    assert done.code != 0 and "PROXY_OPS_PORT" in done.stderr and "Traceback" not in done.stderr


def test_operators_see_the_server_drain(sandbox: SandboxControl, cli: Cli) -> None:
    token = cli.data("sessions", "mint", "--tenant", "acme", "--subject", "alice")
    with two_listeners(sandbox, cli, PROXY_DRAIN_SECONDS="600") as found:
        port = int(found.server.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), 60) as wire:
            body = json.dumps({"image_url": PIXEL, "prompt": "[[pace hold=IN_PROGRESS]]"}).encode()
            head = "POST /fal/run/fal-ai/llava-next HTTP/1.1\r\nhost: proxy\r\nauthorization: Bearer {}\r\n"
            head += "content-type: application/json\r\ncontent-length: {}\r\n\r\n"
            known = len(sandbox.jobs())
            wire.sendall(head.format(token, len(body)).encode() + body)
            wait_until(lambda: len(sandbox.jobs()) > known, "the run did not start")
            found.server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: found.ask(found.operations, "/readyz").status_code == 503, "it does not drain")
            assert found.ask(found.operations, "/readyz").json()["error_type"] == "draining"
            sandbox.move_job(sandbox.jobs()[-1]["id"], "COMPLETED")
            assert read_to_end(wire).startswith(b"HTTP/1.1 200 ")
        assert found.server.process.wait(60) in (0, -signal.SIGTERM)


@pytest.mark.tools
def test_several_workers_share_the_port_of_operators(sandbox: SandboxControl, cli: Cli, redis: Redis) -> None:
    with two_listeners(sandbox, cli, PROXY_WORKERS="2", PROXY_REDIS_URL=redis.url) as found:
        for _ in range(20):
            assert [found.ask(found.operations, path).status_code for path in OPERATORS] == [200] * len(OPERATORS)
            assert [found.ask(found.server.url, path).status_code for path in OPERATORS] == [404] * len(OPERATORS)
        assert found.server.stop(signal.SIGTERM) == 0
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", int(found.operations.rpartition(":")[2])), 1)
