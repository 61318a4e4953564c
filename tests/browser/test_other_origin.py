"""The page at another origin than the proxy's: a session token, and CORS in between."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import CHELSEA, serving_the_page
from tests.browser.visit import Visit
from tests.support.servers import free_port
from tests.support.stack import Stack

pytestmark = pytest.mark.tools


@pytest.fixture(scope="module")
def elsewhere(shared_stack: Stack) -> Iterator[str]:
    """The page, served by a plain static server at the other origin that the proxy allows."""
    with serving_the_page(shared_stack.other_origin, shared_stack.url) as url:
        yield url


@pytest.fixture
def user(stack: Stack, elsewhere: str, visit: Visit) -> Visit:
    visit.open_with_token(elsewhere, stack.url, stack.token("alice"))
    visit.choose(CHELSEA)
    return visit


@pytest.mark.parametrize("mode", ["Live queue", "Polled queue"])
def test_the_queue_is_watched_with_a_token(stack: Stack, user: Visit, mode: str) -> None:
    expect(user.badge).to_contain_text("alice")
    user.ask("Which animal? [[pace hold=IN_QUEUE]]", mode=mode)
    expect(user.progress).to_contain_text("In the queue")
    stack.sandbox.move_job(user.request_id(), "IN_PROGRESS")
    expect(user.logs).to_contain_text("Loading the picture")
    stack.sandbox.move_job(user.request_id(), "finish")
    assert_answered(user, "Which animal?")
    assert user.log_lines()[-1] == "INFO:Done"


@pytest.mark.parametrize("mode", ["Live queue", "Stream"])
def test_an_upload_with_a_token(user: Visit, mode: str) -> None:
    user.ask("Which animal?", mode=mode, upload=True)
    assert_answered(user, "Which animal?")


def test_a_stream_with_a_token(user: Visit) -> None:
    user.ask("Which animal?", mode="Stream")
    assert_answered(user, "Which animal?")


def assert_answered(user: Visit, question: str) -> None:
    user.wait_for("done")
    expect(user.answer).to_contain_text("451 × 300")
    expect(user.answer).to_contain_text(hashlib.sha256(CHELSEA.read_bytes()).hexdigest()[:16])
    expect(user.answer).to_contain_text(question)


def test_cancel_with_a_token(user: Visit) -> None:
    user.expect_refusal(499, "/api/fal/proxy")
    user.ask("Never? [[pace hold=IN_PROGRESS]]")
    expect(user.progress).to_contain_text("Running")
    user.cancel()
    user.wait_for("cancelled")


def test_the_token_stays_in_memory(stack: Stack, elsewhere: str, visit: Visit) -> None:
    token = stack.token("bob")
    visit.open_with_token(elsewhere, stack.url, token)
    kept = str(visit.context.storage_state(indexed_db=True)) + visit.page.evaluate("JSON.stringify(sessionStorage)")
    assert token not in kept
    assert token not in visit.page.url
    assert [one.url for one in visit.leave() if token in one.url + repr(one.headers) + one.body] == []


def test_a_reload_forgets_the_token(user: Visit) -> None:
    user.page.reload()
    expect(user.page.get_by_label("Session token")).to_have_value("")
    expect(user.badge).to_contain_text("a session token is needed")


def test_without_a_token_nothing_is_sent(stack: Stack, elsewhere: str, visit: Visit) -> None:
    visit.page.goto(f"{elsewhere}/?proxy={stack.url}")
    expect(visit.badge).to_contain_text("a session token is needed")
    expect(visit.page.get_by_label("Session token")).to_be_visible()
    assert [one.url for one in visit.leave() if one.url.startswith(stack.url)] == []


def test_a_wrong_token_shows_an_error(stack: Stack, elsewhere: str, visit: Visit) -> None:
    visit.expect_refusal(401, "/v1/session")
    visit.page.goto(f"{elsewhere}/?proxy={stack.url}")
    visit.connect("not-a-token")
    expect(visit.failure).to_contain_text("The session token is not valid.")
    expect(visit.page.locator("#failure-type")).to_have_text("unauthenticated")


def test_an_address_that_is_no_proxy_shows_an_error(elsewhere: str, visit: Visit) -> None:
    visit.expect_refusal(404, "/v1/session")
    visit.page.goto(elsewhere)
    expect(visit.failure).to_contain_text("does not answer like a fal-proxy")


def test_an_origin_that_is_not_allowed_gets_nothing(stack: Stack, visit: Visit) -> None:
    visit.expect_complaint("blocked by CORS policy|net::ERR_FAILED")
    with serving_the_page(f"http://localhost:{free_port()}", stack.url) as stranger:
        visit.page.goto(f"{stranger}/?proxy={stack.url}")
        visit.connect(stack.token("mallory"))
        expect(visit.failure).to_contain_text("does not allow this page's origin")
        expect(visit.page.locator("#failure-type")).to_have_text("unreachable")
        expect(visit.badge).to_have_text("Not connected")
    assert stack.sandbox.requests() == []


def test_a_link_to_a_proxy_that_the_page_does_not_name_gets_no_token(stack: Stack, visit: Visit) -> None:
    """Any stranger can make the link; a token pasted into the page must not go to the link's server."""
    token = stack.token("alice")
    with serving_the_page(f"http://localhost:{free_port()}") as elsewhere:
        visit.page.goto(f"{elsewhere}/?proxy={stack.url}")
        expect(visit.failure).to_contain_text("sends no session to")
        visit.connect(token)
        expect(visit.failure).to_contain_text("sends no session to")
        expect(visit.badge).to_have_text("Not connected")
    assert [one.url for one in visit.leave() if one.url.startswith(stack.url)] == []


def test_the_page_of_the_proxy_itself_can_reach_no_other_server(stack: Stack) -> None:
    with stack.client("") as stranger:
        policy = stranger.get("/").headers["content-security-policy"]
    assert "connect-src 'self';" in policy
