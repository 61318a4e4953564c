"""The proxy's answers about a job equal fal's own at the same moment, apart from the host form's URLs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from proxy.sandbox.app import SANDBOX_KEY
from tests.routes.jobs import HELD
from tests.support.limited import HOSTS, NEXT, PROTOCOL, Client, asking
from tests.support.stack import Stack
from tests.support.waiting import wait_until

HEADERS = ("content-type", "x-fal-request-id", "x-fal-billable-units", "x-fal-error-type", "retry-after")
LIVES = {
    "finishes": ("", ["IN_PROGRESS", "finish"]),
    "fails": ("[[fault fail=runner_disconnected]]", ["IN_PROGRESS", "finish"]),
    "is-refused": ("", ["IN_PROGRESS", "finish"]),
    "breaks": ("", ["IN_PROGRESS", "fail"]),
    "is-cancelled-in-the-queue": ("", ["cancel"]),
    "is-cancelled-at-work": ("", ["IN_PROGRESS", "cancel"]),
}
TAILS = ["/status", "/status?logs=0", "/status?logs=1", "/status?logs=true", "/status?logs=false", ""]


class Beside:
    """Sends the same requests to fal and to the proxy."""

    def __init__(self, stack: Stack, surface: str) -> None:
        self.client = Client(stack, stack.token(), surface)
        key = {"authorization": f"Key {SANDBOX_KEY}"}
        self.fal = httpx.Client(base_url=stack.sandbox.url, headers=key, timeout=60, trust_env=False, verify=False)
        self.surface = surface
        self.proxy_url = stack.url
        self.fal_url = stack.sandbox.url

    def ask_both(self, method: str, path: str, json: Any = None) -> tuple[Any, Any]:
        """(fal's answer, the proxy's): status, the headers that matter, body."""
        # The sandbox sets cookies, and refuses a caller that sends them.
        self.fal.cookies.clear()
        return tuple(
            (answer.status_code, {name: answer.headers.get(name) for name in HEADERS}, self.form(answer.json()))
            for answer in (self.fal.request(method, f"/{path}", json=json), self.client.call(method, path, json))
        )  # type: ignore[return-value]

    def form(self, body: Any) -> Any:
        """Replace URLs by their paths, once it is checked that each names the right host."""
        if not isinstance(body, dict):
            return body
        return {name: self.path(value) if name.endswith("_url") else value for name, value in body.items()}

    def path(self, url: str) -> str:
        parts = urlsplit(url)
        if self.surface == HOSTS:
            assert url.startswith((f"{self.proxy_url}/fal/", self.fal_url))
        return parts.path.removeprefix("/fal")

    def close(self) -> None:
        self.fal.close()
        self.client.http.close()


@contextlib.contextmanager
def beside(stack: Stack, surface: str) -> Iterator[Beside]:
    both = Beside(stack, surface)
    try:
        yield both
    finally:
        both.close()


def move(stack: Stack, both: Beside, id_: str, step: str) -> None:
    if step == "cancel":
        assert both.client.cancel(id_).status_code == 202
    else:
        stack.sandbox.move_job(id_, step)


def input_for(life: str) -> dict[str, Any]:
    body = asking(f"{HELD} {LIVES[life][0]}")
    return body | ({"image_url": "data:image/png;base64,bm8gcGljdHVyZQ=="} if life == "is-refused" else {})


@pytest.mark.parametrize("surface", [HOSTS, PROTOCOL])
@pytest.mark.parametrize("life", LIVES)
def test_polls_and_results_are_the_same_as_fals(stack: Stack, surface: str, life: str) -> None:
    with beside(stack, surface) as both:
        answer = both.client.call("POST", f"queue/{NEXT}", input_for(life))
        id_ = answer.json()["request_id"]
        one = f"queue/{NEXT}/requests/{id_}"
        for step in ("", *LIVES[life][1]):
            if step:
                move(stack, both, id_, step)
            for tail in TAILS:
                agree(both, one + tail)
            agree(both, f"{one}/status?logs=1")
        stack.sandbox.move_job(id_, "hold" if step == "" else "finish")
        fal, proxy = both.ask_both("PUT", f"{one}/cancel")
        assert fal == proxy and fal[0] == 400


def agree(both: Beside, path: str) -> None:
    """Wait until both answers are equal: the proxy follows fal's stream."""
    answers: list[Any] = []

    def are_equal() -> bool:
        answers[:] = both.ask_both("GET", path)
        return bool(answers[0] == answers[1])

    wait_until(are_equal, lambda: f"{path}: fal {answers[0]}, proxy {answers[1]}")


@pytest.mark.parametrize("surface", [HOSTS, PROTOCOL])
@pytest.mark.parametrize("query", ["", "?logs=0", "?logs=1", "?logs=true", "?logs=false"])
def test_streams_and_answers_about_unknown_jobs_are_the_same_as_fals(stack: Stack, surface: str, query: str) -> None:
    with beside(stack, surface) as both:
        id_ = both.client.submitted(HELD)
        path = f"queue/{NEXT}/requests/{id_}/status/stream{query}"
        # Both streams are read from the job's beginning.
        found: dict[str, list[Any]] = {"fal": [], "proxy": []}
        begun = {name: threading.Event() for name in found}
        target = f"/fal/{path}" if surface == HOSTS else "/api/fal/proxy"
        named = {"x-fal-target-url": f"https://queue.fal.run/{path.removeprefix('queue/')}"}
        ways = {
            "fal": lambda: both.fal.stream("GET", f"/{path}"),
            "proxy": lambda: both.client.http.stream("GET", target, headers={} if surface == HOSTS else named),
        }

        def read(name: str) -> None:
            with ways[name]() as stream:
                for line in stream.iter_lines():
                    if line.startswith("data: "):
                        found[name].append(both.form(httpx.Response(200, text=line.removeprefix("data: ")).json()))
                        begun[name].set()

        readers = [threading.Thread(target=read, args=(name,)) for name in found]
        for reader in readers:
            reader.start()
        assert all(event.wait(60) for event in begun.values())
        for step in ("IN_PROGRESS", "finish"):
            stack.sandbox.move_job(id_, step)
        for reader in readers:
            reader.join(180)
        assert found["fal"] == found["proxy"] and found["fal"][-1]["status"] == "COMPLETED"
        stack.sandbox.move_job(id_, "lose")
        assert both.client.status(id_).status_code == 200, "the proxy still knows the ended job"
        lost = both.client.submitted(HELD)
        stack.sandbox.move_job(lost, "lose")
        fal, proxy = both.ask_both("GET", f"queue/{NEXT}/requests/{lost}/status{query}")
        # Each such answer has an id of its own.
        assert (fal[0], fal[2]) == (proxy[0], proxy[2]) == (404, {"status": "NOT_FOUND"})
