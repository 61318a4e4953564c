"""The native job API: from a question to its answer, and every refusal on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.routes.jobs import HELD, JOBS, SSE, created, events, new, read_all_events, watching
from tests.support.limited import account, assert_refused_with, limited_proxy, per, plan, posts
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack, proxy_in_front_of
from tests.support.waiting import wait_until


def test_a_job_from_its_question_to_its_answer(stack: Stack) -> None:
    # Later than the jobs of other tests.
    stack.clock.advance(1)
    with stack.client() as client:
        answer = client.post(JOBS, json=new(HELD + " What is it?"))
        job = answer.json()
        assert answer.status_code == 202 and answer.headers["location"] == f"{JOBS}/{job['id']}"
        assert (job["endpoint"], job["status"], job["queue_position"]) == ("fal-ai/llava-next", "IN_QUEUE", 0)
        assert not [name for name in job if name.endswith("_url") or name == "request_id"]
        one = f"{JOBS}/{job['id']}"
        assert client.get(one).json()["status"] == "IN_QUEUE" and client.get(one).status_code == 200
        assert client.get(f"{one}/result").status_code == 400, "it has no result yet"
        assert client.get(JOBS).json()["jobs"][0] | {"submitted_at": ""} == {
            "id": job["id"], "endpoint": "fal-ai/llava-next", "is_over": False, "submitted_at": "",
        }  # fmt: skip
        stack.sandbox.move_job(job["id"], "finish")
        stream = read_all_events(client, job["id"])
        assert [event["event"] for event in stream][-2:] == ["status", "result"] and stream[-1]["id"] == "END"
        result = client.get(f"{one}/result")
        assert result.status_code == 200 and stream[-1]["data"] == result.text and "What is it?" in result.text
        logs = client.get(one, params={"logs": "1"}).json()
        assert logs["status"] == "COMPLETED" and logs["logs"][-1]["message"] == "INFO:Done"
        assert client.get(one).json()["logs"] is None
        assert client.get(JOBS, params={"limit": "1"}).json()["jobs"][0]["is_over"] is True


def test_one_call_streams_the_states_of_a_job_and_its_result(stack: Stack) -> None:
    with stack.client() as client, client.stream("POST", JOBS, json=new("What is it?"), headers=SSE) as stream:
        assert stream.status_code == 200 and stream.headers["content-type"].startswith("text/event-stream")
        found = list(events(stream))
        assert stream.headers["location"].startswith(JOBS + "/")
    assert found[0]["event"] == "status" and found[0]["id"] == "IN_QUEUE.1.0"
    assert [event["event"] for event in found[-2:]] == ["status", "result"] and "What is it?" in found[-1]["data"]
    assert len({event["id"] for event in found}) == len(found), "no event comes twice"
    assert [record["path"].rpartition("/")[2] for record in stack.sandbox.requests()].count("stream") == 1


def test_a_job_is_cancelled(stack: Stack) -> None:
    with stack.client() as client:
        id_ = created(client)
        assert client.delete(f"{JOBS}/{id_}").status_code == 202
        stream = read_all_events(client, id_)
        result = client.get(f"{JOBS}/{id_}/result")
        assert stream[-1] == {"event": "error", "id": "END", "data": result.text} and result.status_code == 499
        assert client.delete(f"{JOBS}/{id_}").json() == {"status": "ALREADY_COMPLETED"}


@pytest.mark.parametrize(("prompt", "status"), [("[[fault fail=runner_disconnected]]", 503), ("wrong", 422)])
def test_a_failed_job_ends_with_the_error_of_its_result(stack: Stack, prompt: str, status: int) -> None:
    body = new(prompt)
    if status == 422:
        body["input"]["image_url"] = "data:image/png;base64,bm8gcGljdHVyZQ=="
    with stack.client() as client:
        id_ = client.post(JOBS, json=body).json()["id"]
        last = read_all_events(client, id_)[-1]
        result = client.get(f"{JOBS}/{id_}/result")
    assert result.status_code == status and last == {"event": "error", "id": "END", "data": result.text}


def test_a_stream_of_a_job_that_fal_forgets_ends_with_the_error_of_its_result(stack: Stack) -> None:
    with stack.client() as client:
        id_ = created(client)
        stack.sandbox.fault(fault="drop_at", bytes=600, on={"operation": "status-stream"}, times=1)
        with watching(client, id_) as stream:
            next(stream)
            stack.sandbox.move_job(id_, "IN_PROGRESS")
            stack.sandbox.move_job(id_, "lose")
            last = list(stream)[-1]
        result = client.get(f"{JOBS}/{id_}/result")
        assert result.status_code == 404 and last == {"event": "error", "id": "END", "data": result.text}


@pytest.mark.parametrize(
    "fault",
    [{"fault": "drop", "when": "before"}, {"fault": "nginx", "status": 502}, {"fault": "status", "status": 429}],
)
def test_a_result_that_cannot_be_fetched_at_once_is_fetched_later(stack: Stack, fault: dict[str, Any]) -> None:
    stack.sandbox.fault(**fault, times=2, on={"operation": "result"})
    with stack.client() as client:
        id_ = created(client, "What is it?")
        last = read_all_events(client, id_)[-1]
    assert last["event"] == "result" and "What is it?" in last["data"]


def test_a_missing_result_ends_the_stream_with_a_time_to_retry(stack: Stack) -> None:
    stack.sandbox.fault(fault="nginx", status=502, on={"operation": "result"})
    with stack.client() as client:
        id_ = created(client, "What is it?")
        with client.stream("GET", f"{JOBS}/{id_}/events") as stream:
            text = stream.read().decode()
        assert text.endswith("retry: 5000\n\n") and "event: result" not in text and "event: error" not in text
        stack.sandbox.clear_faults()
        last_seen = [line for line in text.splitlines() if line.startswith("id: ")][-1].removeprefix("id: ")
        (only,) = read_all_events(client, id_, last_seen)
    assert last_seen.startswith("COMPLETED") and only["event"] == "result"


def test_a_stream_resumes_at_every_event_even_after_a_restart(sandbox: SandboxControl, tmp_path: Path) -> None:
    with proxy_in_front_of(sandbox, tmp_path) as stack, stack.client() as client:
        id_ = created(client)
        with watching(client, id_) as stream:
            whole = [next(stream)]
            for state in ("IN_PROGRESS", "finish"):
                sandbox.move_job(id_, state)
                whole.append(next(stream))
            whole += list(stream)
        for place, event in enumerate(whole[:-1]):
            assert read_all_events(client, id_, event["id"])[-1] == whole[-1]
            if event["id"].startswith("COMPLETED"):
                assert read_all_events(client, id_, event["id"]) == whole[place + 1 :]
        for key in ("last_event_id", "lastEventId"):
            by_query = client.get(f"{JOBS}/{id_}/events", params={key: whole[-2]["id"]}).text
            assert "event: result" in by_query and "event: status" not in by_query
        held, middle = created(client), ""
        with watching(client, held) as stream:
            next(stream)
            sandbox.move_job(held, "IN_PROGRESS")
            seen = next(stream)
            middle, lines = seen["id"], seen["data"].count('"message"')
    with proxy_in_front_of(sandbox, tmp_path) as stack, stack.client() as client:
        with watching(client, held, middle) as stream:
            sandbox.move_job(held, "finish")
            rest = list(stream)
        assert [event["event"] for event in rest[-2:]] == ["status", "result"]
        assert sum(event["data"].count('"message"') for event in rest) == 4 - lines, "each line once, over both"
        assert client.get(f"{JOBS}/{id_}/events", headers={"last-event-id": "END"}).status_code == 204


@pytest.mark.parametrize("first", ["hosts", "native"])
def test_an_idempotency_key_holds_on_both_surfaces(stack: Stack, first: str) -> None:
    key, asked = {"idempotency-key": f"both-{first}"}, new("What is it?")
    calls = [("/fal/queue/fal-ai/llava-next", asked["input"], "request_id"), (JOBS, asked, "id")]
    with stack.client(headers=key) as client:
        ids, replayed = [], []
        for path, body, name in calls if first == "hosts" else reversed(calls):
            answer = client.post(path, json=body)
            ids.append(answer.json()[name])
            replayed.append(answer.headers.get("idempotency-replayed"))
        with client.stream("POST", JOBS, json=asked, headers=SSE) as stream:
            last = list(events(stream))[-1]
    assert ids[0] == ids[1] and replayed == [None, "true"] and last["event"] == "result"
    assert len(posts(stack.sandbox)) == 1


@pytest.mark.parametrize(
    ("method", "path", "json", "status", "code", "words"),
    [
        ("POST", "", {"endpoint": "../evil", "input": {}}, 400, "bad_request", "endpoint must be"),
        ("POST", "", {"endpoint": "fal-ai/llava-next/requests/x", "input": {}}, 400, "bad_", ""),
        ("POST", "", {"endpoint": "fal-ai/other", "input": {}}, 403, "endpoint_not_allowed", "fal-ai/other"),
        ("POST", "", {"endpoint": "fal-ai/llava-next"}, 400, "bad_request", "input"),
        ("POST", "", {"endpoint": "fal-ai/llava-next", "input": {}, "webhook": "x"}, 400, "bad_request", "webhook"),
        ("POST", "", {"endpoint": "fal-ai/llava-next", "input": {}}, 422, "invalid_input", "image_url"),
        ("GET", "?limit=0", None, 400, "bad_request", "limit must be"),
        ("GET", "?limit=x", None, 400, "bad_request", "limit must be"),
        ("GET", "?limit=101", None, 400, "bad_request", "limit must be"),
        *[
            ("GET", f"?limit={limit}", None, 400, "bad_request", "limit must be")
            for limit in ("%C2%B2", "%D9%A1", "%2B1", "-1", "1_0", "%201", "1.0", "9" * 5000)
        ],
        *[
            ("GET", f"/{id_}{tail}", None, 400, "bad_target", "request id is not valid")
            for id_ in ("%00", "a%00b", "%ED%A0%80", "%C3%A9", "a" * 129)
            for tail in ("", "/result", "/events")
        ],
        ("GET", "?page=1", None, 400, "bad_request", "page"),
        ("GET", "/{id}?log=1", None, 400, "bad_request", "log"),
        ("GET", "/{id}?logs=2", None, 400, "bad_target", "logs must be"),
        ("GET", "/{id}/result?x=1", None, 400, "bad_request", "x"),
        ("DELETE", "/{id}?x=1", None, 400, "bad_request", "x"),
        ("GET", "/{id}/events?last_event_id=7", None, 400, "bad_request", "Last-Event-ID"),
        ("GET", "/{id}/events?lastEventId=7", None, 400, "bad_request", "Last-Event-ID"),
        ("GET", "/{id}/events?after=END", None, 400, "bad_request", "after"),
        ("GET", "/not%20an%20id", None, 400, "bad_target", "request id"),
        ("PUT", "/{id}", None, 405, "method_not_allowed", ""),
    ],
)  # fmt: skip
def test_a_bad_request_is_refused(
    stack: Stack, method: str, path: str, json: Any, status: int, code: str, words: str
) -> None:
    with stack.client() as client:
        id_ = created(client) if "{id}" in path else ""
        before = len(stack.sandbox.requests())
        for headers in ({}, SSE):
            answer = client.request(method, JOBS + path.format(id=id_), json=json, headers=headers)
            assert answer.status_code == status, answer.text
            assert answer.json()["error_type"].startswith(code) and words in answer.text
        assert len(stack.sandbox.requests()) == before, "fal got no request"


@pytest.mark.parametrize("way", ["header", "last_event_id", "lastEventId"])
def test_nothing_follows_the_last_event(stack: Stack, way: str) -> None:
    """204 makes an EventSource stop; otherwise one that is not closed would get the result again every second."""
    given = {"headers": {"last-event-id": "END"}} if way == "header" else {"params": {way: "END"}}
    with stack.client() as client, stack.client(stack.token("bob")) as bob:
        id_ = created(client, "What is it?")
        read_all_events(client, id_)
        stack.sandbox.forget()
        for method in ("GET", "HEAD"):
            answer = client.request(method, f"{JOBS}/{id_}/events", **given)  # type: ignore[arg-type]
            assert (answer.status_code, answer.content) == (204, b"") and "content-type" not in answer.headers
        assert stack.sandbox.requests() == []
        assert_refused_with(bob.get(f"{JOBS}/{id_}/events", **given), 404, "not_found")  # type: ignore[arg-type]


def test_the_newest_last_event_id_counts(stack: Stack) -> None:
    with stack.client() as client:
        id_ = created(client)
        url = f"{JOBS}/{id_}/events?last_event_id=IN_QUEUE.1.0"
        assert client.get(url, headers={"last-event-id": "END"}).status_code == 204
        assert client.get(f"{url}&lastEventId=END").status_code == 204


def test_an_invalid_last_event_id_is_refused(stack: Stack) -> None:
    with stack.client() as client:
        id_ = created(client)
        for mark in ("IN_QUEUE", "IN_QUEUE..x", "COMPLETED.-1.2", "'; --"):
            answer = client.get(f"{JOBS}/{id_}/events", headers={"last-event-id": mark})
            assert_refused_with(answer, 400, "bad_request")


def test_another_callers_job_is_not_found(stack: Stack) -> None:
    with stack.client() as alice, stack.client(stack.token("bob")) as bob:
        id_ = created(alice)
        unknown = "00000000-0000-0000-0000-000000000000"
        for method, tail in (("GET", ""), ("GET", "/result"), ("GET", "/events"), ("DELETE", "")):
            both = [bob.request(method, f"{JOBS}/{one}{tail}").json() for one in (id_, unknown)]
            assert both[0] | {"request_id": ""} == both[1] | {"request_id": ""}
            assert both[0]["error_type"] == "not_found"
        assert bob.get(JOBS).json()["jobs"] == []
        assert alice.get(f"{JOBS}/{id_}").json()["status"] == "IN_QUEUE", "it was not cancelled"


@pytest.mark.parametrize("path", ["", "/x", "/x/result", "/x/events"])
def test_a_session_is_needed(stack: Stack, path: str) -> None:
    with stack.client("") as client:
        assert_refused_with(client.get(JOBS + path), 401, "unauthenticated")


def test_a_refusal_costs_nothing(sandbox: SandboxControl, tmp_path: Path) -> None:
    limits = {"acme": plan(quotas=[per("subject", "requests", 1)])}
    most = {"PROXY_MAX_STREAMS_PER_SESSION": "1"}
    with limited_proxy(sandbox, tmp_path, limits, environ=most) as stack, stack.client() as client:
        assert_refused_with(client.post(JOBS, json=new() | {"input": {}}, headers=SSE), 422, "invalid_input")
        id_ = created(client)
        assert_refused_with(client.post(JOBS, json=new(), headers=SSE), 402, "quota_exceeded", "subject")
        with watching(client, id_) as stream:
            next(stream)
            for answer in (
                client.post(JOBS, json=new(), headers=SSE),
                client.get(f"{JOBS}/{id_}/events"),
                client.get(f"/fal/queue/fal-ai/llava-next/requests/{id_}/status/stream"),
            ):
                assert_refused_with(answer, 429, "rate_limited", "session")
        assert account(tmp_path, "acme", "requests", "alice").reserved == 1
        stack.sandbox.move_job(id_, "finish")
        again = lambda: "event: result" in client.get(f"{JOBS}/{id_}/events").text  # noqa: E731
        wait_until(again, "the slot of the ended stream is not free")
    assert len(posts(sandbox)) == 1


def test_head_on_an_event_stream_returns_only_headers(stack: Stack) -> None:
    """RFC 9110, section 9.3.2: no stream is opened, here or at fal, and the connection is free for the next request."""
    with stack.client() as alice, stack.client(stack.token("mallory")) as mallory:
        id_ = created(alice)
        stack.sandbox.forget()
        for _ in range(3):
            head = alice.head(f"{JOBS}/{id_}/events", timeout=60)
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["content-type"].startswith("text/event-stream") and "content-length" not in head.headers
        assert stack.sandbox.requests() == []
        assert mallory.head(f"{JOBS}/{id_}/events").status_code == 404
        assert "fal_proxy_open_streams 0.0" in alice.get("/metrics").text
        assert alice.delete(f"{JOBS}/{id_}").status_code < 300
