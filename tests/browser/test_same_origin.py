"""The page at the proxy's own address, with the session in a cookie: the whole job, in each way that it can be done."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import CHELSEA
from tests.browser.visit import Visit
from tests.support.stack import Stack

pytestmark = pytest.mark.tools

LOGS = ["INFO:Loading the picture", "INFO:Looking at the picture", "INFO:Writing the answer", "INFO:Done"]


@pytest.fixture
def user(stack: Stack, visit: Visit) -> Visit:
    visit.open_signed_in(stack.url, stack.token())
    visit.choose(CHELSEA)
    return visit


def assert_answered(visit: Visit, question: str) -> None:
    """The model saw the very file that was chosen, and the question."""
    visit.wait_for("done")
    expect(visit.answer).to_contain_text("451 × 300")
    expect(visit.answer).to_contain_text(hashlib.sha256(CHELSEA.read_bytes()).hexdigest()[:16])
    expect(visit.answer).to_contain_text(question)
    assert visit.steps()[-1] == "Answered"


@pytest.mark.parametrize("mode", ["Live queue", "Polled queue"])
def test_the_queue_is_watched_to_the_answer(stack: Stack, user: Visit, mode: str) -> None:
    user.ask(
        "Which animal? [[pace queue_positions=2 seconds_per_position=3 wait_for_looks=true hold=IN_QUEUE]]", mode=mode
    )
    expect(user.progress).to_contain_text("In the queue, 1 ahead")
    expect(user.progress).to_contain_text("In the queue, next in line")
    stack.sandbox.move_job(user.request_id(), "IN_PROGRESS")
    expect(user.progress).to_contain_text("Running")
    expect(user.logs).to_contain_text(LOGS[0])
    expect(user.answer).to_be_empty()
    stack.sandbox.move_job(user.request_id(), "go")
    assert_answered(user, "Which animal?")
    assert [step for step in user.steps() if not step.startswith("Accepted as ")] == [
        "Submitting",
        "In the queue, 1 ahead",
        "In the queue, next in line",
        "Running",
        "Completed",
        "Answered",
    ]
    assert user.log_lines() == LOGS


def test_the_words_are_shown_as_they_stream(user: Visit) -> None:
    user.page.evaluate(
        """() => {
          window.seen = [];
          const answer = document.querySelector("#answer");
          new MutationObserver(() => window.seen.push(answer.textContent)).observe(answer, { childList: true });
        }"""
    )
    user.ask("Which animal? [[pace words_per_second=5]]", mode="Stream")
    assert_answered(user, "Which animal?")
    seen = [text for text in user.page.evaluate("window.seen") if text]
    assert len(set(seen)) >= 3
    assert all(later.startswith(earlier) for earlier, later in pairwise(seen))
    assert user.steps() == ["Opening the stream", "Streaming", "Answered"]


@pytest.mark.parametrize("mode", ["Live queue", "Stream"])
def test_an_uploaded_picture_travels_as_a_file(stack: Stack, user: Visit, mode: str) -> None:
    user.ask("Which animal?", mode=mode, upload=True)
    assert_answered(user, "Which animal?")
    assert user.steps()[0] == "Uploading the picture"
    requests = stack.sandbox.requests()
    stored = [one for one in requests if one["host"] == "cdn" and one["method"] == "PUT"]
    assert [one["body_sha256"] for one in stored] == [hashlib.sha256(CHELSEA.read_bytes()).hexdigest()]
    asked = [one for one in requests if (one["json"] or {}).get("prompt")]
    assert [one["json"]["image_url"].startswith("data:") for one in asked] == [False]


def test_each_endpoint_on_offer_answers(user: Visit) -> None:
    offered = user.page.get_by_label("Endpoint").locator("option").evaluate_all("all => all.map(one => one.value)")
    assert sorted(offered) == ["fal-ai/llava-llama3-8b-v11", "fal-ai/llava-next", "fal-ai/llavav15-13b"]
    for endpoint in offered:
        user.ask(f"For {endpoint}?", endpoint=endpoint)
        assert_answered(user, f"For {endpoint}?")


def test_a_queued_job_is_cancelled_at_fal(stack: Stack, user: Visit) -> None:
    user.expect_refusal(499, "/api/fal/proxy")
    user.ask("Never? [[pace hold=IN_QUEUE]]")
    expect(user.progress).to_contain_text("In the queue")
    user.cancel()
    user.wait_for("cancelled")
    assert "Cancelling" in user.steps()
    assert user.steps()[-1] == "Cancelled"
    expect(user.answer).to_be_empty()
    expect(user.failure).to_be_hidden()
    assert [one["path"].rsplit("/", 1)[-1] for one in stack.sandbox.requests() if one["method"] == "PUT"] == ["cancel"]


def test_a_running_stream_is_stopped(user: Visit) -> None:
    user.ask("Never? [[pace hold=IN_PROGRESS words_per_second=1000]]", mode="Stream")
    expect(user.answer).not_to_be_empty()
    user.cancel()
    user.wait_for("cancelled")


def test_a_job_that_does_not_heed_the_cancel_still_answers(stack: Stack, user: Visit) -> None:
    user.ask("Stubborn? [[pace heeds_cancel=false hold=IN_PROGRESS]]")
    expect(user.progress).to_contain_text("Running")
    with user.page.expect_response(lambda response: response.request.method == "PUT") as cancelled:
        user.cancel()
    assert cancelled.value.status == 202
    stack.sandbox.move_job(user.request_id(), "finish")
    assert_answered(user, "Stubborn?")


def test_after_one_ask_comes_the_next(user: Visit) -> None:
    for question in ("First?", "Second?"):
        user.ask(question)
        assert_answered(user, question)
    assert len(user.log_lines()) == len(LOGS)
