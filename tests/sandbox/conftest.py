"""A sandbox on a real server, and a client that keeps no cookies: the sandbox refuses a call with one."""

from __future__ import annotations

import base64
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson
import pytest

from proxy.sandbox.app import SANDBOX_KEY, create_sandbox
from proxy.sandbox.timing import Timing
from tests.support.servers import running

FAST = Timing(queue_positions=2, seconds_per_position=0.01, run_seconds=0.02, words_per_second=2000)
PICTURES = Path(__file__).parents[1] / "pictures"
CHELSEA = (PICTURES / "chelsea.png").read_bytes()
CHELSEA_URI = "data:image/png;base64," + base64.b64encode(CHELSEA).decode()


class Fal:
    """What the tests do with a running sandbox."""

    def __init__(self, url: str, client: httpx.Client) -> None:
        self.url = url
        self.client = client

    def input(self, prompt: str = "What is it?", **more: Any) -> dict[str, Any]:
        return {"prompt": prompt, "image_url": CHELSEA_URI, **more}

    def run(self, prompt: str = "What is it?", endpoint: str = "fal-ai/llava-next", **more: Any) -> httpx.Response:
        return self.client.post(f"/run/{endpoint}", json=self.input(prompt, **more))

    def submit(self, prompt: str = "What is it?", query: str = "", **more: Any) -> dict[str, Any]:
        answer = self.client.post(f"/queue/fal-ai/llava-next{query}", json=self.input(prompt, **more))
        assert answer.status_code == 200, answer.text
        job: dict[str, Any] = answer.json()
        return job

    def finished(self, prompt: str = "What is it?", query: str = "", **more: Any) -> dict[str, Any]:
        """A job that is completed with the model's own answer."""
        job = self.submit(prompt, query, **more)
        assert self.move(job, state="finish").status_code == 200
        return job

    def move(self, job: dict[str, Any], **order: Any) -> httpx.Response:
        return self.client.post(f"/_sandbox/jobs/{job['request_id']}", json=order)

    def fault(self, fault: str, **more: Any) -> None:
        answer = self.client.post("/_sandbox/faults", json={"fault": fault, **more})
        assert answer.status_code == 201, answer.text

    def requests(self) -> list[dict[str, Any]]:
        recorded: list[dict[str, Any]] = self.client.get("/_sandbox/requests").json()
        return recorded

    def events(self, job: dict[str, Any], query: str = "") -> list[dict[str, Any]]:
        """The whole status stream of a job."""
        return documents(self.client.get(f"{job['status_url']}/stream{query}").text)

    def tidy(self) -> None:
        for path in ("requests", "faults", "pace"):
            self.client.delete(f"/_sandbox/{path}")

    def raw(self, method: str, path: str, body: Any = None) -> bytes:
        """All bytes of the answer on a connection of its own, until the sandbox closes it or falls silent."""
        text = b"" if body is None else orjson.dumps(body)
        address = urlsplit(self.url)
        with socket.create_connection((address.hostname, address.port), timeout=60) as wire:
            head = f"{method} {path} HTTP/1.1\r\nhost: {address.netloc}\r\nauthorization: Key {SANDBOX_KEY}\r\n"
            head += f"content-type: application/json\r\ncontent-length: {len(text)}\r\nconnection: close\r\n\r\n"
            wire.sendall(head.encode() + text)
            answer = bytearray()
            while chunk := wire.recv(65536):
                answer += chunk
            return bytes(answer)


def documents(stream: str) -> list[dict[str, Any]]:
    """The JSON of every event in a stream's text."""
    return [orjson.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: ")]


@pytest.fixture(scope="package")
def stranger() -> Iterator[httpx.Client]:
    """A caller without the key, such as a browser that uploads."""
    with _forgetful() as client:
        yield client


def _forgetful(**options: Any) -> httpx.Client:
    """A client that keeps no cookies."""
    client = httpx.Client(trust_env=False, verify=False, timeout=60, **options)
    client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    return client


@contextmanager
def calling(http: str) -> Iterator[Fal]:
    """A sandbox behind one of uvicorn's two HTTP parsers."""
    with (
        running(create_sandbox(timing=FAST), http=http) as url,
        _forgetful(base_url=url, headers={"authorization": f"Key {SANDBOX_KEY}"}) as client,
    ):
        yield Fal(url, client)


@pytest.fixture(scope="package")
def caller() -> Iterator[Fal]:
    with calling("httptools") as fal:
        yield fal


@pytest.fixture(scope="package", params=["httptools", "h11"])
def caller_of_both(request: pytest.FixtureRequest) -> Iterator[Fal]:
    with calling(request.param) as fal:
        yield fal


@pytest.fixture
def fal(caller: Fal) -> Iterator[Fal]:
    yield caller
    caller.tidy()


@pytest.fixture
def wire(caller_of_both: Fal) -> Iterator[Fal]:
    """As `fal`, once for each HTTP parser: hanging up reaches below them."""
    yield caller_of_both
    caller_of_both.tidy()
