"""A status stream that breaks or stalls on the wire: watchers on every surface get every log line and the true end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from proxy.upstream.timeouts import Timeouts
from tests.routes.jobs import read_all_events
from tests.support.limited import NEXT, asking
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack, proxy_in_front_of

QUEUE = f"/fal/queue/{NEXT}"
PACE = "[[pace queue_positions=2 seconds_per_position=0.05 run_seconds=0.15]]"
#: A few offsets in each event; tests/jobs/test_every_byte.py cuts at every byte.
OFFSETS = range(0, 3400, 85)


@pytest.fixture(scope="module")
def impatient(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A proxy that takes half a second of silence for the end of fal's stream."""
    folder = tmp_path_factory.mktemp("impatient")
    with proxy_in_front_of(shared_sandbox, folder, timeouts=Timeouts(status_stream=0.5)) as stack:
        yield stack


def lines_of(events: list[str]) -> list[str]:
    return [line["message"] for event in events for line in json.loads(event)["logs"] or []]


def sees_the_truth(client: httpx.Client, prompt: str) -> None:
    id_ = client.post(QUEUE, json=asking(f"{PACE} {prompt}")).raise_for_status().json()["request_id"]
    one = f"{QUEUE}/requests/{id_}"
    ways = (
        lambda: read(client, f"{one}/status/stream?logs=1", {}),
        lambda: read(client, "/api/fal/proxy", {"x-fal-target-url": f"https://queue.fal.run{one[10:]}/status/stream?logs=1"}),
        lambda: [event["data"] for event in read_all_events(client, id_) if event["event"] == "status"],
    )  # fmt: skip
    with ThreadPoolExecutor(len(ways)) as pool:
        found = list(pool.map(lambda way: way(), ways))
    status = client.get(f"{one}/status?logs=1").json()
    whole = [line["message"] for line in status["logs"]]
    assert status["status"] == "COMPLETED" and whole[-1] == "INFO:Done" and len(set(whole)) == len(whole) == 4
    for events in found:
        assert json.loads(events[-1])["status"] == "COMPLETED" and lines_of(events) == whole, (prompt, events)
    assert client.get(one).json()["output"].endswith("You asked: What is it?")


def read(client: httpx.Client, path: str, headers: dict[str, str]) -> list[str]:
    with client.stream("GET", path, headers=headers) as stream:
        assert stream.status_code == 200
        return [line.removeprefix("data: ") for line in stream.iter_lines() if line.startswith("data: ")]


@pytest.mark.parametrize("kind", ["drop_at", "stall_at"])
def test_cut_on_the_wire(impatient: Stack, sandbox: SandboxControl, kind: str) -> None:
    with impatient.client() as client, ThreadPoolExecutor(8) as pool:
        faults = [f"[[fault {kind}={offset} on=status-stream times=1]] What is it?" for offset in OFFSETS]
        list(pool.map(lambda prompt: sees_the_truth(client, prompt), faults))


@pytest.mark.parametrize("fault", ["split", "chunk=7", "garbage=1", "garbage=3", "duplicate", "reorder", "gzip"])
def test_damage_on_the_wire(impatient: Stack, sandbox: SandboxControl, fault: str) -> None:
    with impatient.client() as client:
        sees_the_truth(client, f"[[fault {fault} on=status-stream]] What is it?")
