"""While fal is silent, a stream begins all the same: its head and a comment go out, and a late refusal is an event."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.upstream.timeouts import Timeouts
from tests.jobs.hubs import hub_before, reading
from tests.routes.jobs import JOBS, created
from tests.support.limited import NEXT, NOTHING, account, asking, limited_proxy, per, plan
from tests.support.sandbox import SandboxControl
from tests.support.scripted import ScriptedFal, whole_life
from tests.support.stack import Stack, proxy_in_front_of
from tests.support.waiting import wait_until

HELD = "[[pace hold=IN_PROGRESS]]"
#: Far below the silence that fal is allowed, and above what a busy machine needs.
SOON = httpx.Timeout(40)


@pytest.fixture(scope="module")
def impatient(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A proxy that gives up on a stream of fal's after a second of silence."""
    folder = tmp_path_factory.mktemp("impatient")
    with proxy_in_front_of(shared_sandbox, folder, timeouts=Timeouts(status_stream=1.0, stream=1.0)) as stack:
        yield stack


def surfaces(id_: str) -> list[tuple[str, dict[str, str]]]:
    path = f"/{NEXT}/requests/{id_}/status/stream"
    return [
        (f"/fal/queue{path}", {}),
        ("/api/fal/proxy", {"x-fal-target-url": f"https://queue.fal.run{path}"}),
        (f"{JOBS}/{id_}/events", {}),
    ]


def until_cut(stream: httpx.Response) -> str:
    """The text of a stream whose connection is cut at its end: clients of fal would take an end for that of the job."""
    found = b""
    with pytest.raises(httpx.RemoteProtocolError):
        for piece in stream.iter_raw():
            found += piece
    return found.decode()


def body_of_error(text: str) -> dict[str, Any]:
    """The data of the `error` event that is the last one."""
    _, _, event = text.partition("event: error\n")
    body: dict[str, Any] = json.loads(event.removeprefix("data: "))
    return body


def error_of(text: str) -> str:
    code: str = body_of_error(text)["error_type"]
    return code


@pytest.mark.slow
def test_the_head_and_a_comment_go_out_while_fal_is_silent(stack: Stack) -> None:
    stack.sandbox.fault(fault="hang", on={"operation": "status-stream"})
    with stack.client() as client:
        id_ = created(client, HELD)
        for path, headers in surfaces(id_):
            with client.stream("GET", path, headers=headers, timeout=SOON) as stream:
                assert stream.status_code == 200 and stream.headers["content-type"].startswith("text/event-stream")
                assert ": ping" in stream.iter_lines()


def test_a_models_stream_begins_while_fal_is_silent(stack: Stack) -> None:
    stack.sandbox.fault(fault="hang", on={"operation": "stream"})
    with stack.client() as client:
        opened = client.stream("POST", f"/fal/run/{NEXT}/stream", json=asking("What is it?"), timeout=SOON)
        with opened as stream:
            assert stream.status_code == 200 and next(stream.iter_lines()) == ": ping"


def test_a_job_whose_stream_cannot_be_opened_ends_in_an_error_event(impatient: Stack, sandbox: SandboxControl) -> None:
    sandbox.fault(fault="hang", on={"operation": "status-stream"})
    with impatient.client() as client:
        id_ = created(client, HELD)
        text = client.get(f"{JOBS}/{id_}/events").text
        assert "retry: 5000\n" in text and "id: " not in text, "it can be resumed"
        assert error_of(text) == "upstream_timeout"
        for form in (0, 1):
            path, headers = surfaces(created(client, HELD))[form]
            with client.stream("GET", path, headers=headers) as stream:
                assert error_of(until_cut(stream)) == "upstream_timeout"


def test_a_late_refusal_of_a_models_stream_is_an_event_and_costs_nothing(
    sandbox: SandboxControl, tmp_path: Path
) -> None:
    limits = {"acme": plan(quotas=[per("subject", "requests", 1)], concurrency={"subject": 1})}
    wrong = asking("What is it?", image_url="data:image/png;base64,bm8gcGljdHVyZQ==")
    with limited_proxy(sandbox, tmp_path, limits) as stack, stack.client() as client:
        sandbox.fault(fault="delay", delay=4, on={"operation": "stream"}, times=2)
        with client.stream("POST", f"/fal/run/{NEXT}/stream", json=wrong) as stream:
            assert stream.status_code == 200
            assert "image_url" in body_of_error(until_cut(stream))["detail"][0]["loc"]
        wait_until(lambda: account(tmp_path, "acme", "requests", "alice") == NOTHING, "the call was booked")
        # The slot is free, the quota is whole, and a stream that begins late has all its events.
        with client.stream("POST", f"/fal/run/{NEXT}/stream", json=asking("What is it?")) as stream:
            assert stream.status_code == 200
            text = stream.read().decode()
        assert text.startswith(": ping\n\n") and '"partial":false' in text.splitlines()[-2]
        wait_until(lambda: account(tmp_path, "acme", "requests", "alice").used == 1, "the call was not booked")


def test_a_late_failure_of_a_models_stream_is_an_error_event(impatient: Stack, sandbox: SandboxControl) -> None:
    sandbox.fault(fault="hang", on={"operation": "stream"})
    with (
        impatient.client() as client,
        client.stream("POST", f"/fal/run/{NEXT}/stream", json=asking("What is it?")) as stream,
    ):
        assert error_of(until_cut(stream)) == "upstream_ambiguous"


def test_a_refusal_that_is_known_at_once_keeps_its_status(stack: Stack) -> None:
    with stack.client() as client:
        id_ = created(client, HELD)
        stack.sandbox.move_job(id_, "lose")
        for path, headers in surfaces(id_):
            assert client.get(path, headers=headers).status_code == 404


@pytest.mark.slow
@pytest.mark.anyio
async def test_a_stream_that_only_pings_is_a_stream() -> None:
    async def send_pings(_: int, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b": ping\n\n"
            await asyncio.sleep(0.1)
        async for piece in pieces:
            yield piece

    fal = ScriptedFal(whole_life()[:1], send_pings)
    async with hub_before(fal, silence_seconds=1.0) as bench:
        with reading(bench.hub) as watch:
            first = await watch.first_update()
        assert first.state == "IN_QUEUE" and fal.calls == ["stream"]
