"""Streams through the proxy: whole events, no silent end, and nothing left open upstream when the caller goes."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from proxy.jobs.hub import IDLE_SECONDS
from tests.support.images import PIXEL
from tests.support.limited import hanging_up
from tests.support.stack import Stack
from tests.support.waiting import wait_until

APP = "fal-ai/llava-next"
QUEUE = f"/fal/queue/{APP}"


def question(prompt: str = "What is it?") -> dict[str, str]:
    return {"image_url": PIXEL, "prompt": prompt}


def submit(client: httpx.Client, prompt: str = "What is it?") -> str:
    request_id: str = client.post(QUEUE, json=question(prompt)).raise_for_status().json()["request_id"]
    return request_id


def documents(lines: Iterator[str]) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]


def watch(client: httpx.Client, request_id: str) -> list[dict[str, Any]]:
    with client.stream("GET", f"{QUEUE}/requests/{request_id}/status/stream?logs=1") as stream:
        assert stream.status_code == 200
        return documents(stream.iter_lines())


@pytest.mark.parametrize(
    "fault",
    [
        {"fault": "drop_at", "bytes": 40},
        {"fault": "drop_at", "bytes": 700},
        {"fault": "drop_at", "bytes": 1500},
        {"fault": "split"},
        {"fault": "chunk", "size": 7},
        {"fault": "garbage", "n": 1},
        {"fault": "duplicate"},
        {"fault": "gzip"},
    ],
    ids=lambda fault: "-".join(str(value) for value in fault.values()),
)
def test_a_watcher_sees_the_end_and_every_log_line_once(stack: Stack, fault: dict[str, Any]) -> None:
    with stack.client() as client:
        request_id = submit(client, "[[pace run_seconds=0.3]] é ünï — 🐈")
        times = 2 if fault["fault"] == "drop_at" else None
        stack.sandbox.fault(**fault, times=times, on={"operation": "status-stream"})
        updates = watch(client, request_id)
    assert updates[-1]["status"] == "COMPLETED"
    lines = [line["message"] for update in updates for line in update["logs"] or []]
    assert len(lines) == len(set(lines)) and "INFO:Done" in lines
    assert {update["status"] for update in updates} <= {"IN_QUEUE", "IN_PROGRESS", "COMPLETED"}


def test_every_chunk_holds_whole_events(stack: Stack) -> None:
    """Old JS clients decode each chunk by itself: a chunk that ends inside a letter would break it."""
    stack.sandbox.fault(fault="split", on={"operation": "stream"})
    body = json.dumps(question("é ünï — 🐈 é ünï — 🐈"), ensure_ascii=False).encode()
    head = [
        f"POST /fal/run/{APP}/stream HTTP/1.1",
        "Host: proxy",
        f"Authorization: Bearer {stack.token()}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    ]
    address = urlsplit(stack.url)
    with closing(socket.create_connection((address.hostname, address.port), timeout=60)) as wire:
        wire.sendall("\r\n".join([*head, "", ""]).encode() + body)
        chunks = list(chunks_of(wire))
    assert len(chunks) > 3
    for chunk in chunks:
        assert chunk.endswith(b"\n\n") and chunk.decode()


def chunks_of(wire: socket.socket) -> Iterator[bytes]:
    """The chunks of an HTTP/1.1 answer, as they were sent (RFC 9112, section 7.1)."""
    with wire.makefile("rb") as answer:
        assert b" 200 " in answer.readline()
        while answer.readline() != b"\r\n":
            pass
        while size := int(answer.readline(), 16):
            yield answer.read(size)
            answer.readline()


def test_a_models_stream_that_breaks_does_not_look_finished(stack: Stack) -> None:
    stack.sandbox.fault(fault="drop_at", bytes=400, on={"operation": "stream"})
    with stack.client() as client, client.stream("POST", f"/fal/run/{APP}/stream", json=question()) as stream:
        assert stream.status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            stream.read()


def test_events_that_are_no_json_are_left_out_of_a_models_stream(stack: Stack) -> None:
    stack.sandbox.fault(fault="garbage", n=2, on={"operation": "stream"})
    with stack.client() as client, client.stream("POST", f"/fal/run/{APP}/stream", json=question()) as stream:
        found = documents(stream.iter_lines())
    assert found[-1]["partial"] is False and "You asked: What is it?" in found[-1]["output"]


def test_an_input_that_fal_refuses_is_a_json_error_on_a_stream_route(stack: Stack) -> None:
    wrong = {"image_url": "data:image/png;base64,bm8gcGljdHVyZQ==", "prompt": "What is it?"}
    with stack.client() as client:
        answer = client.post(f"/fal/run/{APP}/stream", json=wrong)
    assert answer.status_code == 422 and answer.headers["content-type"].startswith("application/json")
    assert answer.json()["detail"][0]["loc"] == ["body", "image_url"]


@pytest.mark.parametrize("kind", ["run", "stream", "status-stream"])
def test_a_caller_who_hangs_up_frees_the_connection_to_fal(stack: Stack, kind: str) -> None:
    held = question("[[pace hold=IN_PROGRESS]]")
    paths = {"run": f"/fal/run/{APP}", "stream": f"/fal/run/{APP}/stream"}
    with stack.client() as client:
        if kind == "status-stream":
            request_id = submit(client, held["prompt"])
            opened = client.stream("GET", f"{QUEUE}/requests/{request_id}/status/stream")
            with opened as stream:
                next(stream.iter_lines())
        else:
            with hanging_up(stack, stack.token(), paths[kind].removeprefix("/fal/"), held):
                pass
    host = "queue" if kind == "status-stream" else "run"

    def left() -> bool:
        # The proxy follows a job a little longer, as its caller may come back.
        stack.clock.advance(IDLE_SECONDS)
        return any(record["ended"] == "left" for record in stack.sandbox.requests() if record["host"] == host)

    wait_until(left)


def test_the_headers_of_a_stream_keep_intermediaries_from_holding_it_back(stack: Stack) -> None:
    with stack.client() as client:
        request_id = submit(client)
        with client.stream("GET", f"{QUEUE}/requests/{request_id}/status/stream") as stream:
            assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert stream.headers["cache-control"] == "no-store, no-transform"
            assert stream.headers["x-accel-buffering"] == "no"
            assert "content-length" not in stream.headers and "content-encoding" not in stream.headers


def test_a_finished_job_gives_one_event(stack: Stack) -> None:
    with stack.client() as client:
        request_id = submit(client)
        watch(client, request_id)
        (only,) = watch(client, request_id)
    assert only["status"] == "COMPLETED"
