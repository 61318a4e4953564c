"""A stop signal loses no answer: real processes that are stopped while callers run, poll, watch and upload."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.server.commands import PLAINLY, Server, serving
from tests.server.conftest import Cli
from tests.support.audit import AuditReport, read_report
from tests.support.images import PIXEL, PIXEL_PNG
from tests.support.programs import tree
from tests.support.redis import Redis
from tests.support.sandbox import SandboxControl
from tests.support.stack import sandbox_environ
from tests.support.waiting import wait_until

ENDPOINT = "fal-ai/llava-next"
RUN, QUEUE = f"/fal/run/{ENDPOINT}", f"/fal/queue/{ENDPOINT}"
INITIATE = "/fal/rest/storage/upload/initiate"
HELD, SILENT = "[[pace hold=IN_PROGRESS]]", "[[fault delay=60]]"
PNG = {"content_type": "image/png", "file_name": "a.png"}
#: A single process ends with the signal, as a shell or an orchestrator expects it.
BY_SIGNAL = -signal.SIGTERM
LONG, SHORT = "600", "4"
#: What a machine with other work takes longer.
BUSY_SECONDS = 30


class Deployment:
    """A server to be stopped, its sandbox, and callers, each a subject of its own."""

    def __init__(self, server: Server, cli: Cli, sandbox: SandboxControl) -> None:
        self.server = server
        self.sandbox = sandbox
        self._cli = cli
        self._callers: list[httpx.Client] = []
        self._pool = ThreadPoolExecutor(16)

    def caller(self) -> httpx.Client:
        subject = f"caller-{len(self._callers)}"
        token = self._cli.data("sessions", "mint", "--tenant", "acme", "--subject", subject)
        headers = {"authorization": f"Bearer {token}"}
        self._callers.append(httpx.Client(base_url=self.server.url, headers=headers, **PLAINLY))
        return self._callers[-1]

    def meanwhile(self, work: Callable[[], Any]) -> tuple[Future[Any], str]:
        """Do work in a thread; return its future, and the sandbox's id of the call that it makes."""
        known = {job["id"] for job in self.sandbox.jobs()}
        future = self._pool.submit(work)
        wait_until(lambda: len(self.sandbox.jobs()) > len(known), "the call did not reach the sandbox")
        (new,) = {job["id"] for job in self.sandbox.jobs()} - known
        return future, new

    def in_background(self, work: Callable[[], Any], path: str) -> Future[Any]:
        """Do work in a thread; return its future once the sandbox has a request at this path."""
        future = self._pool.submit(work)
        wait_until(lambda: any(path in one["path"] for one in self.sandbox.requests()), "it did not reach the sandbox")
        return future

    def begin_to_stop(self, number: int = signal.SIGTERM) -> None:
        self.server.process.send_signal(number)
        wait_until(self.is_draining, "it does not stop")

    def is_draining(self) -> bool:
        return bool(httpx.get(f"{self.server.url}/readyz", **PLAINLY).status_code == 503)

    def end(self, seconds: float = 180) -> int:
        return self.server.process.wait(timeout=seconds)

    def books(self) -> AuditReport:
        return asyncio.run(read_report(self._cli.environ["PROXY_DATABASE_URL"]))

    def close(self) -> None:
        for pid in tree(self.server.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for caller in self._callers:
            caller.close()
        self._pool.shutdown()


@contextlib.contextmanager
def deploy(sandbox: SandboxControl, cli: Cli, drain_seconds: str, **environ: str) -> Iterator[Deployment]:
    more = {**sandbox_environ(sandbox.url), "PROXY_DRAIN_SECONDS": drain_seconds, **environ}
    with serving("serve", environ={**cli.environ, **more}, folder=cli.folder, live_at="/readyz") as server:
        found = Deployment(server, cli, sandbox)
        try:
            yield found
        finally:
            found.close()


def question(prompt: str = "What is it?") -> dict[str, str]:
    return {"image_url": PIXEL, "prompt": prompt}


def submit_job(caller: httpx.Client, prompt: str = "") -> str:
    id_: str = caller.post(QUEUE, json=question(prompt)).raise_for_status().json()["request_id"]
    return id_


def slot(caller: httpx.Client) -> str:
    url: str = caller.post(INITIATE, json=PNG).raise_for_status().json()["upload_url"]
    return url


def read_to_the_cut(caller: httpx.Client, method: str, path: str, json: Any = None) -> bytes:
    """The bytes of a stream that is cut; its reader must notice the cut."""
    got = b""
    with caller.stream(method, path, json=json) as stream, pytest.raises(httpx.RemoteProtocolError):
        for chunk in stream.iter_bytes():
            got += chunk
    return got


def check_refusal(answer: httpx.Response) -> None:
    assert (answer.status_code, answer.json()["error_type"]) == (503, "draining"), answer.text
    assert answer.headers["retry-after"] == "1" and answer.headers["connection"] == "close"


def connect(server: Server) -> socket.socket:
    address = urlsplit(server.url)
    return socket.create_connection((address.hostname, address.port), timeout=60)


def test_a_stop_finishes_running_calls_and_refuses_new_ones(sandbox: SandboxControl, cli: Cli) -> None:
    with deploy(sandbox, cli, LONG) as deployment:
        alice, bob = deployment.caller(), deployment.caller()
        done, other, followed = submit_job(alice), submit_job(bob, HELD), submit_job(bob, HELD)
        place = slot(alice)
        wait_until(lambda: alice.get(f"{QUEUE}/requests/{done}/status").status_code == 200, "the job does not end")
        run, run_id = deployment.meanwhile(lambda: alice.post(RUN, json=question(f"alice {HELD}")))
        events = deployment.in_background(lambda: bob.get(f"/v1/jobs/{followed}/events"), f"{followed}/status/stream")
        with (
            connect(deployment.server) as silent,
            connect(deployment.server) as idle,
            idle.makefile("rb") as answered,
        ):
            idle.sendall(b"GET /livez HTTP/1.1\r\nhost: proxy\r\n\r\n")
            assert answered.readline().startswith(b"HTTP/1.1 200 ")
            deployment.begin_to_stop()

            check_refusal(httpx.get(f"{deployment.server.url}/readyz", **PLAINLY))
            for path, body in ((RUN, question()), (QUEUE, question()), (f"{RUN}/stream", question()), (INITIATE, PNG)):
                check_refusal(bob.post(path, json=body))
            check_refusal(bob.post("/v1/jobs", json={"endpoint": ENDPOINT, "input": question()}))
            check_refusal(bob.post("/v1/estimate", json={"endpoint": ENDPOINT, "input": question()}))
            check_refusal(bob.post("/v1/uploads", content=PIXEL_PNG, headers={"content-type": "image/png"}))
            assert bob.get("/livez").status_code == 200
            assert 'fal_proxy_refusals_total{error_type="draining"}' in bob.get("/metrics").text
            assert bob.get("/v1/session").status_code == 200

            assert bob.get(f"{QUEUE}/requests/{other}/status").json()["status"] in ("IN_QUEUE", "IN_PROGRESS")
            assert bob.put(f"{QUEUE}/requests/{other}/cancel").status_code == 202
            assert "IN_PROGRESS" not in alice.get(f"{QUEUE}/requests/{done}/status/stream").text
            assert "You asked" in alice.get(f"{QUEUE}/requests/{done}").json()["output"]
            sent = httpx.put(place, content=PIXEL_PNG, headers={"content-type": "image/png"}, **PLAINLY)
            assert sent.status_code == 200
            # A stream that can be resumed anywhere ends at once.
            assert events.result(timeout=180).text.endswith("\n\nretry: 1000\n\n")
            assert not run.done() and deployment.server.process.poll() is None

            sandbox.move_job(run_id, "COMPLETED")
            answer = run.result(timeout=180)
            assert answer.status_code == 200 and "You asked: alice" in answer.json()["output"]
            assert answer.headers["connection"] == "close"
            assert deployment.end() == BY_SIGNAL
            assert answered.read().endswith(b'{"status":"ok"}') and silent.recv(1) == b""
    assert len([one for one in sandbox.requests() if one["host"] == "run"]) == 1
    assert "Traceback" not in deployment.server.stderr


def test_a_call_that_outlives_the_drain_is_cut_with_an_error_and_booked(sandbox: SandboxControl, cli: Cli) -> None:
    with deploy(sandbox, cli, SHORT) as deployment:
        runner, submitter, streamer, watcher, poller, uploader = (deployment.caller() for _ in range(6))
        watched, polled = submit_job(watcher, HELD), submit_job(poller, f"{HELD} [[fault delay=60 on=result]]")
        place = urlsplit(slot(uploader))
        run, _ = deployment.meanwhile(lambda: runner.post(RUN, json=question(HELD)))
        streaming = lambda: read_to_the_cut(streamer, "POST", f"{RUN}/stream", question(HELD))  # noqa: E731
        stream, _ = deployment.meanwhile(streaming)
        submit = deployment.in_background(
            lambda: submitter.post(QUEUE, json=question(f"never told {SILENT}")), "llava-next"
        )
        wait_until(lambda: "never told" in str(sandbox.requests()), "the submit did not reach the sandbox")
        events = f"{QUEUE}/requests/{watched}/status/stream"
        watch = deployment.in_background(lambda: read_to_the_cut(watcher, "GET", events), f"{watched}/status/stream")
        poll = deployment.in_background(lambda: poller.get(f"{QUEUE}/requests/{polled}"), f"requests/{polled}")
        with connect(deployment.server) as upload:
            head = f"PUT {place.path} HTTP/1.1\r\nhost: proxy\r\ncontent-type: image/png\r\ncontent-length: 99999\r\n"
            upload.sendall(head.encode() + b"\r\n" + PIXEL_PNG + bytes(50_000))
            wait_until(lambda: any(one["method"] == "PUT" for one in sandbox.requests()), "the upload did not begin")
            began = time.monotonic()
            assert deployment.server.stop(signal.SIGTERM) == BY_SIGNAL
            assert time.monotonic() - began < float(SHORT) + BUSY_SECONDS
            with upload.makefile("rb") as answer:
                assert answer.readline().startswith(b"HTTP/1.1 503 ")
        for future in (run, submit):
            answered = future.result(timeout=180)
            assert (answered.status_code, answered.json()["error_type"]) == (500, "upstream_ambiguous"), answered.text
        check_refusal(poll.result(timeout=180))
        assert stream.result(timeout=180).endswith(b"retry: 1000\n\n")
        assert b'"IN_PROGRESS"' in watch.result(timeout=180) and watch.result().endswith(b"\n\nretry: 1000\n\n")
        report = deployment.books()
    report.check()
    states = {(entry.kind, entry.subject): entry.state for entry in report.entries}
    assert states == {
        ("run", "caller-0"): "settled",
        ("submit", "caller-1"): "settled",
        ("stream", "caller-2"): "settled",
        ("submit", "caller-3"): "accepted",
        ("submit", "caller-4"): "accepted",
        ("upload", "caller-5"): "released",
    }
    assert "Traceback" not in deployment.server.stderr


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT], ids=["terminate", "ctrl-c"])
def test_a_second_signal_ends_the_drain_at_once(sandbox: SandboxControl, cli: Cli, second: signal.Signals) -> None:
    with deploy(sandbox, cli, LONG) as deployment:
        run, _ = deployment.meanwhile(stage_run(deployment.caller()))
        deployment.begin_to_stop()
        assert not run.done()
        deployment.server.process.send_signal(second)
        assert deployment.end() in (BY_SIGNAL, -second)
        assert run.result(timeout=180).json()["error_type"] == "upstream_ambiguous"
        (entry,) = deployment.books().entries
        assert entry.state == "settled"


