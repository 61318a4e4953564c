"""Refusals of a status stream, in the form that fal's client for the JVM can end with."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.routes.jobs import created, watching
from tests.support.limited import NEXT, assert_refused_with, limited_proxy, plan
from tests.support.sandbox import SandboxControl

TWO_LINES = [("accept", "application/json"), ("accept", "text/event-stream")]
ONE_LINE = [("accept", "application/json, text/event-stream")]


@pytest.fixture
def alice(sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A caller whose only stream is open."""
    most = {"PROXY_MAX_STREAMS_PER_SESSION": "1"}
    with (
        limited_proxy(sandbox, tmp_path_factory.mktemp("streams"), {"acme": plan()}, environ=most) as stack,
        stack.client() as client,
        watching(client, created(client)) as stream,
    ):
        next(stream)
        yield client


def stream_path(client: httpx.Client) -> str:
    return f"/fal/queue/{NEXT}/requests/{created(client)}/status/stream"


def test_a_limit_is_said_in_the_only_event(alice: httpx.Client) -> None:
    answer = alice.get(stream_path(alice), headers=TWO_LINES)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert answer.headers["x-fal-error-type"] == "rate_limited" and int(answer.headers["retry-after"]) >= 1
    name, data, end = answer.text.split("\n", 2)
    assert (name, end) == ("event: error", "\n")
    error = httpx.Response(200, text=data.removeprefix("data: ")).json()
    assert (error["error_type"], error["scope"]) == ("rate_limited", "session")
    assert error["status"] == f"rate_limited: {error['message']}"
    assert 'fal_proxy_refusals_total{error_type="rate_limited"} 1.0' in alice.get("/metrics").text


@pytest.mark.parametrize("accept", [ONE_LINE, [TWO_LINES[1], TWO_LINES[0]], TWO_LINES[:1], TWO_LINES[1:]])
def test_others_get_the_status(alice: httpx.Client, accept: list[tuple[str, str]]) -> None:
    with httpx.Client(base_url=alice.base_url, trust_env=False, verify=False, timeout=60) as bare:
        credential = ("authorization", alice.headers["authorization"])
        answer = bare.get(stream_path(alice), headers=[credential, *accept])
    assert_refused_with(answer, 429, "rate_limited", "session")


def test_refusals_of_which_an_address_has_a_budget_keep_their_status(alice: httpx.Client) -> None:
    unknown = f"/fal/queue/{NEXT}/requests/no-such-job/status/stream"
    with httpx.Client(base_url=alice.base_url, trust_env=False, verify=False, timeout=60) as stranger:
        assert_refused_with(stranger.get(unknown, headers=TWO_LINES), 401, "unauthenticated")
