"""A large picture is uploaded as soon as it is chosen; the upload can be watched, cancelled and started again."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import CHELSEA, serving_the_page
from tests.browser.large import PHONE, SlowLine, as_file, noise
from tests.browser.test_picture import GIVE
from tests.browser.visit import Visit
from tests.support.limited import limited_proxy, plan
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack

pytestmark = pytest.mark.tools

UPLOADS = "/v1/uploads"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def digests_of(sandbox: SandboxControl) -> list[str]:
    """The digests of the files that arrived completely."""
    return [
        one["body_sha256"]
        for one in sandbox.requests()
        if (one["host"], one["method"], one["answered"]) == ("cdn", "PUT", 200)
    ]


def upload_paths(sandbox: SandboxControl) -> list[str]:
    """The URLs of all uploads, finished or not."""
    return [one["path"] for one in sandbox.requests() if (one["host"], one["method"]) == ("cdn", "PUT")]


@pytest.fixture
def user(stack: Stack, visit: Visit) -> Visit:
    visit.open_signed_in(stack.url, stack.token())
    return visit


def assert_answered(user: Visit, content: bytes, question: str) -> None:
    """Check that the model received exactly this file, and the question."""
    user.wait_for("done")
    expect(user.answer).to_contain_text(sha256(content)[:16])
    expect(user.answer).to_contain_text(question)


def assert_on_its_way(user: Visit) -> None:
    expect(user.upload_bar).to_be_visible()
    expect(user.page.locator("#upload-amount")).to_have_text(re.compile(r"^(0\.[1-9]|1\.[0-3]) of 1\.4 MB$"))


# --- progress


def test_the_progress_of_an_upload_is_shown(stack: Stack, user: Visit) -> None:
    line = SlowLine(user.page)
    user.page.evaluate(
        """() => {
          window.seen = [];
          const bar = document.querySelector("#upload-bar");
          new MutationObserver(() => window.seen.push(bar.value)).observe(bar, { attributeFilter: ["value"] });
        }"""
    )
    user.choose(as_file(noise(1)))
    expect(user.upload_text).to_have_text("Uploading the picture")
    expect(user.page.get_by_role("progressbar", name="Upload")).to_be_visible()
    assert_on_its_way(user)
    user.page.wait_for_function("new Set(window.seen).size >= 5")
    line.free()
    expect(user.upload_text).to_have_text("The picture is uploaded.")
    expect(user.upload_bar).to_be_hidden()
    seen = user.page.evaluate("window.seen")
    assert all(earlier <= later for earlier, later in pairwise(seen))
    assert seen[-1] == len(noise(1))
    assert digests_of(stack.sandbox) == [sha256(noise(1))]


def test_a_question_uses_the_url_of_the_upload_which_is_sent_once(stack: Stack, user: Visit) -> None:
    user.choose(as_file(noise(1)))
    for question in ("Which noise?", "Which again?"):
        user.ask(question)
        assert_answered(user, noise(1), question)
    assert digests_of(stack.sandbox) == [sha256(noise(1))]
    asked = [one["json"]["image_url"] for one in stack.sandbox.requests() if (one["json"] or {}).get("prompt")]
    assert len(asked) == 2 and not [url for url in asked if url.startswith("data:")]


def test_a_question_waits_for_the_upload(stack: Stack, user: Visit) -> None:
    line = SlowLine(user.page)
    user.choose(as_file(noise(1)))
    assert_on_its_way(user)
    user.ask("Which noise?", mode="Stream")
    expect(user.progress).to_contain_text("Uploading the picture")
    line.free()
    assert_answered(user, noise(1), "Which noise?")
    assert user.steps() == ["Uploading the picture", "Opening the stream", "Streaming", "Answered"]
    assert digests_of(stack.sandbox) == [sha256(noise(1))]


def test_a_small_picture_is_sent_inside_the_question(stack: Stack, user: Visit) -> None:
    user.choose(CHELSEA)
    user.ask("Which animal?")
    user.wait_for("done")
    expect(user.upload_text).to_be_empty()
    assert digests_of(stack.sandbox) == []


# --- the ways into the page


@pytest.mark.parametrize(("selector", "kind"), [("#drop-zone", "drop"), ("body", "drop"), ("body", "paste")])
def test_a_dropped_or_pasted_picture_arrives_byte_for_byte(stack: Stack, user: Visit, selector: str, kind: str) -> None:
    user.page.evaluate(GIVE, [selector, kind, base64.b64encode(noise(2)).decode()])
    expect(user.upload_text).to_have_text("The picture is uploaded.")
    assert digests_of(stack.sandbox) == [sha256(noise(2))]


@pytest.mark.parametrize("context_options", [PHONE], ids=["phone"])
def test_a_photographed_picture_arrives_byte_for_byte(
    stack: Stack, user: Visit, context_options: dict[str, Any]
) -> None:
    expect(user.page.get_by_text("Take a photo")).to_be_visible()
    camera = user.page.get_by_label("Take a photo")
    expect(camera).to_have_attribute("capture", "environment")
    expect(camera).to_have_attribute("accept", "image/*")
    camera.set_input_files([as_file(noise(3), "photo.png")])  # type: ignore[list-item]
    expect(user.caption).to_contain_text("photo.png · 800 × 600")
    user.ask("Which noise?")
    assert_answered(user, noise(3), "Which noise?")
    assert digests_of(stack.sandbox) == [sha256(noise(3))]


def test_on_a_desk_there_is_no_camera_to_choose(user: Visit) -> None:
    expect(user.page.get_by_text("Choose a picture")).to_be_visible()
    expect(user.page.get_by_text("Take a photo")).to_be_hidden()


def test_a_picture_is_uploaded_from_another_origin_with_a_token(stack: Stack, visit: Visit) -> None:
    with serving_the_page(stack.other_origin, stack.url) as elsewhere:
        visit.open_with_token(elsewhere, stack.url, stack.token())
        line = SlowLine(visit.page)
        visit.choose(as_file(noise(1)))
        assert_on_its_way(visit)
        line.free()
        visit.ask("Which noise?")
        assert_answered(visit, noise(1), "Which noise?")
    assert digests_of(stack.sandbox) == [sha256(noise(1))]


def test_a_picture_chosen_without_a_session_is_uploaded_once_there_is_one(stack: Stack, visit: Visit) -> None:
    with serving_the_page(stack.other_origin, stack.url) as elsewhere:
        visit.page.goto(f"{elsewhere}/?proxy={stack.url}")
        visit.choose(as_file(noise(1)))
        expect(visit.upload_text).to_contain_text("A session token is needed")
        visit.connect(stack.token())
        expect(visit.upload_text).to_have_text("The picture is uploaded.")


# --- refusals


def assert_not_uploaded(user: Visit, words: str, error_type: str) -> None:
    """The page shows the reason and stays usable: the next question with a small picture works."""
    expect(user.upload_text).to_contain_text("The picture was not uploaded: ")
    expect(user.upload_text).to_contain_text(words)
    expect(user.upload_text).to_contain_text(f"({error_type})")
    user.choose(CHELSEA)
    expect(user.upload_text).to_be_empty()
    user.ask("Which animal?")
    assert_answered(user, CHELSEA.read_bytes(), "Which animal?")


def test_a_picture_that_is_too_large_is_refused(user: Visit) -> None:
    user.expect_refusal(413, UPLOADS)
    user.choose(as_file(noise(1) + bytes(10 * 1024 * 1024)))
    assert_not_uploaded(user, "The file is larger than the 10485760 bytes that this plan allows.", "body_too_large")


def test_a_picture_that_is_much_too_large_is_refused(user: Visit, tmp_path: Path) -> None:
    """The proxy does not read such a file to its end, but the page still shows the reason."""
    huge = tmp_path / "huge.png"
    huge.write_bytes(noise(1) + bytes(80 * 1024 * 1024))
    user.expect_refusal(413, UPLOADS)
    user.choose(huge)
    assert_not_uploaded(user, "The file is larger than the 10485760 bytes that this plan allows.", "body_too_large")


def test_a_picture_of_a_forbidden_type_is_refused(user: Visit) -> None:
    user.expect_refusal(415, UPLOADS)
    user.choose({"name": "notes.txt", "mimeType": "text/plain", "buffer": b"words " * 200_000})
    assert_not_uploaded(user, "The plan does not allow files of this type", "unsupported_media_type")


def test_a_file_whose_content_has_another_type_is_refused(user: Visit) -> None:
    user.expect_refusal(415, UPLOADS)
    user.choose(as_file(b"words " * 200_000))
    assert_not_uploaded(user, "", "unsupported_media_type")


@pytest.fixture(scope="module")
def sparing(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A proxy whose callers may upload a megabyte a day."""
    plans = {"acme": plan(uploads={"bytes_per_day": 1_000_000})}
    with limited_proxy(shared_sandbox, tmp_path_factory.mktemp("sparing"), plans, dev=True) as stack:
        yield stack