def stage_run(caller: httpx.Client) -> Callable[[], httpx.Response]:
    return lambda: caller.post(RUN, json=question(HELD))


@pytest.mark.tools
@pytest.mark.parametrize("everywhere", [False, True], ids=["terminate", "ctrl-c"])
def test_several_workers_drain_together(sandbox: SandboxControl, cli: Cli, redis: Redis, everywhere: bool) -> None:
    with deploy(sandbox, cli, LONG, PROXY_WORKERS="3", PROXY_REDIS_URL=redis.url) as deployment:
        caller = deployment.caller()
        run, run_id = deployment.meanwhile(stage_run(caller))
        workers = tree(deployment.server.process.pid)[1:]
        # A terminal sends its Ctrl-C to the workers as well, and the parent signals them once more.
        for pid in [deployment.server.process.pid, *(workers if everywhere else ())]:
            os.kill(pid, signal.SIGINT if everywhere else signal.SIGTERM)
        # Only the busy worker is left, and answers every new caller.
        wait_until(lambda: len(list(filter(listens, workers))) == 1, "the idle workers stay")
        wait_until(
            lambda: not listens(deployment.server.process.pid), "connections wait in vain when all workers have gone"
        )
        wait_until(deployment.is_draining, "the busy worker does not stop")
        for _ in range(20):
            check_refusal(
                httpx.post(deployment.server.url + RUN, json=question(), headers=dict(caller.headers), **PLAINLY)
            )
        assert not run.done()
        sandbox.move_job(run_id, "COMPLETED")
        assert run.result(timeout=180).status_code == 200
        assert deployment.end() == 0
        assert "Traceback" not in deployment.server.stderr


