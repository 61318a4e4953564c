"""The native job API as its callers use it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import httpx

from tests.support.limited import NEXT, asking

JOBS = "/v1/jobs"
HELD = "[[pace hold=IN_QUEUE queue_positions=1 seconds_per_position=0 run_seconds=0]]"
SSE = {"accept": "text/event-stream"}


def new(prompt: str = "What is this?", endpoint: str = NEXT) -> dict[str, Any]:
    return {"endpoint": endpoint, "input": asking(prompt)}


def created(client: httpx.Client, prompt: str = HELD) -> str:
    answer = client.post(JOBS, json=new(prompt))
    assert answer.status_code == 202, answer.text
    id_: str = answer.json()["id"]
    return id_


def events(stream: httpx.Response) -> Iterator[dict[str, str]]:
    """The events of a stream as they come; `retry` hints and comments are left out."""
    found: dict[str, str] = {}
    for line in stream.iter_lines():
        name, _, value = line.partition(": ")
        if line and name:
            found[name] = value
        elif not line:
            if "event" in found:
                yield found
            found = {}


@contextlib.contextmanager
def watching(client: httpx.Client, id_: str, after: str = "") -> Iterator[Iterator[dict[str, str]]]:
    with client.stream("GET", f"{JOBS}/{id_}/events", headers={"last-event-id": after}) as stream:
        assert stream.status_code == 200, stream.read()
        yield events(stream)


def read_all_events(client: httpx.Client, id_: str, after: str = "") -> list[dict[str, str]]:
    with watching(client, id_, after) as stream:
        return list(stream)
