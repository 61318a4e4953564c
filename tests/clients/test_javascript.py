"""The published JavaScript clients in Node, with nothing set but the proxy's URL and the session."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clients.driver import Driver, driving
from tests.clients.expectations import (
    ALL_LOGS,
    ALL_STATES,
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
    states,
)
from tests.clients.install import HERE, NODE
from tests.server.commands import PLAINLY
from tests.support.limited import meanwhile
from tests.support.stack import TTL_SECONDS, Stack
from tests.support.waiting import wait_until

pytestmark = pytest.mark.tools

NEW = ["client-1.10.1", "client-1.6.2", "client-1.2.3"]
OLD = ["serverless-client-0.15.0", "serverless-client-0.10.4"]
#: 0.10.4 cannot cancel, cannot watch a status stream, and streams only past the proxy.
ALL_BUT_OLDEST = [*NEW, OLD[0]]
UPLOAD = {"path": str(PICTURE), "type": "image/png"}

newest = pytest.mark.parametrize("client", NEW[:1], indirect=True)
all_but_oldest = pytest.mark.parametrize("client", ALL_BUT_OLDEST, indirect=True)


@pytest.fixture(scope="module", params=[*NEW, *OLD])
def client(request: pytest.FixtureRequest, shared_stack: Stack) -> Iterator[Driver]:
    command = ["node", str(HERE / "node" / "scenarios.mjs"), str(NODE), request.param]
    usual = {
        "proxyUrl": f"{shared_stack.url}/api/fal/proxy",
        "session": shared_stack.token(ttl_seconds=TTL_SECONDS),
        "endpoint": ENDPOINT,
    }
    with driving(request.param, command, environment(), **usual) as driver:
        yield driver


def test_run(client: Driver) -> None:
    result = client.outcome("run", input=asked())
    assert describes_the_picture(result["output"])
    assert client.name in OLD or result["requestId"]


def test_session_in_a_header_of_its_own(client: Driver) -> None:
    assert describes_the_picture(client.outcome("run", input=asked(), sessionAs="header")["output"])


def test_submit_status_result(client: Driver) -> None:
    outcome = client.outcome("submitStatusResult", input=asked(SLOWLY))
    assert outcome["submitted"]["status"] == "IN_QUEUE"
    assert outcome["submitted"]["queue_position"] >= 0
    assert states(outcome["seen"]) == ALL_STATES
    assert messages(outcome["seen"][-1]) == ALL_LOGS
    assert outcome["seen"][-1]["metrics"]["inference_time"] > 0
    assert describes_the_picture(outcome["result"]["output"])
    assert client.name in OLD or outcome["result"]["requestId"] == outcome["submitted"]["request_id"]


def test_subscribe_polling(client: Driver) -> None:
    outcome = client.outcome("subscribe", input=asked(SLOWLY), mode="polling", logs=True)
    assert describes_the_picture(outcome["output"])
    assert states(outcome["updates"]) == ALL_STATES
    assert {update["request_id"] for update in outcome["updates"]} == set(outcome["queued"])
    assert messages(outcome["updates"][-1]) == ALL_LOGS


@all_but_oldest
def test_subscribe_streaming(client: Driver) -> None:
    outcome = client.outcome("subscribe", input=asked(SLOWLY), mode="streaming", logs=True)
    assert describes_the_picture(outcome["output"])
    assert states(outcome["updates"]) == ALL_STATES
    # This mode adds up what each event brings: a log line that came twice would be here twice.
    assert messages(outcome["updates"][-1]) == ALL_LOGS


@all_but_oldest
@pytest.mark.parametrize("mode", ["polling", "streaming"])
def test_no_logs_unless_asked_for(client: Driver, mode: str) -> None:
    updates = client.outcome("subscribe", input=asked(), mode=mode, logs=False)["updates"]
    assert updates[-1]["status"] == "COMPLETED"
    assert not any(update.get("logs") for update in updates)


@all_but_oldest
def test_stream(client: Driver) -> None:
    outcome = client.outcome("stream", input=asked())
    assert describes_the_picture(outcome["last"]["output"])
    assert outcome["last"]["partial"] is False
    assert grows([event["output"] for event in outcome["heard"]])
    assert outcome["heard"][-1] == outcome["last"]
    if client.name in NEW[:2]:
        assert outcome["requestId"]
        assert outcome["events"][-1] == outcome["last"]


@pytest.mark.parametrize("client", [NEW[2], OLD[0]], indirect=True)
def test_loops_of_old_clients_see_the_last_event(client: Driver) -> None:
    """They take one event each 16 ms, and drop what they have not taken when the connection ends.

    So they need an end that comes a while after the last event; on a busy machine they may be late all the same, but
    not time after time.
    """
    slower_than_the_loop = asked("[[pace words_per_second=2]]", max_tokens=4)
    outcomes = (client.outcome("stream", input=slower_than_the_loop) for _ in range(5))
    assert any(outcome["events"][-1] == outcome["last"] for outcome in outcomes), "the last event was lost each time"


@all_but_oldest
def test_cancel(client: Driver) -> None:
    outcome = client.outcome("cancel", input=asked(HELD))
    assert outcome["status"]["status"] == "COMPLETED"
    assert outcome["status"]["error_type"] == "client_cancelled"
    assert (outcome["result"]["class"], outcome["result"]["status"]) == ("ApiError", 499)


@all_but_oldest
def test_cancel_too_late(client: Driver) -> None:
    error = client.error("cancelCompleted", input=asked())
    assert (error["class"], error["status"]) == ("ApiError", 400)
    assert error["body"]["status"] == "ALREADY_COMPLETED"


def test_upload_and_its_url(client: Driver, stack: Stack) -> None:
    stack.sandbox.forget()
    outcome = client.outcome("upload", input=asked(), **UPLOAD)
    assert describes_the_picture(outcome["output"])
    (run,) = [request for request in stack.sandbox.requests() if request["host"] == "run"]
    assert run["json"]["image_url"] == outcome["url"]


@newest
def test_a_start_timeout_and_wishes_for_files(client: Driver, stack: Stack) -> None:
    stack.sandbox.forget()
    storage = {"expiresIn": 60, "initialAcl": {"default": "forbid"}}
    options = {"startTimeout": 10 / 3, "storageSettings": storage}
    assert describes_the_picture(client.outcome("run", input=asked(), options=options)["output"])
    (run,) = stack.sandbox.requests()
    headers = dict(run["headers"])
    assert headers["x-fal-request-timeout"] == "3.3333333333333335"
    assert headers["x-fal-object-lifecycle-preference"] == (
        '{"expiration_duration_seconds":60,"initial_acl":{"default":"forbid"}}'
    )


@pytest.mark.parametrize("client", NEW, indirect=True)
@pytest.mark.parametrize("priority", ["normal", "low"])
def test_priority(client: Driver, stack: Stack, priority: str) -> None:
    stack.sandbox.forget()
    options = {"priority": priority} if priority != "normal" else {}
    client.outcome("subscribe", input=asked(), mode="polling", logs=False, options=options)
    (submit,) = [one for one in stack.sandbox.requests() if one["method"] == "POST"]
    assert dict(submit["headers"])["x-fal-queue-priority"] == priority


@newest
def test_a_job_that_does_not_start_in_time(client: Driver) -> None:
    """The client repeats a 504 unless it says that the time was the caller's own."""
    long_queue = asked("[[pace queue_positions=50 seconds_per_position=600]]")
    options = {"startTimeout": 1.5}
    error = client.error("subscribe", input=long_queue, mode="polling", logs=False, options=options)
    assert (error["status"], error["error_type"], error["timeout_type"]) == (504, "request_timeout", "user")


