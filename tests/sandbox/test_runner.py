"""fal.run as the sandbox speaks it: blocking runs, model streams, and the runner behind every other method."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from typing import Any

import httpx
import pytest

from proxy.sandbox.app import SANDBOX_KEY
from tests.sandbox.conftest import CHELSEA, PICTURES, Fal, documents
from tests.support.waiting import wait_until

HELD = "[[pace hold=IN_PROGRESS]]"


def test_a_run_answers_from_the_very_picture(fal: Fal) -> None:
    answer = fal.run("Which animal is this?")
    assert answer.status_code == 200
    assert len(answer.headers["x-fal-request-id"]) == 36
    assert answer.headers["x-fal-billable-units"] == "0.02"
    assert answer.json() == {
        "output": "A PNG picture of 451 × 300 pixels, mostly reddish brown (#946f57), "
        "of medium brightness (119 of 255), "
        f"sha256 {hashlib.sha256(CHELSEA).hexdigest()[:16]}. You asked: Which animal is this?",
        "partial": False,
    }


def test_every_endpoint_answers_with_the_fields_of_its_own(fal: Fal) -> None:
    fields = {endpoint: set(fal.run(endpoint=f"fal-ai/{endpoint}").json()) for endpoint in
              ("llavav15-13b", "llava-next", "llava-llama3-8b-v11")}  # fmt: skip
    assert fields == {
        "llavav15-13b": {"output", "partial", "stats"},
        "llava-next": {"output", "partial"},
        "llava-llama3-8b-v11": {"output"},
    }


@pytest.mark.parametrize("spelling", ["max_tokens", "max_new_tokens"])
def test_the_answer_is_cut_to_the_asked_tokens(fal: Fal, spelling: str) -> None:
    answer = fal.run("one two", "fal-ai/llavav15-13b", **{spelling: 5}).json()
    assert answer["output"] == "A PNG picture of 451"
    assert answer["stats"] == {"num_input_tokens": 578, "num_output_tokens": 5}


def test_a_long_answer_is_cut_to_the_endpoints_default(fal: Fal) -> None:
    assert len(fal.run("word " * 500).json()["output"].split()) == 64


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_picture_is_fetched_from_the_loopback(fal: Fal, host: str) -> None:
    path = fal.client.post("/rest/storage/upload/initiate", json={"content_type": "image/jpeg", "file_name": "r.jpg"})
    rocket = (PICTURES / "rocket.jpg").read_bytes()
    httpx.put(path.json()["upload_url"], content=rocket, timeout=60)
    # Another path than the sandbox's own files have would not be found in memory: it is this one, asked for over http.
    url = path.json()["file_url"].replace("127.0.0.1", host).replace("/files/", "/%66iles/")
    assert "A JPEG picture of 640 × 427" in fal.run(image_url=url).json()["output"]
    assert [r["method"] for r in fal.requests() if r["host"] == "cdn"] == ["PUT", "GET"]


@pytest.mark.parametrize("body", [b"", b"{"])
def test_a_run_that_is_no_json_is_422(fal: Fal, body: bytes) -> None:
    answer = fal.client.post("/run/fal-ai/llava-next", content=body)
    assert (answer.status_code, answer.json()["detail"][0]["type"]) == (422, "json_invalid")


@pytest.mark.parametrize("path", ["", "/stream"])
@pytest.mark.parametrize("wrong", [{"prompt": 1}, {"image_url": "data:,no picture"}, {"max_tokens": "many"}])
def test_a_refused_input_is_plain_json_422_on_run_and_stream_alike(fal: Fal, path: str, wrong: dict[str, Any]) -> None:
    answer = fal.client.post(f"/run/fal-ai/llava-next{path}", json=fal.input() | wrong)
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/json")
    assert answer.json()["detail"][0]["loc"] == ["body", next(iter(wrong))]
    assert answer.headers["x-fal-billable-units"] == "0"


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH"])
def test_whatever_the_method_the_runner_answers(fal: Fal, method: str) -> None:
    answer = fal.client.request(method, "/run/fal-ai/llava-next/health")
    assert (answer.status_code, answer.json()["method"]) == (200, method)


def test_the_runner_knows_only_its_own_paths(fal: Fal) -> None:
    answer = fal.client.get("/run/fal-ai/llava-next/admin/x?y=1")
    assert (answer.status_code, answer.json()) == (404, {"detail": "Path /admin/x not found"})
    assert fal.client.get("/run/fal-ai/llava-next").status_code == 405
    assert fal.client.post("/run/fal-ai/flux", json={}).status_code == 404


@pytest.mark.parametrize("path", ["/run/fal-ai/llava-next", "/run/fal-ai/llava-next/stream"])
def test_one_trailing_slash_is_accepted_and_two_are_not(fal: Fal, path: str) -> None:
    statuses = [fal.client.post(path + slashes, json=fal.input()).status_code for slashes in ("", "/", "//")]
    assert statuses == [200, 200, 404]


def test_a_stream_grows_word_by_word_in_frames_with_crlf(fal: Fal) -> None:
    answer = fal.client.post("/run/fal-ai/llavav15-13b/stream", json=fal.input("why?"))
    whole = fal.run("why?", "fal-ai/llavav15-13b").json()
    events, words = documents(answer.text), whole["output"].split()
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["x-fal-request-id"]
    assert [event["output"] for event in events] == [" ".join(words[: i + 1]) for i in range(len(words))]
    assert [event["partial"] for event in events] == [True] * (len(words) - 1) + [False]
    assert events[-1] == whole
    frames = answer.text.split("\r\n\r\n")
    assert frames.pop() == ""
    assert all(frame.startswith('event: event\r\ndata: {"output":') for frame in frames)


@pytest.mark.parametrize("path", ["", "/stream"])
def test_a_call_that_cannot_start_in_time_is_504(fal: Fal, path: str) -> None:
    body = fal.input("[[pace start_seconds=60]]")
    answer = fal.client.post(f"/run/fal-ai/llava-next{path}", json=body, headers={"x-fal-request-timeout": "0.01"})
    assert (answer.status_code, answer.json()["error_type"]) == (504, "request_timeout")
    assert answer.headers["x-fal-request-timeout-type"] == "user"


@pytest.mark.parametrize("path", ["", "/stream"])
def test_a_call_can_fail_in_fals_ways(fal: Fal, path: str) -> None:
    answer = fal.client.post(f"/run/fal-ai/llava-next{path}", json=fal.input("[[fault fail=runner_disconnected]]"))
    assert (answer.status_code, answer.headers["x-fal-needs-retry"]) == (503, "1")
    assert answer.json()["error_type"] == "runner_disconnected"


def test_a_run_can_be_held_and_let_go(fal: Fal) -> None:
    answers: list[httpx.Response] = []
    known = _runs(fal)
    caller = threading.Thread(target=lambda: answers.append(fal.run(f"{HELD} held")))
    caller.start()
    wait_until(lambda: len(_runs(fal)) > len(known))
    job = _runs(fal)[-1]
    assert (job["kind"], job["held"]) == ("run", True)
    fal.move({"request_id": job["id"]}, state="go")
    caller.join(timeout=180)
    assert answers[0].json()["output"].endswith("You asked: held")


def test_a_held_stream_shows_its_words_and_keeps_the_last(fal: Fal) -> None:
    body = fal.input("[[pace hold=IN_PROGRESS]] last", max_tokens=3)
    with fal.client.stream("POST", "/run/fal-ai/llava-next/stream", json=body) as answer:
        lines = (json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: "))
        assert [next(lines)["output"] for _ in range(2)] == ["A", "A PNG"]
        fal.move({"request_id": answer.headers["x-fal-request-id"]}, state="go")
        assert list(lines) == [{"output": "A PNG picture", "partial": False}]


def test_a_stream_that_fails_on_its_way_ends_without_a_last_word(fal: Fal) -> None:
    with fal.client.stream("POST", "/run/fal-ai/llava-next/stream", json=fal.input(HELD)) as answer:
        lines = answer.iter_lines()
        next(lines)
        fal.move({"request_id": answer.headers["x-fal-request-id"]}, state="fail")
        assert all(event["partial"] for event in documents("\n".join(lines)))


def test_a_caller_that_leaves_a_run_is_noticed(fal: Fal) -> None:
    text, known = json.dumps(fal.input(HELD)).encode(), _runs(fal)
    head = f"POST /run/fal-ai/llava-next HTTP/1.1\r\nhost: x\r\nauthorization: Key {SANDBOX_KEY}\r\n"
    address = httpx.URL(fal.url)
    with socket.create_connection((address.host, address.port or 0)) as wire:
        wire.sendall(f"{head}content-length: {len(text)}\r\n\r\n".encode() + text)
        wait_until(lambda: len(_runs(fal)) > len(known))
        assert _runs(fal)[-1]["status"] != "COMPLETED"
    wait_until(lambda: _runs(fal)[-1]["status"] == "COMPLETED")
    wait_until(lambda: fal.requests()[-1]["ended"] == "left")


def test_a_caller_that_leaves_a_stream_is_noticed(fal: Fal) -> None:
    with fal.client.stream("POST", "/run/fal-ai/llava-next/stream", json=fal.input(HELD)) as answer:
        pieces = answer.iter_raw()
        next(pieces)
        assert fal.requests()[-1]["ended"] is None
    wait_until(lambda: fal.requests()[-1]["ended"] == "left")


def _runs(fal: Fal) -> list[dict[str, Any]]:
    return [job for job in fal.client.get("/_sandbox/jobs").json() if job["kind"] == "run"]