def test_a_picture_beyond_the_quota_is_refused(sparing: Stack, visit: Visit) -> None:
    visit.open_signed_in(sparing.url, sparing.token())
    visit.expect_refusal(402, UPLOADS)
    visit.choose(as_file(noise(1)))
    assert_not_uploaded(visit, "upload_bytes", "quota_exceeded")


def test_a_question_about_a_refused_picture_is_refused_too(user: Visit) -> None:
    user.expect_refusal(415, UPLOADS)
    user.choose(as_file(b"words " * 200_000))
    expect(user.upload_text).to_contain_text("(unsupported_media_type)")
    user.ask("What?")
    user.wait_for("failed")
    expect(user.page.locator("#failure-type")).to_have_text("unsupported_media_type")
    expect(user.page.locator("#failure-request-id")).not_to_have_text("none")


def test_a_broken_connection_shows_an_error_and_can_be_retried(stack: Stack, user: Visit) -> None:
    user.expect_complaint("ERR_FAILED")
    user.page.route(f"**{UPLOADS}*", lambda route: route.abort(), times=1)
    user.choose(as_file(noise(1)))
    expect(user.upload_text).to_contain_text("The upload broke off")
    user.ask("Which noise?")
    assert_answered(user, noise(1), "Which noise?")
    assert digests_of(stack.sandbox) == [sha256(noise(1))]