def listens(pid: int) -> bool:
    """Whether a process is there and holds a TCP socket that listens."""
    table = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = {f"socket:[{columns[9]}]" for columns in table if columns[3] == "0A"}
    with contextlib.suppress(FileNotFoundError):
        for one in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                if os.readlink(one) in listening:
                    return True
    return False


@pytest.mark.tools
def test_a_second_signal_ends_several_workers_at_once(sandbox: SandboxControl, cli: Cli, redis: Redis) -> None:
    with deploy(sandbox, cli, LONG, PROXY_WORKERS="2", PROXY_REDIS_URL=redis.url) as deployment:
        run, _ = deployment.meanwhile(stage_run(deployment.caller()))
        deployment.begin_to_stop()
        deployment.server.process.send_signal(signal.SIGTERM)
        assert deployment.end() == 0
        assert run.result(timeout=180).json()["error_type"] == "upstream_ambiguous"
        (entry,) = deployment.books().entries
        assert entry.state == "settled"


@pytest.mark.tools
def test_workers_that_hang_are_killed_after_their_time(sandbox: SandboxControl, cli: Cli, redis: Redis) -> None:
    with deploy(sandbox, cli, SHORT, PROXY_WORKERS="2", PROXY_REDIS_URL=redis.url) as deployment:
        caller = deployment.caller()
        run, _ = deployment.meanwhile(stage_run(caller))
        workers = tree(deployment.server.process.pid)[1:]
        deployment.begin_to_stop()
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        assert deployment.end() == 0
        with pytest.raises(httpx.TransportError):
            run.result(timeout=180)
