"""The published Python client with no setting but other hosts: the host form, over TLS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clients.driver import Driver, driving
from tests.clients.expectations import (
    ALL_LOGS,
    BROKEN_PICTURE,
    ENDPOINT,
    HELD,
    LARGE_SIZES,
    PICTURE,
    SIZES,
    SLOWLY,
    asked,
    describes,
    describes_the_picture,
    environment,
    grows,
    messages,
    picture_of,
)
from tests.clients.install import HERE, PYTHON_VERSIONS, python_of
from tests.server.commands import PLAINLY
from tests.support.forward_proxy import ForwardProxy, forwarding
from tests.support.stack import Stack

pytestmark = pytest.mark.tools

OLDEST = PYTHON_VERSIONS[-1]
ALL_STATES = ["Queued", "InProgress", "Completed"]

#: The two faces of the client: the scenarios' names end alike.
both = pytest.mark.parametrize("face", ["", "_async"], ids=["sync", "async"])


@pytest.fixture(scope="module")
def forward_proxy() -> Iterator[ForwardProxy]:
    with forwarding() as proxy:
        yield proxy


@pytest.fixture(scope="module", params=PYTHON_VERSIONS)
def client(request: pytest.FixtureRequest, shared_tls_stack: Stack, forward_proxy: ForwardProxy) -> Iterator[Driver]:
    command = [str(python_of(request.param) / "bin" / "python"), str(HERE / "python" / "scenarios.py")]
    fal = shared_tls_stack.url.removeprefix("https://") + "/fal"
    hosts = {"FAL_RUN_HOST": f"{fal}/run", "FAL_QUEUE_RUN_HOST": f"{fal}/queue", "FAL_CDN_HOST": f"https://{fal}/cdn"}
    # The oldest makes the queue's host of the other, and that name leads nowhere but through the forward proxy.
    through = {"HTTPS_PROXY": forward_proxy.url} if request.param == OLDEST else {}
    variables = environment(SSL_CERT_FILE=str(shared_tls_stack.ca_file), **hosts, **through)
    usual = {"session": shared_tls_stack.token(), "endpoint": ENDPOINT}
    with driving(f"fal_client-{request.param}", command, variables, **usual) as driver:
        yield driver


def states(updates: list[dict[str, Any]]) -> list[str]:
    return sorted({update["state"] for update in updates}, key=ALL_STATES.index)


@both
def test_run(client: Driver, face: str) -> None:
    assert describes_the_picture(client.outcome(f"run{face}", input=asked())["output"])


@both
def test_submit_status_result(client: Driver, tls_stack: Stack, face: str) -> None:
    outcome = client.outcome(f"submit_status_result{face}", input=asked(SLOWLY))
    job = f"{tls_stack.url}/fal/queue/{ENDPOINT}/requests/{outcome['request_id']}"
    # The client follows these URLs, with the session: they must name the proxy.
    assert outcome["urls"] == [f"{job}/status", job, f"{job}/cancel"]
    assert states(outcome["seen"]) == ALL_STATES
    assert messages(outcome["seen"][-1]) == ALL_LOGS
    assert outcome["seen"][-1]["metrics"]["inference_time"] > 0
    assert describes_the_picture(outcome["result"]["output"])
    assert outcome["result_by_id"] == outcome["result"]


@pytest.mark.parametrize("client", PYTHON_VERSIONS[-1:], indirect=True)
def test_oldest_client_sends_jobs_to_the_queues_own_name(
    client: Driver, tls_stack: Stack, forward_proxy: ForwardProxy
) -> None:
    tls_stack.sandbox.forget()
    outcome = client.outcome("submit_status_result", input=asked())
    assert describes_the_picture(outcome["result"]["output"])
    assert f"queue.{tls_stack.url.removeprefix('https://')}" in forward_proxy.asked
    assert {one["host"] for one in tls_stack.sandbox.requests()} == {"queue"}


@both
def test_subscribe(client: Driver, face: str) -> None:
    outcome = client.outcome(f"subscribe{face}", input=asked(SLOWLY), logs=True)
    assert describes_the_picture(outcome["result"]["output"])
    assert len(outcome["queued"]) == 1
    assert states(outcome["updates"]) == ALL_STATES
    assert outcome["updates"][0]["position"] >= 0
    assert messages(outcome["updates"][-1]) == ALL_LOGS


@pytest.mark.parametrize("client", PYTHON_VERSIONS[:1], indirect=True)
def test_priority_and_start_timeout(client: Driver, tls_stack: Stack) -> None:
    tls_stack.sandbox.forget()
    client.outcome("submit_with_options", input=asked(), options={"priority": "low", "start_timeout": 30})
    (submit,) = [one for one in tls_stack.sandbox.requests() if one["method"] == "POST"]
    headers = dict(submit["headers"])
    assert (headers["x-fal-queue-priority"], headers["x-fal-request-timeout"]) == ("low", "30.0")
    long_queue = asked("[[pace queue_positions=50 seconds_per_position=600]]")
    error = client.error("result_of_submit_with_options", input=long_queue, options={"start_timeout": 1.5})
    assert (error["class"], error["status"]) == ("FalClientHTTPError", 504)
    assert error["error_type"] == "request_timeout"


@both
def test_no_logs_unless_asked_for(client: Driver, face: str) -> None:
    updates = client.outcome(f"subscribe{face}", input=asked(), logs=False)["updates"]
    assert updates[-1]["state"] == "Completed"
    assert not any(update.get("logs") for update in updates)


@both
def test_stream(client: Driver, face: str) -> None:
    events = client.outcome(f"stream{face}", input=asked())
    texts = [event["output"] for event in events]
    assert grows(texts) and describes_the_picture(texts[-1])
    assert events[-1]["partial"] is False


@both
def test_cancel(client: Driver, face: str) -> None:
    outcome = client.outcome(f"cancel{face}", input=asked(HELD))
    assert outcome["status"]["state"] == "Completed"
    # What the oldest has of a status does not say how the job ended.
    assert client.name.endswith(OLDEST) or outcome["status"]["error_type"] == "client_cancelled"
    assert (outcome["result"]["class"], outcome["result"]["status"]) == ("FalClientHTTPError", 499)


def test_picture_inside_the_request(client: Driver) -> None:
    result = client.outcome("encode_file", input=asked(), path=str(PICTURE))
    assert describes_the_picture(result["output"])


@both
def test_upload_and_its_url(client: Driver, tls_stack: Stack, face: str) -> None:
    assert_uploaded(client, tls_stack, f"upload{face}")


@pytest.mark.parametrize("client", PYTHON_VERSIONS[:-1], indirect=True)
def test_upload_by_signed_url(client: Driver, tls_stack: Stack) -> None:
    assert_uploaded(client, tls_stack, "upload_by_signed_url")


def assert_uploaded(client: Driver, tls_stack: Stack, scenario: str) -> None:
    tls_stack.sandbox.forget()
    outcome = client.outcome(scenario, input=asked(), path=str(PICTURE))
    assert describes_the_picture(outcome["result"]["output"])
    (run,) = [request for request in tls_stack.sandbox.requests() if request["host"] == "run"]
    assert run["json"]["image_url"] == outcome["url"]


@pytest.mark.parametrize("client", PYTHON_VERSIONS[:1], indirect=True)
@pytest.mark.parametrize("repository", ["fal_v3", "fal"])
def test_a_private_file_is_private(client: Driver, repository: str) -> None:
    def status(decision: str) -> int:
        question = {"path": str(PICTURE), "decision": decision, "repository": repository}
        return httpx.get(client.outcome("upload_with_an_access_list", **question)["url"], **PLAINLY).status_code

    assert [status(decision) for decision in ("forbid", "hide", "allow")] == [403, 404, 200]


@both
def test_uploads_of_any_size(client: Driver, tls_stack: Stack, tmp_path: Path, face: str) -> None:
    session = tls_stack.token(tenant="studio")
    for size in (*SIZES, *LARGE_SIZES):
        path = picture_of(tmp_path, size)
        tls_stack.sandbox.forget()
        outcome = client.outcome(f"upload{face}", input=asked(), path=str(path), session=session)
        assert describes(outcome["result"]["output"], path)
        sent = [request["body_size"] for request in tls_stack.sandbox.requests() if request["method"] == "PUT"]
        # Above 100 MiB in parts of 10 MiB, ten at a time.
        assert sum(sent) == size and len(sent) == (1 if size < 100 * 2**20 else -(-size // (10 * 2**20)))
        # Where fal looks, the URL is fal's own.
        (run,) = [request for request in tls_stack.sandbox.requests() if request["host"] == "run"]
        assert run["json"]["image_url"].startswith(tls_stack.sandbox.url)


def test_an_upload_that_the_plan_does_not_allow(client: Driver, tls_stack: Stack) -> None:
    tls_stack.sandbox.forget()
    error = client.error("upload_that_fails", path=str(PICTURE), type="image/svg+xml")
    assert_refusal(error, 415, "unsupported_media_type")
    assert tls_stack.sandbox.requests() == []


@both
@pytest.mark.parametrize("scenario", ["run", "subscribe"])
def test_wrong_input(client: Driver, tls_stack: Stack, face: str, scenario: str) -> None:
    tls_stack.sandbox.forget()
    error = client.error(scenario + face, input=asked(max_tokens="many"), logs=False)
    assert (error["class"], error["status"], error["error_type"]) == ("FalClientHTTPError", 422, "invalid_input")
    assert [problem["loc"] for problem in error["message"]] == [["body", "max_tokens"]]
    assert tls_stack.sandbox.requests() == []


@both
@pytest.mark.parametrize("scenario", ["run", "subscribe"])
def test_input_that_the_model_refuses(client: Driver, face: str, scenario: str) -> None:
    error = client.error(scenario + face, input=asked(image_url=BROKEN_PICTURE), logs=False)
    assert (error["class"], error["status"]) == ("FalClientHTTPError", 422)
    assert [problem["loc"] for problem in error["message"]] == [["body", "image_url"]]
    assert error["request_id"]


REFUSALS = {
    "not-a-session": ({"session": "nonsense"}, 401, "unauthenticated"),
    "endpoint-not-on-the-list": ({"endpoint": "fal-ai/flux/dev"}, 403, "endpoint_not_allowed"),
}


@both
@pytest.mark.parametrize("scenario", ["run", "subscribe"])
@pytest.mark.parametrize("refusal", REFUSALS)
def test_refusal(client: Driver, tls_stack: Stack, face: str, scenario: str, refusal: str) -> None:
    wrong, status, error_type = REFUSALS[refusal]
    tls_stack.sandbox.forget()
    error = client.error(scenario + face, input=asked(), logs=False, **wrong)
    assert_refusal(error, status, error_type)
    assert tls_stack.sandbox.requests() == []


def test_no_session(client: Driver, tls_stack: Stack) -> None:
    """Without FAL_KEY the client itself refuses, before any request."""
    tls_stack.sandbox.forget()
    assert client.error("run", input=asked(), session=None)["class"] == "MissingCredentialsError"
    assert tls_stack.sandbox.requests() == []


@both
def test_expired_session(client: Driver, tls_stack: Stack, face: str) -> None:
    session = tls_stack.token(ttl_seconds=60)
    assert client.outcome(f"run{face}", input=asked(), session=session)
    tls_stack.clock.advance(61)
    assert_refusal(client.error(f"run{face}", input=asked(), session=session), 401, "session_expired")


@pytest.mark.parametrize("client", PYTHON_VERSIONS[:1], indirect=True)
@pytest.mark.parametrize("scenario", ["realtime", "realtime_async"])
def test_realtime_is_refused(client: Driver, tls_stack: Stack, scenario: str) -> None:
    """It begins with a token by which fal would count none of its calls."""
    tls_stack.sandbox.forget()
    error = client.error(scenario)
    assert_refusal(error, 400, "bad_target")
    assert "no realtime connections" in error["message"]
    assert tls_stack.sandbox.requests() == []


@both
def test_refused_stream(client: Driver, face: str) -> None:
    """The client checks a stream's media type only: the app learns that it is not a stream, but not why."""
    error = client.error(f"stream{face}", input=asked(), session="nonsense")
    assert error["class"] == "SSEError"
    assert "application/json" in error["message"]


def test_job_of_another_caller(client: Driver, tls_stack: Stack) -> None:
    job = client.outcome("submit_status_result", input=asked())["request_id"]
    for scenario in ("status", "result"):
        error = client.error(scenario, request_id=job, session=tls_stack.token("mallory"))
        assert_refusal(error, 404, "not_found")


def assert_refusal(error: dict[str, Any], status: int, error_type: str) -> None:
    assert error["class"] == "FalClientHTTPError"
    assert (error["status"], error["error_type"]) == (status, error_type)
    assert isinstance(error["message"], str) and error["message"].endswith(".")
