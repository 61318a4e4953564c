"""A process with a low limit of open files serves fewer connections, logs that, and keeps no caller out."""

from __future__ import annotations

import json
import resource
import signal
import socket
from contextlib import ExitStack

import httpx

from tests.server.commands import PLAINLY, serving
from tests.server.conftest import Cli
from tests.support.sandbox import SandboxControl
from tests.support.stack import sandbox_environ


def test_silent_connections_do_not_keep_others_out(sandbox: SandboxControl, cli: Cli) -> None:
    environ = {**cli.environ, **sandbox_environ(sandbox.url)}
    with serving("serve", environ=environ, folder=cli.folder, open_files="90") as server, ExitStack() as held:
        port = int(server.url.rpartition(":")[2])
        for number in range(70):
            wire = held.enter_context(socket.create_connection(("127.0.0.1", port)))
            wire.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n" if number % 2 else b"")
        for _ in range(5):
            assert httpx.get(f"{server.url}/readyz", **PLAINLY).status_code == 200
        metrics = httpx.get(f"{server.url}/metrics", **PLAINLY).text
        assert "fal_proxy_connections_evicted_total 0.0" not in metrics
        server.stop(signal.SIGTERM)
    lines = [json.loads(line) for line in server.stderr.splitlines() if line.startswith("{")]
    (warning,) = [line for line in lines if "open files" in line["message"]]
    assert (warning["open_files"], warning["connections"], warning["PROXY_MAX_CONNECTIONS"]) == (90, 13, 12000)


def test_the_limit_is_raised_as_far_as_it_may_be(sandbox: SandboxControl, cli: Cli) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    environ = {**cli.environ, **sandbox_environ(sandbox.url), "PROXY_MAX_CONNECTIONS": "900"}
    with serving("serve", environ=environ, folder=cli.folder, open_files="1024:") as server:
        assert resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE) == (hard, hard)
    assert "open files" not in server.stderr
