"""Guests who must work for a session: the page does it with ALTCHA's widget, under its strict policy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.conftest import CHELSEA
from tests.browser.test_tools import AXE
from tests.browser.visit import Visit
from tests.support.limited import limited_proxy, operating, plan
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack
from tests.support.waiting import wait_until

pytestmark = pytest.mark.tools
RESULTS = Path(__file__).parents[2] / "test-results"
POW = {"proof": "pow", "plan": "acme", "difficulty": 2000}
TURNSTILE = {"proof": "turnstile", "plan": "acme", "secret_env": "TURNSTILE_SECRET"}


# The proxy stops after the visit, so that the page's last requests are answered.
@pytest.fixture
def stack(sandbox: SandboxControl, tmp_path: Path) -> Iterator[Stack]:
    with limited_proxy(sandbox, tmp_path, {"acme": plan()}, environ={"PROXY_PLAYGROUND": "on"}) as stack:
        yield stack


def open_page(visit: Visit, stack: Stack, *tiers: dict[str, Any]) -> Page:
    """Open the page of a proxy with these tiers, as a stranger."""
    guests = {"enabled": True, "per_address": None, "tiers": list(tiers)}
    tenant = {"id": "acme", "plan": "acme", "allowed_origins": [stack.url], "guests": guests}
    with operating(stack) as operator:
        operator.put("/v1/admin/tenants", json={"plans": {"acme": plan()}, "tenants": [tenant]}).raise_for_status()
    # The page has no session yet, and then no proof.
    visit.expect_refusal(401, "/v1/session")
    visit.expect_refusal(401, "/v1/sessions/guest")
    visit.page.goto(f"{stack.url}/playground")
    return visit.page


@pytest.mark.parametrize("context_options", [{"color_scheme": "light"}, {"color_scheme": "dark"}], ids=["day", "night"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_shows_its_proof_of_work_for_a_session(
    stack: Stack, visit: Visit, context_options: dict[str, str], width: int
) -> None:
    held: list[Route] = []
    visit.page.set_viewport_size({"width": width, "height": 900})
    visit.page.route("**/pbkdf2.js", lambda route: held.append(route))
    page = open_page(visit, stack, TURNSTILE, POW)
    expect(page.get_by_role("region", name="Proof of work")).to_contain_text("asks guests for some work")
    expect(page.locator("altcha-widget")).to_contain_text("Verifying")
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run().then(({ violations }) => violations.map(({ id, nodes }) => [id, nodes[0].html]))")
    assert found == []
    page.screenshot(path=RESULTS / f"proof-{width}-{context_options['color_scheme']}.png")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    # This lets go what is held, too.
    page.unroute("**/pbkdf2.js")
    expect(visit.badge).to_contain_text("guest-")
    expect(page.locator("altcha-widget")).to_have_count(0)
    visit.choose(CHELSEA)
    visit.ask("What is this?")
    expect(visit.answer).to_contain_text("451 × 300")
    visit.wait_for("done")


def test_an_expired_session_needs_a_new_proof_of_work(stack: Stack, visit: Visit) -> None:
    page = open_page(visit, stack, POW)
    expect(visit.badge).to_contain_text("guest-")
    before = visit.badge.inner_text()
    # The page asks for the jobs last. What it asks with the first session is answered before that is taken away.
    wait_until(lambda: visit.badge.is_visible() and (200, "/v1/jobs") in visit.answers(), lambda: f"{visit.answers()}")
    visit.context.clear_cookies()
    page.get_by_text("Connection", exact=True).click()
    page.get_by_role("button", name="Connect").click()
    expect(visit.badge).not_to_have_text(before)
    expect(visit.badge).to_contain_text("guest-")
    assert visit.answers().count((201, "/v1/sessions/guest")) == 2


def test_work_for_a_session_that_is_no_longer_wanted_ends(stack: Stack, visit: Visit) -> None:
    held: list[Route] = []
    visit.page.route("**/pbkdf2.js", lambda route: held.append(route))
    page = open_page(visit, stack, POW)
    expect(page.locator("altcha-widget")).to_contain_text("Verifying")
    page.get_by_text("Connection", exact=True).click()
    with page.expect_response("**/v1/sessions/challenge"):
        page.get_by_role("button", name="Connect").click()
    expect(page.locator("altcha-widget")).to_have_count(1)
    expect(page.get_by_role("region", name="Proof of work")).to_be_visible()
    page.unroute("**/pbkdf2.js")
    expect(visit.badge).to_contain_text("guest-")
    expect(page.get_by_role("region", name="Proof of work")).to_be_hidden()
    wait_until(lambda: page.evaluate("1") and (200, "/v1/jobs") in visit.answers(), lambda: f"{visit.answers()}")
    assert visit.answers().count((201, "/v1/sessions/guest")) == 1


def test_a_failed_proof_of_work_can_be_repeated(stack: Stack, visit: Visit) -> None:
    visit.expect_complaint("ALTCHA")
    visit.expect_complaint("pbkdf2.js")
    visit.expect_complaint("net::ERR_FAILED")
    visit.page.route("**/pbkdf2.js", lambda route: route.abort())
    page = open_page(visit, stack, POW)
    expect(visit.failure).to_contain_text("did not finish the proof of work")
    expect(page.get_by_role("region", name="Proof of work")).to_be_hidden()
    page.unroute("**/pbkdf2.js")
    page.get_by_role("button", name="Connect").click()
    expect(visit.badge).to_contain_text("guest-")


def test_where_only_other_proofs_count_the_page_asks_for_a_session(stack: Stack, visit: Visit) -> None:
    visit.expect_refusal(404, "/v1/sessions/challenge")
    page = open_page(visit, stack, TURNSTILE)
    expect(visit.badge).to_have_text("Not connected: a session token is needed")
    expect(page.locator("altcha-widget")).to_have_count(0)
