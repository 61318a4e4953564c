"""Answers that come late: the page shows the newest that it asked for, and what is clicked meanwhile is not lost."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import APIResponse, Locator, Page, Route, expect

from tests.browser.conftest import CHELSEA
from tests.browser.test_tools import asked_inputs
from tests.browser.visit import Visit
from tests.support.limited import NEXT, limited_proxy, per, plan
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack
from tests.support.waiting import wait_until

pytestmark = pytest.mark.tools
LLAMA = "fal-ai/llava-llama3-8b-v11"
HELD = "[[pace hold=IN_QUEUE]]"
LISTING, STANDING = "**/v1/jobs?*", "**/v1/session"


class LateAnswer:
    """The next answer to a path: the proxy gives it, and the page gets it once the test lets it go."""

    def __init__(self, page: Page, path: str) -> None:
        self._page = page
        self._held: list[tuple[Route, APIResponse]] = []
        page.route(path, self._hold, times=1)

    def wait(self) -> None:
        wait_until(lambda: self._page.evaluate("1") and self._held, "the page does not ask for it")

    def let_go(self) -> None:
        """Returns when the page had time to show it; nothing happens when this is repeated."""
        while self._held:
            route, answer = self._held.pop()
            route.fulfill(response=answer)
        self._page.evaluate("fetch('/livez').then((answer) => answer.text())")

    def _hold(self, route: Route) -> None:
        self._held.append((route, route.fetch()))


@pytest.fixture
def limited(sandbox: SandboxControl, tmp_path: Path) -> Iterator[Stack]:
    with limited_proxy(sandbox, tmp_path, {"acme": plan(quotas=[per("subject", "requests", 50)])}, dev=True) as stack:
        yield stack


def open_page(visit: Visit, stack: Stack, subject: str) -> Page:
    visit.open_signed_in(stack.url, stack.token(subject))
    visit.page.get_by_text("Parameters", exact=True).click()
    visit.page.get_by_text("Connection", exact=True).click()
    return visit.page


def submit(stack: Stack, subject: str, *prompts: str) -> None:
    """Jobs of a caller, each some time after the one before; they are done, unless they are held."""
    with stack.client(stack.token(subject)) as client:
        url = client.post("/v1/uploads", content=CHELSEA.read_bytes(), headers={"content-type": "image/png"}).json()
        for prompt in prompts:
            stack.clock.advance(1)
            wanted = {"endpoint": NEXT, "input": {"image_url": url["url"], "prompt": prompt}}
            job = client.post("/v1/jobs", json=wanted).raise_for_status().json()["id"]
            if prompt != HELD:
                wait_until(partial(has_result, client, job), "the job is not done")


def has_result(client: httpx.Client, job: str) -> bool:
    return client.get(f"/v1/jobs/{job}/result").status_code == 200


def rows(page: Page) -> Locator:
    return page.locator("#jobs tr")


# --- parameters


def test_parameters_of_the_endpoint_chosen_before_are_dropped(stack: Stack, visit: Visit) -> None:
    late = LateAnswer(visit.page, f"**/v1/endpoints/{LLAMA}")
    page = open_page(visit, stack, "alice")
    late.wait()
    page.get_by_label("Endpoint").select_option(NEXT)
    page.get_by_label("temperature").fill("0.5")
    expect(page.locator("#in-flight")).not_to_be_empty()
    late.let_go()
    visit.choose(CHELSEA)
    visit.ask("What is this?")
    visit.wait_for("done")
    (sent,) = asked_inputs(stack)
    assert sent["temperature"] == 0.5
    expect(page.locator("#code-text")).to_contain_text('"temperature": 0.5')


def test_values_that_were_typed_for_another_endpoint_are_not_sent(stack: Stack, visit: Visit) -> None:
    page = open_page(visit, stack, "alice")
    visit.choose(CHELSEA)
    page.get_by_label("Endpoint").select_option(NEXT)
    page.get_by_label("temperature").fill("0.5")
    late = LateAnswer(page, f"**/v1/endpoints/{LLAMA}")
    visit.ask("What is this?", endpoint=LLAMA)
    visit.wait_for("done")
    (sent,) = asked_inputs(stack)
    assert "temperature" not in sent
    late.let_go()
    expect(page.locator("#parameter-max_tokens")).to_be_visible()


# --- limits and jobs


@pytest.mark.parametrize("path", [LISTING, STANDING])
def test_limits_and_jobs_never_go_back_to_an_older_state(limited: Stack, visit: Visit, path: str) -> None:
    page = open_page(visit, limited, "alice")
    expect(page.locator("#quotas")).to_contain_text("50 of 50 left")
    visit.choose(CHELSEA)
    late = LateAnswer(page, path)
    visit.ask("First?")
    visit.wait_for("done")
    late.wait()
    visit.ask("Second?")
    for _ in range(2):
        expect(page.locator("#quotas")).to_contain_text("48 of 50 left")
        expect(rows(page)).to_have_count(2)
        late.let_go()


def test_a_further_page_of_jobs_is_dropped_when_the_list_begins_again(stack: Stack, visit: Visit) -> None:
    submit(stack, "diligent", *[f"Number {number}?" for number in range(11)])
    page = open_page(visit, stack, "diligent")
    more = page.get_by_role("button", name="More")
    late = LateAnswer(page, "**/v1/jobs?*cursor=*")
    more.click()
    late.wait()
    visit.choose(CHELSEA)
    visit.ask("One more?")
    visit.wait_for("done")
    expect(more).to_be_enabled()
    late.let_go()
    expect(rows(page)).to_have_count(10)
    more.click()
    expect(rows(page)).to_have_count(12)
    expect(more).to_be_hidden()


def test_jobs_are_listed_once_however_often_more_is_clicked(stack: Stack, visit: Visit) -> None:
    submit(stack, "hasty", *[f"Number {number}?" for number in range(21)])
    page = open_page(visit, stack, "hasty")
    more = page.get_by_role("button", name="More")
    late = LateAnswer(page, "**/v1/jobs?*cursor=*")
    more.dblclick()
    late.wait()
    expect(more).to_be_disabled()
    late.let_go()
    expect(rows(page)).to_have_count(20)
    expect(more).to_be_focused()
    page.keyboard.press("Enter")
    expect(rows(page)).to_have_count(21)


def test_a_cancelled_job_is_marked_in_a_list_that_was_read_meanwhile(stack: Stack, visit: Visit) -> None:
    submit(stack, "hesitant", HELD)
    page = open_page(visit, stack, "hesitant")
    late = LateAnswer(page, "**/v1/jobs/*")
    rows(page).get_by_role("button", name="Cancel").click()
    late.wait()
    visit.choose(CHELSEA)
    visit.ask("Meanwhile?")
    expect(rows(page)).to_have_count(2)
    late.let_go()
    expect(rows(page).filter(has_text=NEXT)).to_contain_text("cancelling")


# --- answers


def test_the_job_that_was_opened_last_is_shown(stack: Stack, visit: Visit) -> None:
    submit(stack, "reader", "The older?", "The newer?")
    page = open_page(visit, stack, "reader")
    expect(rows(page)).to_have_count(2)
    late = LateAnswer(page, "**/v1/jobs/*/result")
    shows = rows(page).get_by_role("button", name="Show")
    shows.last.click()
    late.wait()
    shows.first.click()
    for _ in range(2):
        expect(visit.answer).to_contain_text("The newer?")
        late.let_go()


def test_a_question_takes_the_place_of_a_job_that_was_opened(stack: Stack, visit: Visit) -> None:
    submit(stack, "curious", "Long ago?")
    page = open_page(visit, stack, "curious")
    visit.choose(CHELSEA)
    late = LateAnswer(page, "**/v1/jobs/*/result")
    show = rows(page).filter(has_text=NEXT).get_by_role("button", name="Show")
    show.click()
    late.wait()
    visit.ask(f"And now? {HELD}")
    job = visit.request_id()
    late.let_go()
    expect(show).to_be_disabled()
    expect(visit.answer).to_be_empty()
    stack.sandbox.move_job(job, "finish")
    visit.wait_for("done")
    expect(visit.answer).to_contain_text("And now?")
    expect(rows(page)).to_have_count(2)
    show.click()
    expect(visit.answer).to_contain_text("Long ago?")


def test_the_chosen_picture_takes_the_place_of_the_sample(stack: Stack, visit: Visit) -> None:
    page = open_page(visit, stack, "alice")
    late = LateAnswer(page, "**/chelsea.jpg")
    page.get_by_role("button", name="Use a sample picture").click()
    late.wait()
    visit.choose(CHELSEA)
    late.let_go()
    expect(visit.caption).to_contain_text("chelsea.png")


# --- connections


def test_the_account_that_was_connected_last_is_asked(stack: Stack, visit: Visit) -> None:
    page = open_page(visit, stack, "alice")
    visit.choose(CHELSEA)
    late = LateAnswer(page, STANDING)
    visit.connect(stack.token("bert"))
    late.wait()
    visit.connect(stack.token("carla"))
    for _ in range(2):
        expect(visit.badge).to_contain_text("carla")
        late.let_go()
    visit.ask("As whom?")
    visit.wait_for("done")
    with stack.client(stack.token("carla")) as carla:
        assert len(carla.get("/v1/jobs").json()["jobs"]) == 1


def test_jobs_of_the_account_before_are_not_listed(stack: Stack, visit: Visit) -> None:
    submit(stack, "dora", "Of Dora?")
    late = LateAnswer(visit.page, LISTING)
    page = open_page(visit, stack, "dora")
    late.wait()
    with page.expect_response(LISTING):
        visit.connect(stack.token("emil"))
    late.let_go()
    expect(rows(page)).to_have_count(0)


def test_a_session_that_is_refused_leaves_nothing_of_the_one_before(stack: Stack, visit: Visit) -> None:
    submit(stack, "frida", "Of Frida?")
    page = open_page(visit, stack, "frida")
    visit.choose(CHELSEA)
    expect(rows(page)).to_have_count(1)
    visit.expect_refusal(401, "/v1/session")
    visit.connect("not-a-token")
    expect(visit.failure).to_contain_text("The session token is not valid.")
    expect(rows(page)).to_have_count(0)
    before = len(stack.sandbox.requests())
    visit.ask("As whom?")
    visit.wait_for("failed")
    assert len(stack.sandbox.requests()) == before


def test_a_question_goes_on_while_the_page_connects_again(stack: Stack, visit: Visit) -> None:
    page = open_page(visit, stack, "gustav")
    visit.choose(CHELSEA)
    visit.ask(f"Still there? {HELD}")
    job = visit.request_id()
    visit.connect(stack.token("hanna"))
    expect(visit.badge).to_contain_text("hanna")
    expect(page.locator("#result")).to_have_attribute("data-state", "busy")
    stack.sandbox.move_job(job, "finish")
    visit.wait_for("done")
    expect(visit.answer).to_contain_text("Still there?")


@pytest.mark.parametrize("is_cancelled", [False, True], ids=["asked", "cancelled"])
def test_what_is_clicked_while_the_page_connects_is_not_lost(stack: Stack, visit: Visit, is_cancelled: bool) -> None:
    page = open_page(visit, stack, "ida")
    visit.choose(CHELSEA)
    late = LateAnswer(page, STANDING)
    visit.connect(stack.token("ida"))
    late.wait()
    visit.ask("Too early?")
    if is_cancelled:
        visit.cancel()
        visit.wait_for("cancelled")
    late.let_go()
    visit.wait_for("cancelled" if is_cancelled else "done")
    expect(page.locator("#in-flight")).not_to_be_empty()
    assert len(asked_inputs(stack)) == (not is_cancelled)
