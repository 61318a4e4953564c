"""The ways in which a picture comes into the page."""

from __future__ import annotations

import base64
import re

import pytest
from playwright.sync_api import Route, TimeoutError, expect

from tests.browser.conftest import CHELSEA
from tests.browser.visit import Visit
from tests.support.stack import Stack

pytestmark = pytest.mark.tools

#: Does what a browser does when a file is dropped on, or pasted into, the element.
GIVE = """([selector, kind, encoded]) => {
  const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], "given.png", { type: "image/png" }));
  const event = kind === "paste"
    ? new ClipboardEvent("paste", { clipboardData: data, bubbles: true })
    : new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true });
  document.querySelector(selector).dispatchEvent(event);
}"""


@pytest.fixture
def user(stack: Stack, visit: Visit) -> Visit:
    visit.open_signed_in(stack.url, stack.token())
    return visit


@pytest.mark.parametrize(
    ("selector", "kind"), [("#drop-zone", "drop"), ("h1", "drop"), ("body", "paste"), ("#question", "paste")]
)
def test_a_picture_is_dropped_or_pasted(user: Visit, selector: str, kind: str) -> None:
    user.page.evaluate(GIVE, [selector, kind, base64.b64encode(CHELSEA.read_bytes()).decode()])
    expect(user.caption).to_have_text(re.compile(r"given\.png · 451 × 300 · \d+ kB"))
    expect(user.page.get_by_alt_text("The chosen picture")).to_be_visible()
    user.ask("Given?")
    user.wait_for("done")
    expect(user.answer).to_contain_text("A PNG picture of 451 × 300")


def test_words_with_a_picture_of_them_are_pasted_as_words(user: Visit) -> None:
    was_left_alone = user.page.evaluate(
        """() => {
          const data = new DataTransfer();
          data.items.add(new File(["a picture"], "words.png", { type: "image/png" }));
          data.setData("text/plain", "words");
          const event = new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true });
          return document.querySelector("#question").dispatchEvent(event);
        }"""
    )
    assert was_left_alone
    expect(user.caption).to_be_empty()


def test_the_sample_picture_is_a_cat_of_the_project(user: Visit) -> None:
    user.page.get_by_role("button", name="Use a sample picture").click()
    expect(user.caption).to_have_text(re.compile(r"chelsea\.jpg · 451 × 300"))
    user.ask("A sample?")
    user.wait_for("done")
    expect(user.answer).to_contain_text("A JPEG picture of 451 × 300")


def test_a_click_that_comes_before_the_script_waits_for_it(stack: Stack, visit: Visit) -> None:
    held: list[Route] = []
    visit.page.route("**/main.js", lambda route: held.append(route))
    visit.expect_refusal(401, "/v1/session")
    visit.page.goto(stack.url, wait_until="commit")
    sample = visit.page.get_by_role("button", name="Use a sample picture")
    expect(sample).to_be_visible()
    with pytest.raises(TimeoutError):
        # Long enough for a click that nothing stops, and no harm on a machine where it is not.
        sample.click(timeout=2000)
    visit.page.unroute("**/main.js")
    sample.click()
    expect(visit.caption).to_contain_text("chelsea.jpg")
    expect(visit.badge).to_contain_text("guest-")


def test_without_a_picture_nothing_is_asked(stack: Stack, user: Visit) -> None:
    user.ask("About what?")
    assert user.page.get_by_label("Choose a picture").evaluate("field => field.validity.valueMissing")
    expect(user.page.locator("#result")).to_have_attribute("data-state", "idle")
    assert stack.sandbox.requests() == []
