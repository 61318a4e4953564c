"""What the page says when something is refused: the message, its type and the request id."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import CHELSEA
from tests.browser.visit import Visit
from tests.support.stack import Stack

pytestmark = pytest.mark.tools

PROXY = "/api/fal/proxy"
NOTES: dict[str, object] = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"not a picture"}
FAKE: dict[str, object] = {"name": "fake.png", "mimeType": "image/png", "buffer": b"not a picture either"}


@pytest.fixture
def user(stack: Stack, visit: Visit) -> Visit:
    visit.open_signed_in(stack.url, stack.token())
    return visit


def assert_refused(visit: Visit, message: str, error_type: str) -> None:
    visit.wait_for("failed")
    expect(visit.failure).to_contain_text(message)
    expect(visit.page.locator("#failure-type")).to_have_text(error_type)
    expect(visit.page.locator("#failure-request-id")).not_to_have_text("none")
    expect(visit.page.get_by_role("button", name="Ask")).to_be_enabled()


@pytest.mark.parametrize("mode", ["Live queue", "Polled queue", "Stream"])
def test_a_file_that_is_no_picture(user: Visit, mode: str) -> None:
    user.expect_refusal(422, PROXY)
    user.choose(FAKE)
    expect(user.caption).to_contain_text("no preview")
    user.ask("What is this?", mode=mode)
    assert_refused(user, "image_url: Failed to load the image", "image_load_error")


def test_an_upload_that_the_plan_does_not_allow(user: Visit) -> None:
    user.expect_refusal(415, PROXY)
    user.choose(NOTES)
    user.ask("What is this?", upload=True)
    assert_refused(user, "The plan does not allow files of this type", "unsupported_media_type")


def test_a_failure_at_fal(user: Visit) -> None:
    user.expect_refusal(500, PROXY)
    user.choose(CHELSEA)
    user.ask("Broken? [[fault fail=runner_server_error]]")
    assert_refused(user, "Runner server error", "runner_server_error")


def test_a_stream_that_breaks_off(user: Visit) -> None:
    user.choose(CHELSEA)
    user.expect_complaint("ERR_INCOMPLETE_CHUNKED_ENCODING|ERR_CONNECTION_RESET|ERR_HTTP2|ERR_EMPTY")
    user.ask("Broken? [[fault drop=during]]", mode="Stream")
    user.wait_for("failed")
    expect(user.page.get_by_role("button", name="Ask")).to_be_enabled()