# --- cancel, and another picture meanwhile


def test_an_upload_is_cancelled_with_the_keyboard(user: Visit) -> None:
    SlowLine(user.page)
    user.choose(as_file(noise(1)))
    assert_on_its_way(user)
    user.page.get_by_role("button", name="Use a sample picture").focus()
    user.page.keyboard.press("Tab")
    user.page.keyboard.press("Enter")
    expect(user.upload_text).to_contain_text("The upload was cancelled.")


def test_a_cancelled_upload_starts_again_with_the_next_question(stack: Stack, user: Visit) -> None:
    line = SlowLine(user.page)
    user.choose(as_file(noise(1)))
    assert_on_its_way(user)
    user.page.get_by_role("button", name="Cancel the upload").click()
    expect(user.upload_text).to_contain_text("The upload was cancelled.")
    expect(user.upload_bar).to_be_hidden()
    line.free()
    user.ask("Which noise?")
    assert_answered(user, noise(1), "Which noise?")
    # The throttle releases held bytes when the browser gives up: the first picture may have arrived, too.
    assert set(digests_of(stack.sandbox)) == {sha256(noise(1))} and len(upload_paths(stack.sandbox)) == 2


@pytest.mark.parametrize("button", ["Cancel", "Cancel the upload"])
def test_cancelling_an_upload_cancels_the_waiting_question(stack: Stack, user: Visit, button: str) -> None:
    SlowLine(user.page)
    user.choose(as_file(noise(1)))
    user.ask("Never?")
    assert_on_its_way(user)
    user.page.get_by_role("button", name=button, exact=True).click()
    user.wait_for("cancelled")
    expect(user.upload_text).to_contain_text("The upload was cancelled.")
    expect(user.failure).to_be_hidden()
    assert [one for one in stack.sandbox.requests() if one["host"] not in ("rest", "cdn")] == []


@pytest.mark.parametrize("second", ["large", "small"])
def test_another_picture_is_chosen_during_an_upload(stack: Stack, user: Visit, second: str) -> None:
    line = SlowLine(user.page)
    user.choose(as_file(noise(1)))
    assert_on_its_way(user)
    content = noise(2) if second == "large" else CHELSEA.read_bytes()
    with user.page.expect_event("requestfailed", lambda request: UPLOADS in request.url):
        user.choose(as_file(content, "second.png"))
    expect(user.caption).to_contain_text("second.png")
    line.free()
    user.ask("Which one?")
    assert_answered(user, content, "Which one?")
    # The first picture may have arrived, too, once the throttle released it.
    assert set(digests_of(stack.sandbox)) - {sha256(noise(1))} == ({sha256(content)} if second == "large" else set())
