"""A stranger at the proxy's own address: the page gets itself a session, once, and knows how to renew it."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import CHELSEA
from tests.browser.visit import Visit
from tests.support.stack import Stack
from tests.support.waiting import wait_until

pytestmark = pytest.mark.tools


@pytest.fixture
def guest(stack: Stack, visit: Visit) -> Visit:
    visit.open_as_guest(stack.url)
    # The page asks for the jobs last: all its first requests are answered before a test revokes the session.
    wait_until(lambda: visit.badge.is_visible() and (200, "/v1/jobs") in visit.answers(), lambda: f"{visit.answers()}")
    visit.choose(CHELSEA)
    return visit


def assert_answered(visit: Visit, question: str) -> None:
    visit.ask(question)
    expect(visit.answer).to_contain_text(question)
    expect(visit.answer).to_contain_text("451 × 300")
    visit.wait_for("done")


def test_a_guest_is_answered(guest: Visit) -> None:
    assert_answered(guest, "As a guest?")


def test_a_reload_keeps_the_session(guest: Visit) -> None:
    before = guest.badge.inner_text()
    guest.page.reload()
    expect(guest.badge).to_have_text(before)
    assert guest.answers().count((201, "/v1/sessions/guest")) == 1


def test_a_session_that_ran_out_is_renewed_at_the_next_ask(guest: Visit) -> None:
    before = guest.badge.inner_text()
    guest.context.clear_cookies()
    guest.page.clock.set_system_time("2099-01-01T00:00:00Z")
    assert_answered(guest, "Still there?")
    assert guest.badge.inner_text() != before


def test_a_revoked_session_shows_an_error_and_is_replaced(stack: Stack, guest: Visit) -> None:
    assert guest.page.evaluate("fetch('/v1/session', { method: 'DELETE' }).then((answer) => answer.status)") == 204
    guest.expect_refusal(401, "/api/fal/proxy")
    with (
        guest.page.expect_response(f"{stack.url}/api/fal/proxy") as refusal,
        guest.page.expect_response(f"{stack.url}/v1/session"),
    ):
        guest.ask("Who am I?")
    guest.wait_for("failed")
    expect(guest.failure).to_contain_text("No session")
    # What is left is refused too, but the question is what the person asked.
    expect(guest.page.locator("#failure-request-id")).to_have_text(refusal.value.headers["x-request-id"])
    guest.page.get_by_text("Connection", exact=True).click()
    guest.page.get_by_role("button", name="Connect").click()
    expect(guest.failure).to_be_hidden()
    assert_answered(guest, "And now?")
