"""queue.fal.run as the sandbox speaks it: every status, header and body."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from typing import Any

import httpx
import pytest

from proxy.sandbox.app import create_sandbox
from tests.sandbox.conftest import CHELSEA, FAST, Fal, documents
from tests.support.servers import running

HELD = "[[pace hold=IN_QUEUE]]"
RUNNING = "[[pace hold=IN_PROGRESS queue_positions=0]]"


def test_a_submit_answers_with_the_place_in_the_queue_and_the_urls(fal: Fal) -> None:
    answer = fal.client.post("/queue/fal-ai/llava-next", json=fal.input(f"{HELD} [[pace queue_positions=4]]"))
    job = answer.json()
    url = f"{fal.url}/queue/fal-ai/llava-next/requests/{job['request_id']}"
    assert answer.status_code == 200
    assert answer.headers["x-fal-request-id"] == job["request_id"]
    assert job == {
        "status": "IN_QUEUE",
        "request_id": job["request_id"],
        "response_url": url,
        "status_url": f"{url}/status",
        "cancel_url": f"{url}/cancel",
        "logs": None,
        "metrics": {},
        "queue_position": 3,
    }


def test_status_is_202_until_completed_and_200_then(fal: Fal) -> None:
    job = fal.submit(HELD)
    waiting = fal.client.get(job["status_url"])
    assert (waiting.status_code, waiting.json()) == (202, {**job, "queue_position": waiting.json()["queue_position"]})
    fal.move(job, state="IN_PROGRESS")
    running = fal.client.get(job["status_url"])
    assert (running.status_code, running.json()["status"]) == (202, "IN_PROGRESS")
    assert "queue_position" not in running.json()
    fal.move(job, state="finish")
    done = fal.client.get(job["status_url"])
    assert (done.status_code, done.json()["status"]) == (200, "COMPLETED")
    assert done.json()["metrics"]["inference_time"] >= 0
    assert "error" not in done.json()


def test_a_job_comes_to_its_end_by_itself(fal: Fal) -> None:
    assert fal.events(fal.submit())[-1]["status"] == "COMPLETED"


def test_the_result_is_the_models_own_answer(fal: Fal) -> None:
    job = fal.finished("What is [[pace run_seconds=0]] it?")
    for url in (job["response_url"], job["response_url"] + "/response", job["response_url"] + "/"):
        result = fal.client.get(url)
        assert result.status_code == 200
        assert result.headers["x-fal-request-id"] == job["request_id"]
        assert result.headers["x-fal-billable-units"] == "0"
        digest = hashlib.sha256(CHELSEA).hexdigest()[:16]
        assert result.json()["output"].endswith(f"sha256 {digest}. You asked: What is it?")
        assert result.json()["partial"] is False


@pytest.mark.parametrize("state", [HELD, RUNNING])
def test_an_early_result_is_refused(fal: Fal, state: str) -> None:
    result = fal.client.get(fal.submit(state)["response_url"])
    assert (result.status_code, result.json()) == (400, {"detail": "Request is still in progress"})


@pytest.mark.parametrize(
    ("logs", "are_on"),
    [("", False), ("?logs=0", False), ("?logs=false", False), ("?logs=1", True), ("?logs=true", True)],
)
def test_logs_are_null_unless_asked_for(fal: Fal, logs: str, are_on: bool) -> None:
    job = fal.finished()
    assert isinstance(fal.client.get(job["status_url"] + logs).json()["logs"], list if are_on else type(None))
    assert isinstance(fal.events(job, logs)[0]["logs"], list if are_on else type(None))


def _watch(fal: Fal, job: dict[str, Any], query: str = "") -> str:
    """The whole status stream of a held job that is let go as soon as the first event is here."""
    with fal.client.stream("GET", f"{job['status_url']}/stream{query}") as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        pieces = answer.iter_text()
        first = next(pieces)
        fal.move(job, state="go")
        return first + "".join(pieces)


def test_the_status_stream_carries_whole_status_objects_and_ends_after_completed(fal: Fal) -> None:
    job = fal.submit("[[pace queue_positions=1 hold=IN_QUEUE]]")
    text = _watch(fal, job)
    events = documents(text)
    assert text == "".join(f"data: {json.dumps(event, separators=(',', ':'))}\n\n" for event in events)
    assert [event["status"] for event in events] == ["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]
    assert events[0] == job
    assert events[-1] == fal.client.get(job["status_url"]).json()


def test_logs_are_cumulative_in_polls_and_incremental_in_streams(fal: Fal) -> None:
    job = fal.submit("[[pace queue_positions=1 hold=IN_QUEUE]]")
    streamed = [event["logs"] for event in documents(_watch(fal, job, "?logs=1"))]
    polled = fal.client.get(job["status_url"] + "?logs=1").json()["logs"]
    assert [len(lines) for lines in streamed] == [0, 1, 1, 1, 1]
    assert [line for lines in streamed for line in lines] == polled
    assert polled[0]["labels"] == {"level": "INFO", "source": "USER"}
    assert {"timestamp", "message", "level", "source"} <= set(polled[0])
    assert [line["timestamp"] for line in polled] == sorted(line["timestamp"] for line in polled)


def test_the_stream_of_a_finished_job_is_one_event(fal: Fal) -> None:
    assert [event["status"] for event in fal.events(fal.finished())] == ["COMPLETED"]


def test_an_idle_status_stream_pings_with_comments(fal: Fal) -> None:
    job = fal.submit("[[pace hold=IN_QUEUE queue_positions=1 ping_seconds=0.02]]")
    with fal.client.stream("GET", job["status_url"] + "/stream") as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        assert [next(lines) for _ in range(5)] == ["", ": ping", "", ": ping", ""]


def test_a_job_moved_by_hand_shows_in_an_open_stream(fal: Fal) -> None:
    job = fal.submit("[[pace hold=IN_QUEUE queue_positions=1]]")
    with fal.client.stream("GET", job["status_url"] + "/stream") as answer:
        lines = (json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: "))
        assert next(lines)["status"] == "IN_QUEUE"
        fal.move(job, state="IN_PROGRESS")
        assert next(lines)["status"] == "IN_PROGRESS"
        fal.move(job, state="go")
        assert [event["status"] for event in lines] == ["COMPLETED"]


@pytest.mark.parametrize(
    ("method", "operation"),
    [("GET", "status"), ("GET", "status/stream"), ("GET", ""), ("GET", "response"), ("PUT", "cancel")],
)
def test_unknown_jobs_and_other_apps_are_not_found(fal: Fal, method: str, operation: str) -> None:
    job = fal.submit(HELD)
    paths = [
        f"/queue/fal-ai/llava-next/requests/00000000-0000-0000-0000-000000000000/{operation}",
        f"/queue/fal-ai/llavav15-13b/requests/{job['request_id']}/{operation}",
    ]
    for path in paths:
        answer = fal.client.request(method, path.removesuffix("/"))
        assert (answer.status_code, answer.json()) == (404, {"status": "NOT_FOUND"})


@pytest.mark.parametrize("state", [HELD, RUNNING])
def test_a_cancelled_job_is_completed_with_an_error(fal: Fal, state: str) -> None:
    job = fal.submit(state)
    # Some clients send a JSON content type with no body.
    asked = fal.client.put(job["cancel_url"], headers={"content-type": "application/json"})
    assert (asked.status_code, asked.json()) == (202, {"status": "CANCELLATION_REQUESTED"})
    status = fal.client.get(job["status_url"])
    assert (status.status_code, status.json()["status"]) == (200, "COMPLETED")
    assert status.json()["error_type"] == "client_cancelled"
    result = fal.client.get(job["response_url"])
    assert (result.status_code, result.json()["error_type"]) == (499, "client_cancelled")
    again = fal.client.put(job["cancel_url"])
    assert (again.status_code, again.json()) == (400, {"status": "ALREADY_COMPLETED"})


def test_an_app_that_does_not_heed_a_cancel_finishes(fal: Fal) -> None:
    job = fal.submit(f"{RUNNING} [[pace heeds_cancel=no]]")
    assert fal.client.put(job["cancel_url"]).status_code == 202
    fal.move(job, state="go")
    assert fal.events(job)[-1].get("error") is None
    assert fal.client.get(job["response_url"]).status_code == 200


@pytest.mark.parametrize(
    ("changed", "loc", "type_"),
    [
        ({"prompt": None}, ["body", "prompt"], "type"),
        ({"image_url": ""}, ["body", "image_url"], "minlength"),
        ({"max_tokens": 10**9}, ["body", "max_tokens"], "maximum"),
        ({"image_url": "data:image/png;base64,AAAA"}, ["body", "image_url"], "image_load_error"),
        ({"image_url": "data:image/png;base64,%%%"}, ["body", "image_url"], "image_load_error"),
        ({"image_url": "https://example.com/a.png"}, ["body", "image_url"], "file_download_error"),
        ({"image_url": "http://127.0.0.1:1/a.png"}, ["body", "image_url"], "file_download_error"),
        ({"image_url": "http://10.0.0.1/a.png"}, ["body", "image_url"], "file_download_error"),
        ({"image_url": "http://[oops"}, ["body", "image_url"], "file_download_error"),
        ({"image_url": "file:///etc/passwd"}, ["body", "image_url"], "file_download_error"),
    ],
)
def test_bad_input_is_accepted_at_submit_and_refused_at_the_result(
    fal: Fal, changed: dict[str, Any], loc: list[str], type_: str
) -> None:
    job = fal.finished(**changed)
    status = fal.client.get(job["status_url"]).json()
    assert (status["status"], status["error"], status["error_type"]) == ("COMPLETED", "Invalid status code: 422", type_)
    assert status["metrics"] == {}
    result = fal.client.get(job["response_url"])
    (detail,) = result.json()["detail"]
    assert (result.status_code, detail["loc"], detail["type"]) == (422, loc, type_)
    assert detail["url"] == f"https://docs.fal.ai/errors/#{type_}"
    assert result.headers["x-fal-billable-units"] == "0"


def test_a_missing_field_is_named(fal: Fal) -> None:
    answer = fal.client.post("/queue/fal-ai/llava-next", json={"prompt": "?"})
    fal.move(answer.json(), state="finish")
    result = fal.client.get(answer.json()["response_url"])
    assert [detail["loc"] for detail in result.json()["detail"]] == [["body", "image_url"]]


@pytest.mark.parametrize("body", [b"", b"{", b"nonsense", b"{'a': 1}", b"\xff"])
def test_a_submit_that_is_no_json_fails_at_once(fal: Fal, body: bytes) -> None:
    answer = fal.client.post("/queue/fal-ai/llava-next", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error_type"]) == (400, "bad_request")
    assert answer.headers["x-fal-error-type"] == "bad_request"


def test_an_unknown_app_is_404(fal: Fal) -> None:
    answer = fal.client.post("/queue/fal-ai/llava-next-evil", json=fal.input())
    assert (answer.status_code, list(answer.json())) == (404, ["detail"])


def test_one_trailing_slash_is_accepted_and_two_are_not(fal: Fal) -> None:
    submitted = fal.client.post("/queue/fal-ai/llava-next/", json=fal.input(HELD))
    assert submitted.status_code == 200
    url = submitted.json()["status_url"]
    assert fal.client.get(f"{url}/?logs=1").status_code == 202
    assert fal.client.get(f"{url}//").status_code == 404
    assert fal.client.get(url.replace("/status", "/nonsense")).status_code == 404
    assert fal.client.post(url).status_code == 405
    assert fal.client.get("/queue/fal-ai/llava-next").status_code == 405


def test_fal_max_queue_length_refuses_when_more_are_waiting(fal: Fal) -> None:
    waiting = fal.submit(HELD)
    refused = fal.client.post("/queue/fal-ai/llava-next?fal_max_queue_length=0", json=fal.input())
    assert refused.status_code == 429
    assert fal.submit(HELD, "?fal_max_queue_length=100")["status"] == "IN_QUEUE"
    assert fal.client.post("/queue/fal-ai/llava-next?fal_max_queue_length=x", json=fal.input()).status_code == 400
    assert fal.client.get(waiting["status_url"]).status_code == 202


def test_a_job_that_cannot_start_in_time_ends_with_504(fal: Fal) -> None:
    body = fal.input("[[pace queue_positions=1000]]")
    submit = partial(fal.client.post, "/queue/fal-ai/llava-next", json=body)
    job = submit(headers={"x-fal-request-timeout": "0.01"}).json()
    assert fal.events(job)[-1]["error_type"] == "request_timeout"
    result = fal.client.get(job["response_url"])
    assert (result.status_code, result.headers["x-fal-request-timeout-type"]) == (504, "user")
    assert submit(headers={"x-fal-request-timeout": "soon"}).status_code == 400


@pytest.mark.parametrize(
    ("error_type", "status"),
    [("runner_disconnected", 503), ("startup_timeout", 504), ("internal_error", 500), ("generation_timeout", 504),
     ("content_policy_violation", 422)],
)  # fmt: skip
def test_a_run_can_fail_in_any_of_fals_ways(fal: Fal, error_type: str, status: int) -> None:
    job = fal.finished(f"[[fault fail={error_type}]]")
    assert fal.client.get(job["status_url"]).json()["error_type"] == error_type
    assert fal.client.get(job["response_url"]).status_code == status


def test_a_job_can_be_made_to_fail_or_vanish_by_hand(fal: Fal) -> None:
    job = fal.submit(HELD)
    fal.move(job, state="fail", error_type="runner_disconnected")
    result = fal.client.get(job["response_url"])
    assert (result.status_code, result.headers["x-fal-error-type"]) == (503, "runner_disconnected")
    fal.move(job, state="lose")
    assert fal.client.get(job["status_url"]).status_code == 404


def test_urls_start_with_the_base_that_was_given() -> None:
    base = "https://queue.example"
    with running(create_sandbox(timing=FAST, key="other:key", base_url=base)) as url:
        answer = httpx.post(
            f"{url}/queue/fal-ai/llava-next", json={}, headers={"authorization": "Key other:key"}, timeout=60
        )
    assert answer.json()["status_url"].startswith(f"{base}/queue/fal-ai/llava-next/requests/")
