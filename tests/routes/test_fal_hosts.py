"""The two hosts of the host form, for a client that makes the queue's host of the other."""

from __future__ import annotations

from urllib.parse import urlsplit

import httpx
import pytest

from tests.support.limited import NEXT, asking
from tests.support.stack import Stack


def post(stack: Stack, host: str, path: str = f"/fal/run/{NEXT}") -> httpx.Response:
    with stack.client(headers={"host": host}) as client:
        return client.post(path, json=asking("What is this?"))


@pytest.mark.parametrize("form", ["queue.{name}:{port}", "queue.{name}", "QUEUE.{name}:{port}"])
def test_run_at_the_queues_host_is_a_submit(stack: Stack, form: str) -> None:
    own = urlsplit(stack.url)
    host = form.format(name=own.hostname, port=own.port)
    submitted = post(stack, host).json()
    assert submitted["status"] == "IN_QUEUE"
    # The client follows these URLs: they name the queue's path at the proxy's own address.
    assert submitted["status_url"].startswith(f"{stack.url}/fal/queue/{NEXT}/requests/")
    job = f"/fal/run/{NEXT}/requests/{submitted['request_id']}"
    with stack.client(headers={"host": host}) as client:
        assert client.get(f"{job}/status").status_code in (200, 202)
        assert client.put(f"{job}/cancel").status_code in (202, 400)
    assert {one["host"] for one in stack.sandbox.requests()} == {"queue"}


@pytest.mark.parametrize("host", ["{name}:{port}", "queue.example.com", "queue.{name}.example.com", "a.queue.{name}"])
def test_run_at_any_other_host_is_a_run(stack: Stack, host: str) -> None:
    own = urlsplit(stack.url)
    answer = post(stack, host.format(name=own.hostname, port=own.port))
    assert "output" in answer.json()
    assert [one["host"] for one in stack.sandbox.requests()] == ["run"]


@pytest.mark.parametrize("path", [f"/fal/queue/{NEXT}", "/fal/rest/storage/upload/initiate"])
def test_other_paths_are_the_same_at_the_queues_host(stack: Stack, path: str) -> None:
    given = {"content_type": "image/png", "file_name": "a.png"} if "/rest/" in path else asking("What is this?")
    with stack.client(headers={"host": f"queue.{urlsplit(stack.url).hostname}"}) as client:
        answer = client.post(path, json=given)
    assert answer.status_code == 200 and ("upload_url" if "/rest/" in path else "request_id") in answer.json()