@all_but_oldest
def test_a_client_that_waits_no_longer_cancels_its_job(client: Driver, stack: Stack) -> None:
    stack.sandbox.forget()
    error = client.error("subscribe", input=asked(HELD), mode="polling", logs=False, options={"timeout": 500})
    assert "timed out" in error["message"]
    wait_until(lambda: "PUT" in [one["method"] for one in stack.sandbox.requests()], "the job is not cancelled")


@newest
def test_a_private_file_is_private(client: Driver) -> None:
    def status(decision: str) -> int:
        lifecycle = {"initialAcl": {"default": decision}}
        url = client.outcome("uploadWithLifecycle", **UPLOAD, lifecycle=lifecycle)["url"]
        return httpx.get(url, **PLAINLY).status_code

    assert [status(decision) for decision in ("forbid", "hide", "allow")] == [403, 404, 200]


def test_uploads_of_any_size(client: Driver, stack: Stack, tmp_path: Path) -> None:
    session = stack.token(tenant="studio")
    for size in SIZES + (LARGE_SIZES if client.name in NEW else ()):
        path = picture_of(tmp_path, size)
        stack.sandbox.forget()
        outcome = client.outcome("upload", input=asked(), path=str(path), type="image/png", session=session)
        assert describes(outcome["output"], path)
        sent = [request["body_size"] for request in stack.sandbox.requests() if request["method"] == "PUT"]
        # Above 90 MiB in parts of 10 MiB.
        assert sum(sent) == size and len(sent) == (1 if size < 90 * 2**20 else -(-size // (10 * 2**20)))


def test_file_in_the_input_is_uploaded(client: Driver, stack: Stack) -> None:
    stack.sandbox.forget()
    assert describes_the_picture(client.outcome("blobInInput", input=asked(), **UPLOAD)["output"])
    (submit,) = [r for r in stack.sandbox.requests() if (r["host"], r["method"]) == ("queue", "POST")]
    assert not submit["json"]["image_url"].startswith("data:")


@pytest.mark.parametrize("client", OLD[1:], indirect=True)
def test_oldest_client_uploads_data_uris_by_itself(client: Driver, stack: Stack) -> None:
    stack.sandbox.forget()
    assert describes_the_picture(client.outcome("run", input=asked())["output"])
    hosts = [request["host"] for request in stack.sandbox.requests()]
    assert hosts == ["rest", "cdn", "run", "cdn"] or hosts == ["rest", "cdn", "run"]


@pytest.mark.parametrize("scenario", ["run", "subscribe", "stream"])
def test_wrong_input(client: Driver, stack: Stack, scenario: str) -> None:
    if scenario == "stream" and client.name == OLD[1]:
        scenario = "submitStatusResult"
    stack.sandbox.forget()
    error = client.error(scenario, input=asked(max_tokens="many", image_url="https://example.com/cat.png"))
    assert (error["class"], error["status"], error["fields"]) == ("ValidationError", 422, ["max_tokens"])
    assert error["isValidationError"] and error["isApiError"]
    assert error["error_type"] == "invalid_input"
    assert error["message"].startswith("max_tokens: ")
    assert stack.sandbox.requests() == []


@pytest.mark.parametrize("scenario", ["run", "subscribe"])
def test_input_that_the_model_refuses(client: Driver, scenario: str) -> None:
    error = client.error(scenario, input=asked(image_url=BROKEN_PICTURE))
    assert (error["class"], error["status"], error["fields"]) == ("ValidationError", 422, ["image_url"])
    # The others know the ids of results, and of no errors.
    assert client.name != NEW[0] or error["request_id"]


REFUSALS = {
    "no-session": ({"session": None}, 401, "unauthenticated"),
    "not-a-session": ({"session": "nonsense"}, 401, "unauthenticated"),
    "endpoint-not-on-the-list": ({"endpoint": "fal-ai/flux/dev"}, 403, "endpoint_not_allowed"),
}


@pytest.mark.parametrize("scenario", ["run", "subscribe", "stream"])
@pytest.mark.parametrize("refusal", REFUSALS)
def test_refusal(client: Driver, stack: Stack, scenario: str, refusal: str) -> None:
    if scenario == "stream" and client.name == OLD[1]:
        scenario = "submitStatusResult"
    wrong, status, error_type = REFUSALS[refusal]
    stack.sandbox.forget()
    error = client.error(scenario, input=asked(image_url="https://example.com/cat.png"), **wrong)
    assert_refusal(error, status, error_type)
    assert stack.sandbox.requests() == []


def test_expired_session(client: Driver, stack: Stack) -> None:
    session = stack.token(ttl_seconds=60)
    assert client.outcome("run", input=asked(), session=session)
    stack.clock.advance(61)
    assert_refusal(client.error("run", input=asked(), session=session), 401, "session_expired")


@all_but_oldest
@pytest.mark.parametrize("mode", ["polling", "streaming"])
@pytest.mark.parametrize("session_as", ["credentials", "function", "header"])
def test_a_job_that_outlives_its_session_is_read(client: Driver, stack: Stack, session_as: str, mode: str) -> None:
    """With the very same session, which expires while the client waits, and runs nothing any more."""
    session = stack.token(ttl_seconds=60)
    options = {"mode": mode, "logs": True, "session": session, "sessionAs": session_as}
    with meanwhile(lambda: client.outcome("subscribe", input=asked(HELD), **options), stack.sandbox) as (job, request):
        wait_until(lambda: is_in_progress(stack, request), "the job does not begin")
        stack.clock.advance(60)
        stack.sandbox.move_job(request, "COMPLETED")
        assert describes_the_picture(job.result(60)["output"])
    assert_refusal(client.error("run", input=asked(), session=session), 401, "session_expired")
    stack.clock.advance(600)
    assert_refusal(client.error("status", requestId=request, session=session), 401, "session_expired")


@all_but_oldest
@pytest.mark.parametrize("session_as", ["function", "header"])
def test_a_session_is_renewed_while_its_job_runs(client: Driver, stack: Stack, session_as: str) -> None:
    """The app puts the renewed session where the client looks for one at each request."""
    first = stack.token(ttl_seconds=1200)
    options = {"session": first, "sessionAs": session_as}
    stack.clock.advance(1100)
    before = facts_given(stack)
    ask = partial(client.outcome, "subscribeAndRenew", input=asked(HELD), **options)
    with meanwhile(ask, stack.sandbox) as (job, request):
        wait_until(lambda: facts_given(stack) > before, "the session is not renewed")
        # The first session has expired then, and its grace period is over.
        stack.clock.advance(800)
        stack.sandbox.move_job(request, "COMPLETED")
        outcome = job.result(60)
    assert describes_the_picture(outcome["output"])
    assert_refusal(client.error("status", requestId=request, session=first), 401, "session_expired")
    outcome = client.outcome("run", input=asked(), session=outcome["session"], sessionAs=session_as)
    assert describes_the_picture(outcome["output"])


def facts_given(stack: Stack) -> float:
    """The number of successful calls of `/v1/session`."""
    with stack.client("") as operator:
        lines = operator.get("/metrics").text.splitlines()
    wanted = 'fal_proxy_requests_total{status="200",surface="/v1/session"}'
    return sum(float(line.split()[-1]) for line in lines if line.startswith(wanted))


def is_in_progress(stack: Stack, request: str) -> bool:
    return any(job["id"] == request and job["status"] == "IN_PROGRESS" for job in stack.sandbox.jobs())


def test_endpoint_that_the_session_leaves_out(client: Driver, stack: Stack) -> None:
    session = stack.token(endpoints=["fal-ai/llavav15-13b"])
    assert_refusal(client.error("run", input=asked(), session=session), 403, "endpoint_not_allowed")


def test_job_of_another_caller(client: Driver, stack: Stack) -> None:
    job = client.outcome("submitStatusResult", input=asked())["submitted"]["request_id"]
    for scenario in ("status", "result"):
        error = client.error(scenario, requestId=job, session=stack.token("mallory"))
        assert_refusal(error, 404, "not_found")
        assert error["body"]["status"] == "NOT_FOUND"


@all_but_oldest
def test_status_stream_of_another_caller(client: Driver, stack: Stack) -> None:
    job = client.outcome("submitStatusResult", input=asked())["submitted"]["request_id"]
    error = client.error("streamStatus", requestId=job, session=stack.token("mallory"))
    assert_refusal(error, 404, "not_found")


def test_streaming_past_the_proxy_is_refused(client: Driver, stack: Stack) -> None:
    """`connectionMode: "client"`, and any stream of 0.10.4, first ask for a token that fal itself would take."""
    stack.sandbox.forget()
    picture = "https://example.com/cat.png"
    error = client.error("stream", input=asked(image_url=picture), connectionMode="client")
    assert_refusal(error, 400, "bad_target")
    assert stack.sandbox.requests() == []


def assert_refusal(error: dict[str, Any], status: int, error_type: str) -> None:
    assert (error["class"], error["isApiError"]) == ("ApiError", True)
    assert (error["status"], error["error_type"]) == (status, error_type)
    # What an app shows: the proxy's sentence, not the bare words of HTTP.
    assert error["message"] == error["body"]["detail"] == error["body"]["message"]
    assert error["body"]["request_id"]
