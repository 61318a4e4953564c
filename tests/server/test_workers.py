"""Several workers: one that dies is replaced, the others go on, and none outlives its supervisor."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from tests.server.commands import PLAINLY, PROXY, Server, serving
from tests.server.conftest import Cli
from tests.support.images import PIXEL
from tests.support.programs import tree
from tests.support.redis import Redis
from tests.support.sandbox import SandboxControl
from tests.support.servers import free_port
from tests.support.stack import sandbox_environ
from tests.support.waiting import wait_until

pytestmark = pytest.mark.tools

ROOT = Path(__file__).parents[2]
#: uvicorn's own, of its supervisor.
HEALTHCHECK_SECONDS = 5
RUN = "/fal/run/fal-ai/llava-next"
HELD = {"image_url": PIXEL, "prompt": "[[pace hold=IN_PROGRESS]]"}


@contextmanager
def two_workers(
    sandbox: SandboxControl, cli: Cli, redis: Redis, *, live_at: str = "/readyz", **environ: str
) -> Iterator[Server]:
    more = {**sandbox_environ(sandbox.url), "PROXY_WORKERS": "2", "PROXY_REDIS_URL": redis.url, **environ}
    with serving("serve", environ={**cli.environ, **more}, folder=cli.folder, live_at=live_at) as server:
        processes: set[int] = set()
        try:
            wait_until(lambda: len(workers_of(server)) == 2, "the workers do not start")
            # They serve: from here on a worker that cannot start is no reason to end.
            wait_until(lambda: server.stderr.count("Started server process") == 2, "a worker does not serve")
            processes |= {*tree(server.process.pid)}
            yield server
        finally:
            processes |= {*tree(server.process.pid)} if server.process.poll() is None else set()
            for pid in processes:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def workers_of(server: Server) -> list[int]:
    """The processes that serve, without those that help them."""
    return [pid for pid in tree(server.process.pid)[1:] if b"spawn_main" in command_of(pid)]


def command_of(pid: int) -> bytes:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def is_alive(pid: int) -> bool:
    # What has ended, and is not waited for yet, has no command.
    return command_of(pid) != b""


def is_live(server: Server) -> bool:
    return httpx.get(f"{server.url}/livez", **PLAINLY).status_code == 200


def test_workers_may_take_their_time_to_start(sandbox: SandboxControl, cli: Cli, redis: Redis, tmp_path: Path) -> None:
    """On a busy machine a process imports the program for longer than a worker that serves may take for an answer."""
    slow = (
        f"import sys, time\nif '--multiprocessing-fork' in sys.orig_argv:\n    time.sleep({3 * HEALTHCHECK_SECONDS})\n"
    )
    (tmp_path / "sitecustomize.py").write_text(slow)
    with two_workers(sandbox, cli, redis, live_at="/livez", PYTHONPATH=f"{tmp_path}:{ROOT}") as server:
        wait_until(lambda: is_live(server), "it does not serve")
        assert "worker died" not in server.stderr
        assert server.stop(signal.SIGTERM) == 0


def test_a_worker_that_dies_is_replaced(sandbox: SandboxControl, cli: Cli, redis: Redis) -> None:
    with two_workers(sandbox, cli, redis) as server:
        first, other = workers_of(server)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: len(workers_of(server)) == 2 and first not in workers_of(server), "nothing takes its place")
        assert other in workers_of(server)
        assert server.stop(signal.SIGTERM) == 0


def test_hangups_do_not_reach_a_worker_before_it_heeds_them(sandbox: SandboxControl, cli: Cli, redis: Redis) -> None:
    with two_workers(sandbox, cli, redis) as server:
        first, other = workers_of(server)
        os.kill(first, signal.SIGKILL)

        def is_replaced() -> bool:
            server.process.send_signal(signal.SIGHUP)
            return server.stderr.count("Started server process") == 3

        wait_until(is_replaced, "nothing takes its place")
        replacement = next(pid for pid in workers_of(server) if pid not in (first, other))
        known = server.stderr.count("configuration reloaded")
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: server.stderr.count("configuration reloaded") >= known + 2, "they do not reload")
        assert set(workers_of(server)) == {other, replacement}
        assert server.stderr.count("worker died") == 1, server.stderr


def test_a_worker_whose_configuration_broke_is_tried_again(sandbox: SandboxControl, cli: Cli, redis: Redis) -> None:
    plans = cli.folder / "plans.yaml"
    text = plans.read_text()
    with two_workers(sandbox, cli, redis) as server:
        first, other = workers_of(server)
        plans.write_text("plans: [")
        os.kill(first, signal.SIGKILL)
        # The worker itself, and the first of its successors.
        wait_until(lambda: server.stderr.count("worker died") >= 2, "no successor was tried")
        assert is_live(server) and other in workers_of(server)
        plans.write_text(text)
        wait_until(lambda: server.stderr.count("Started server process") >= 3, "it is not tried again")
        assert other in workers_of(server)
        assert server.stop(signal.SIGTERM) == 0


def test_a_worker_that_dies_without_its_database_is_tried_again(
    sandbox: SandboxControl, cli: Cli, redis: Redis
) -> None:
    (folder := cli.folder / "database").mkdir()
    with two_workers(sandbox, cli, redis, PROXY_DATABASE_URL=f"sqlite:///{folder}/proxy.db") as server:
        first, other = workers_of(server)
        folder.rename(cli.folder / "away")
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: "worker died" in server.stderr and len(workers_of(server)) == 2, "nothing takes its place")
        assert is_live(server) and other in workers_of(server)
        (cli.folder / "away").rename(folder)

        def is_ready() -> bool:
            answers = [httpx.get(f"{server.url}/readyz", **PLAINLY).status_code for _ in range(20)]
            return len(workers_of(server)) == 2 and set(answers) == {200}

        wait_until(is_ready, "not all workers are ready")
        assert other in workers_of(server)
        assert server.stop(signal.SIGTERM) == 0


def test_workers_end_with_their_supervisor(sandbox: SandboxControl, cli: Cli, redis: Redis) -> None:
    with two_workers(sandbox, cli, redis, PROXY_DRAIN_SECONDS="600") as server:
        workers = workers_of(server)
        token = cli.data("sessions", "mint", "--tenant", "acme", "--subject", "alice")
        headers = {"authorization": f"Bearer {token}"}
        earlier = len(sandbox.jobs())
        with ThreadPoolExecutor(1) as pool:
            run = pool.submit(httpx.post, server.url + RUN, json=HELD, headers=headers, **PLAINLY)
            wait_until(lambda: run.done() or len(sandbox.jobs()) > earlier, "the call did not reach the sandbox")
            assert not run.done(), run.result().text
            server.process.kill()
            server.process.wait()
            wait_until(lambda: sum(map(is_alive, workers)) == 1, "the idle worker stays")
            sandbox.move_job(sandbox.jobs()[earlier]["id"], "COMPLETED")
            assert run.result(timeout=180).status_code == 200
        wait_until(lambda: not any(map(is_alive, workers)), "the busy worker stays")
        assert server.stderr.count("the supervisor of the workers is gone") == 2


def test_workers_that_cannot_start_end_the_server_with_a_failure(cli: Cli, redis: Redis) -> None:
    # The bytes of a pipe are read only once: by the first process, so the others find nothing.
    more = {"PROXY_WORKERS": "2", "PROXY_REDIS_URL": redis.url, "PROXY_PORT": str(free_port())}
    environ = {**cli.environ, **more, "FAL_KEY_FILE": "/dev/stdin", "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [*PROXY, "serve"], env=environ, cwd=cli.folder, input="id:secret", capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 3, done.stderr
    assert "FAL_KEY: is not set" in done.stderr and "Traceback" not in done.stderr
