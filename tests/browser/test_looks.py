"""How the page looks, on a desk and on a phone, by day and by night; the pictures go to test-results/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import CHELSEA
from tests.browser.large import PHONE, SlowLine, as_file, noise
from tests.browser.visit import Visit
from tests.support.stack import Stack

pytestmark = pytest.mark.tools

RESULTS = Path(__file__).parents[2] / "test-results"
#: WCAG 2, level AA, for text of normal size.
LEAST_CONTRAST = 4.5
PARTS = ["h1", "#session", "#drop-zone", "#preview", "#question", "#endpoint", "#ask", "#cancel", "#answer", "#logs"]

#: [selector, text colour, colour behind it] of every element that shows text of its own and can be used.
_COLOURS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255, 255];
  };
  const showsText = (element) =>
    element.checkVisibility() && !element.matches("script, style, option, :disabled") &&
    (element.matches("input[type=url], textarea, select") ||
      [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.textContent.trim()));
  return [...document.body.querySelectorAll("*")].filter(showsText).map((element) => [
    `${element.localName}#${element.id}: ${element.textContent.trim().slice(0, 30)}`,
    rgba(getComputedStyle(element).color),
    behind(element),
  ]);
}"""


def luminance(colour: list[int]) -> float:
    """Relative luminance of an sRGB colour, as WCAG 2 defines it."""

    def linear(value: int) -> float:
        share = value / 255
        return share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4

    red, green, blue, _ = colour
    return 0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue)


def contrast(one: list[int], other: list[int]) -> float:
    dark, light = sorted([luminance(one), luminance(other)])
    return (light + 0.05) / (dark + 0.05)


def assert_readable(page: Page) -> None:
    found = page.evaluate(_COLOURS)
    assert len(found) > 10
    assert [one for one in found if contrast(one[1], one[2]) < LEAST_CONTRAST] == []


def assert_looks_right(page: Page, *parts: str) -> None:
    width = page.evaluate("document.documentElement.clientWidth")
    assert page.evaluate("document.documentElement.scrollWidth") == width, "the page scrolls sideways"
    for part in parts or PARTS:
        box = page.locator(part).bounding_box()
        assert box, f"{part} is not shown"
        assert box["width"] > 0 and box["height"] > 0, part
        assert box["x"] >= 0 and box["x"] + box["width"] <= width, f"{part} sticks out"
    pale = [
        (what, text, ground)
        for what, text, ground in page.evaluate(_COLOURS)
        if contrast(text, ground) < LEAST_CONTRAST
    ]
    assert pale == []


def assert_side_by_side(page: Page, *, wanted: bool) -> None:
    question, result = page.locator("#ask-form").bounding_box(), page.locator("#result").bounding_box()
    assert question and result
    assert (result["x"] >= question["x"] + question["width"]) == wanted
    assert (result["y"] >= question["y"] + question["height"]) != wanted


@pytest.mark.parametrize("context_options", [{"color_scheme": "light"}, {"color_scheme": "dark"}], ids=["day", "night"])
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_the_page_after_an_answer(
    stack: Stack, visit: Visit, context_options: dict[str, str], width: int, height: int
) -> None:
    visit.page.set_viewport_size({"width": width, "height": height})
    visit.open_signed_in(stack.url, stack.token())
    visit.choose(CHELSEA)
    visit.ask("What is in this picture?")
    visit.wait_for("done")
    # On a phone the answer has scrolled into sight.
    expect(visit.answer).to_be_in_viewport()
    name = f"page-{width}x{height}-{context_options['color_scheme']}.png"
    visit.page.screenshot(path=RESULTS / name, full_page=True)
    assert_looks_right(visit.page)
    assert_side_by_side(visit.page, wanted=width > 860)


@pytest.mark.parametrize("context_options", [{"color_scheme": "light"}, {"color_scheme": "dark"}], ids=["day", "night"])
def test_a_refusal_can_be_read(stack: Stack, visit: Visit, context_options: dict[str, str]) -> None:
    visit.page.set_viewport_size({"width": 1280, "height": 900})
    visit.open_signed_in(stack.url, stack.token())
    visit.expect_refusal(422, "/api/fal/proxy")
    visit.choose({"name": "fake.png", "mimeType": "image/png", "buffer": b"no picture"})
    visit.ask("What is in this picture?")
    visit.wait_for("failed")
    visit.page.get_by_text("Connection", exact=True).click()
    visit.page.screenshot(path=RESULTS / f"page-refusal-{context_options['color_scheme']}.png", full_page=True)
    assert_readable(visit.page)


@pytest.mark.parametrize(
    "context_options",
    [PHONE | {"color_scheme": "light"}, PHONE | {"color_scheme": "dark"}, {"viewport": {"width": 1280, "height": 900}}],
    ids=["phone by day", "phone by night", "desk"],
)
def test_an_upload_on_its_way_and_refused(stack: Stack, visit: Visit, context_options: dict[str, Any]) -> None:
    name = f"page-upload-{context_options['viewport']['width']}-{context_options.get('color_scheme', 'desk')}"
    visit.open_signed_in(stack.url, stack.token())
    line = SlowLine(visit.page)
    visit.choose(as_file(noise(1), "a-picture-with-quite-a-long-name-as-cameras-give-them-20260131-235959.png"))
    expect(visit.page.get_by_alt_text("The chosen picture")).to_be_visible()
    expect(visit.upload_bar).to_be_in_viewport()
    camera = ["[for=camera]"] if "is_mobile" in context_options else []
    assert_looks_right(visit.page, *PARTS, *camera, "#upload-text", "#upload-bar", "#upload-amount", "#cancel-upload")
    # Not the full page: for that, Chromium takes a phone for a desk.
    visit.page.screenshot(path=RESULTS / f"{name}.png")
    line.free()
    visit.expect_refusal(415, "/v1/uploads")
    visit.choose(as_file(b"words " * 200_000))
    expect(visit.upload_text).to_contain_text("was not uploaded")
    assert_looks_right(visit.page, *[part for part in PARTS if part != "#preview"], "#upload-text")
    visit.page.screenshot(path=RESULTS / f"{name}-refused.png")


def test_everything_can_be_done_with_the_keyboard(stack: Stack, visit: Visit) -> None:
    visit.open_signed_in(stack.url, stack.token())
    reached = []
    for _ in range(16):
        visit.page.keyboard.press("Tab")
        reached.append(visit.page.evaluate("document.activeElement.id || document.activeElement.localName"))
    wanted = [
        "summary",
        "picture",
        "sample",
        "question",
        "endpoint",
        "summary",
        "fault",
        "upload",
        "ask",
        "code-client",
    ]
    assert [one for one in reached if one in wanted][: len(wanted)] == wanted


def test_every_control_has_a_name(stack: Stack, visit: Visit) -> None:
    visit.open_signed_in(stack.url, stack.token())
    visit.page.get_by_text("Connection", exact=True).click()
    for control in visit.page.locator("input, select, textarea, button").all():
        name = control.evaluate("one => one.labels?.[0]?.textContent.trim() || one.textContent.trim()")
        assert name, control.evaluate("one => one.outerHTML")
