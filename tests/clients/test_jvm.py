"""The published client for the JVM, with nothing set but the proxy's URL and the session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients.driver import Driver, driving
from tests.clients.expectations import (
    ALL_LOGS,
    ALL_STATES,
    BROKEN_PICTURE,
    ENDPOINT,
    HELD,
    PICTURE,
    SIZES,
    SLOWLY,
    asked,
    describes,
    describes_the_picture,
    environment,
    messages,
    picture_of,
    states,
)
from tests.clients.install import JVM
from tests.routes.jobs import created, watching
from tests.support.limited import limited_proxy, plan
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack

pytestmark = pytest.mark.tools


@pytest.fixture(scope="module")
def client(shared_stack: Stack) -> Iterator[Driver]:
    # Small and quick to start: the scenarios wait for the network, not for the JIT.
    command = ["java", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", f"{JVM}/build/classes:{JVM}/lib/*"]
    usual = {"proxyUrl": f"{shared_stack.url}/api/fal/proxy", "session": shared_stack.token(), "endpoint": ENDPOINT}
    with driving("fal-client-0.7.1", [*command, "scenarios.Main"], environment(), **usual) as driver:
        yield driver


def test_run(client: Driver) -> None:
    result = client.outcome("run", input=asked())
    assert describes_the_picture(result["output"])
    assert result["requestId"]


def test_submit_status_result(client: Driver) -> None:
    outcome = client.outcome("submitStatusResult", input=asked(SLOWLY))
    assert outcome["submitted"]["queue_position"] >= 0
    assert states(outcome["seen"]) == ALL_STATES
    assert messages(outcome["seen"][-1]) == ALL_LOGS
    assert {log["level"] for log in outcome["seen"][-1]["logs"]} == {"INFO"}
    assert describes_the_picture(outcome["result"]["output"])
    assert outcome["result"]["requestId"] == outcome["submitted"]["request_id"]


def test_subscribe(client: Driver) -> None:
    outcome = client.outcome("subscribe", input=asked(SLOWLY), logs=True)
    assert describes_the_picture(outcome["output"])
    assert states(outcome["updates"]) == ALL_STATES
    assert outcome["updates"][-1]["request_id"] == outcome["requestId"]
    # Each event of the stream brings what is new since the one before.
    assert [message for update in outcome["updates"] if "logs" in update for message in messages(update)] == ALL_LOGS


def test_no_logs_unless_asked_for(client: Driver) -> None:
    updates = client.outcome("subscribe", input=asked(), logs=False)["updates"]
    assert updates[-1]["status"] == "COMPLETED"
    assert not any(update.get("logs") for update in updates)


def test_upload_and_its_url(client: Driver, stack: Stack) -> None:
    stack.sandbox.forget()
    outcome = client.outcome("upload", input=asked(), path=str(PICTURE), type="image/png")
    assert describes_the_picture(outcome["output"])
    (run,) = [request for request in stack.sandbox.requests() if request["host"] == "run"]
    assert run["json"]["image_url"] == outcome["url"]


@pytest.mark.parametrize("size", SIZES)
def test_uploads_of_any_size(client: Driver, tmp_path: Path, size: int) -> None:
    path = picture_of(tmp_path, size)
    outcome = client.outcome("upload", input=asked(), path=str(path), type="image/png")
    assert describes(outcome["output"], path)


REFUSALS: dict[str, tuple[dict[str, Any], int]] = {
    "wrong-input": ({"input": asked(max_tokens="many")}, 422),
    "no-session": ({"session": None}, 401),
    "not-a-session": ({"session": "nonsense"}, 401),
    "endpoint-not-on-the-list": ({"endpoint": "fal-ai/flux/dev"}, 403),
}


@pytest.mark.parametrize("scenario", ["run", "subscribe", "submitStatusResult"])
@pytest.mark.parametrize("refusal", REFUSALS)
def test_refusal(client: Driver, stack: Stack, scenario: str, refusal: str) -> None:
    wrong, status = REFUSALS[refusal]
    stack.sandbox.forget()
    assert_refusal(client.error(scenario, **{"input": asked(), "logs": False} | wrong), status)
    assert stack.sandbox.requests() == []


@pytest.mark.parametrize("scenario", ["run", "subscribe"])
def test_input_that_the_model_refuses(client: Driver, scenario: str) -> None:
    error = client.error(scenario, input=asked(image_url=BROKEN_PICTURE), logs=True)
    assert (error["class"], error["message"]) == ("FalException", "Request failed with code: 422")
    assert error["request_id"]


def test_expired_session(client: Driver, stack: Stack) -> None:
    session = stack.token(ttl_seconds=60)
    assert client.outcome("run", input=asked(), session=session)
    stack.clock.advance(61)
    assert_refusal(client.error("run", input=asked(), session=session), 401)


def test_session_that_is_renewed_in_the_middle_of_a_job(client: Driver, stack: Stack) -> None:
    """The client asks for its credentials at each request, as the recipe for Kotlin relies on."""
    first, second = stack.token(ttl_seconds=60), stack.token()
    stack.clock.advance(61)
    assert_refusal(client.error("run", input=asked(), sessions=[first, second]), 401)
    outcome = client.outcome("subscribe", input=asked(), logs=True, sessions=[second, stack.token(), stack.token()])
    assert describes_the_picture(outcome["output"])
    error = client.error("submitStatusResult", input=asked(), sessions=[second, "nonsense"])
    assert_refusal(error, 401)
    assert [one["host"] for one in stack.sandbox.requests() if one["method"] == "POST"] == ["queue", "queue"]


def test_job_of_another_caller(client: Driver, stack: Stack) -> None:
    job = client.outcome("submitStatusResult", input=asked())["submitted"]["request_id"]
    for scenario in ("status", "result"):
        assert_refusal(client.error(scenario, requestId=job, session=stack.token("mallory")), 404)


def test_refused_status_stream_is_never_answered(client: Driver, stack: Stack) -> None:
    """The client's own flaw: it meets the refusal with a NullPointerException on a thread of its own, and waits on."""
    job = client.outcome("submitStatusResult", input=asked())["submitted"]["request_id"]
    other = {"requestId": job, "session": stack.token("mallory"), "patience": 2}
    assert client.error("streamStatus", **other)["class"] == "hung"


def test_a_status_stream_that_a_limit_refuses_is_an_error(
    client: Driver, sandbox: SandboxControl, tmp_path: Path
) -> None:
    """The client would wait for ever for a stream that is answered with a 429."""
    environ = {"PROXY_MAX_STREAMS_PER_SESSION": "1"}
    with limited_proxy(sandbox, tmp_path, {"acme": plan()}, environ=environ) as own:
        session = own.token()
        with own.client(session) as page, watching(page, created(page, HELD)) as stream:
            assert next(stream)["event"] == "status"
            elsewhere = {"proxyUrl": f"{own.url}/api/fal/proxy", "session": session}
            error = client.error("subscribe", input=asked(), logs=False, **elsewhere)
    assert error["class"] == "FalException"
    assert "rate_limited: " in error["message"], error["message"]


def assert_refusal(error: dict[str, Any], status: int) -> None:
    # The client reports only the status of a refusal: it reads the body and drops it.
    assert (error["class"], error["message"]) == ("FalException", f"Request failed with code: {status}")
