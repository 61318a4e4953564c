"""A client that repeats its POST of a job to resume the stream, as replacements of `EventSource` do on a lost line."""

from __future__ import annotations

import pytest

from tests.routes.jobs import HELD, JOBS, SSE, events, new, read_all_events
from tests.support.limited import assert_refused_with, posts
from tests.support.stack import Stack

FIRST = {**SSE, "idempotency-key": "a-question"}


@pytest.mark.parametrize("accept", ["text/event-stream", "text/event-stream, */*;q=0.5"])
@pytest.mark.parametrize("mark", ["IN_QUEUE.1.0", "IN_PROGRESS..2", "END"])
def test_a_repeated_post_without_a_key_submits_nothing(stack: Stack, mark: str, accept: str) -> None:
    with stack.client() as client:
        answer = client.post(JOBS, json=new(), headers={"accept": accept, "last-event-id": mark})
        words = assert_refused_with(answer, 400, "bad_request")["message"]
        assert "/v1/jobs/{id}/events" in words and "Idempotency-Key" in words
        assert posts(stack.sandbox) == []
        # An empty id is that of a stream which had none, and without a stream nothing is resumed.
        for headers in ({**SSE, "last-event-id": ""}, {"last-event-id": mark}):
            assert client.post(JOBS, json=new("What is it?"), headers=headers).is_success
    assert len(posts(stack.sandbox)) == 2


def test_an_id_of_no_event_is_refused(stack: Stack) -> None:
    with stack.client() as client:
        answer = client.post(JOBS, json=new(), headers={**FIRST, "last-event-id": "7"})
        assert "Last-Event-ID" in assert_refused_with(answer, 400, "bad_request")["message"]
    assert posts(stack.sandbox) == []


def test_a_repeated_post_with_its_key_goes_on_behind_the_last_event(stack: Stack) -> None:
    asked = new("What is it?")
    with stack.client() as client:
        with client.stream("POST", JOBS, json=asked, headers=FIRST) as stream:
            whole, id_ = list(events(stream)), stream.headers["location"].rpartition("/")[2]
        for place, event in enumerate(whole):
            headers = {**FIRST, "last-event-id": event["id"]}
            if event["id"] == "END":
                answer = client.post(JOBS, json=asked, headers=headers)
                assert (answer.status_code, answer.content) == (204, b"") and "content-type" not in answer.headers
                continue
            with client.stream("POST", JOBS, json=asked, headers=headers) as stream:
                assert stream.headers["idempotency-replayed"] == "true" and stream.headers["location"].endswith(id_)
                assert list(events(stream)) == read_all_events(client, id_, event["id"]), f"after event {place}"
    assert len(posts(stack.sandbox)) == 1


def test_a_repeated_post_whose_first_one_never_came_begins_at_the_start(stack: Stack) -> None:
    headers = {**SSE, "idempotency-key": "new", "last-event-id": "COMPLETED..4"}
    with stack.client() as client, client.stream("POST", JOBS, json=new(HELD), headers=headers) as stream:
        first = next(events(stream))
    assert first["id"].startswith("IN_QUEUE.") and len(posts(stack.sandbox)) == 1
