"""The page of `serve`: with a pasted session or as a guest, it makes a call as any page may, and nothing more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import CHELSEA
from tests.browser.visit import Visit
from tests.support.limited import limited_proxy, plan
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack, proxy_in_front_of

pytestmark = pytest.mark.tools
RESULTS = Path(__file__).parents[2] / "test-results"
ON = {"PROXY_PLAYGROUND": "on"}


def assert_answered(visit: Visit, question: str) -> None:
    visit.choose(CHELSEA)
    visit.ask(question)
    expect(visit.answer).to_contain_text(question)
    expect(visit.answer).to_contain_text("451 × 300")
    visit.wait_for("done")


# The proxy stops after the visit, so that the page's last requests are answered.
@pytest.fixture
def closed(sandbox: SandboxControl, tmp_path: Path) -> Iterator[Stack]:
    """No tenant takes guests."""
    with limited_proxy(sandbox, tmp_path, {"acme": plan()}, environ=ON) as stack:
        yield stack


def test_without_guests_the_page_asks_for_a_session_and_works_with_it(closed: Stack, visit: Visit) -> None:
    visit.expect_refusal(401, "/v1/session")
    visit.expect_refusal(403, "/v1/sessions/guest")
    visit.page.goto(f"{closed.url}/playground")
    expect(visit.badge).to_have_text("Not connected: a session token is needed")
    expect(visit.failure).to_be_hidden()
    expect(visit.page.get_by_label("What goes wrong")).to_have_count(0)
    token = closed.token("alice")
    visit.connect(token)
    expect(visit.badge).to_contain_text("alice")
    assert_answered(visit, "What is this?")
    RESULTS.mkdir(exist_ok=True)
    visit.page.screenshot(path=RESULTS / "playground-of-serve.png", full_page=True)
    kept = str(visit.context.storage_state(indexed_db=True)) + visit.page.evaluate("JSON.stringify(sessionStorage)")
    assert token not in kept and visit.context.cookies() == []


def test_a_wrong_session_is_refused_and_removed(closed: Stack, visit: Visit) -> None:
    visit.expect_refusal(401, "/v1/session")
    visit.expect_refusal(403, "/v1/sessions/guest")
    visit.page.goto(f"{closed.url}/playground")
    expect(visit.badge).to_have_text("Not connected: a session token is needed")
    visit.connect("not-a-token")
    expect(visit.failure).to_contain_text("The session token is not valid.")
    visit.connect("")
    expect(visit.badge).to_have_text("Not connected: a session token is needed")
    expect(visit.failure).to_be_hidden()
    expect(visit.page.get_by_label("Session token")).to_be_visible()


@pytest.fixture
def with_guests(sandbox: SandboxControl, tmp_path: Path) -> Iterator[Stack]:
    with proxy_in_front_of(sandbox, tmp_path, environ=ON) as stack:
        yield stack


def test_a_guest_of_a_tenant_that_takes_them_is_answered(with_guests: Stack, visit: Visit) -> None:
    visit.expect_refusal(401, "/v1/session")
    visit.page.goto(f"{with_guests.url}/playground")
    expect(visit.badge).to_contain_text("guest-")
    assert_answered(visit, "As a guest?")
    (cookie,) = visit.context.cookies()
    assert (cookie["name"], cookie["httpOnly"], cookie["secure"]) == ("__Host-fal_session", True, True)


def test_a_link_cannot_make_the_page_send_a_session_elsewhere(closed: Stack, visit: Visit) -> None:
    visit.page.goto(f"{closed.url}/playground?proxy=https://proxy.evil.example")
    visit.connect(closed.token("alice"))
    expect(visit.failure).to_contain_text("sends no session to https://proxy.evil.example")
    assert [path for _, path in visit.answers() if path.startswith("/v1")] == []


def test_a_tenant_key_is_not_sent(closed: Stack, visit: Visit) -> None:
    visit.expect_refusal(401, "/v1/session")
    visit.expect_refusal(403, "/v1/sessions/guest")
    visit.page.goto(f"{closed.url}/playground")
    expect(visit.page.get_by_label("Session token")).to_be_visible()
    before = visit.answers()
    visit.connect(f"fpk_{'x' * 16}_{'y' * 43}")
    expect(visit.failure).to_contain_text("This is a tenant key")
    assert [path for _, path in visit.answers()[len(before) :] if path.startswith("/v1")] == []
