"""A user with the developer tools finds neither the key nor the session."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import expect

from proxy.sandbox.app import SANDBOX_KEY
from tests.browser.conftest import CHELSEA, serving_the_page
from tests.browser.visit import Received, Visit
from tests.support.stack import Stack
from tests.support.waiting import wait_until

pytestmark = pytest.mark.tools

MODES = ["Live queue", "Polled queue", "Stream"]


def ask_in_every_way(visit: Visit) -> None:
    visit.choose(CHELSEA)
    for mode in MODES:
        for upload in (False, True):
            visit.ask(f"Tell me by {mode}, {upload}.", mode=mode, upload=upload)
            expect(visit.answer).to_contain_text(f"Tell me by {mode}, {upload}.")
            visit.wait_for("done")
    visit.expect_refusal(422, "/api/fal/proxy")
    visit.choose({"name": "fake.png", "mimeType": "image/png", "buffer": b"no picture"})
    visit.ask("Tell me nothing.")
    visit.wait_for("failed")


def held_by(visit: Visit) -> dict[str, str]:
    """Everything in the browser that a script can read, by its place."""
    return {
        "the document": visit.page.content(),
        "document.cookie": visit.page.evaluate("document.cookie"),
        "the console": "\n".join(visit.messages),
        "localStorage and IndexedDB": json.dumps(visit.context.storage_state(indexed_db=True)["origins"]),
        "sessionStorage": visit.page.evaluate("JSON.stringify(sessionStorage)"),
    }


def holders_of(secret: str, held: dict[str, str], received: list[Received]) -> list[str]:
    """The places where the browser holds the secret, or got it in an answer."""
    given = [one.path for one in received if secret in one.url + repr(one.headers) + one.body]
    return [where for where, text in held.items() if secret in text] + given


def assert_the_key_is_nowhere(stack: Stack, visit: Visit) -> None:
    used = {dict(one["headers"])["authorization"] for one in stack.sandbox.requests() if one["host"] != "cdn"}
    assert used == {f"Key {SANDBOX_KEY}"}, "the key that is searched for is not the one in use"
    held = {**held_by(visit), "cookies": json.dumps(visit.context.cookies())}
    received = visit.leave()
    # The search covers streams and the script.
    assert holders_of('"status":"COMPLETED"', {}, received)
    assert holders_of("x-fal-target-url", {}, received) == ["/playground/bundle/main.js"]
    for half in SANDBOX_KEY.split(":"):
        assert holders_of(half, held, received) == []


def test_the_key_never_reaches_a_page_of_the_proxy(stack: Stack, visit: Visit) -> None:
    visit.open_as_guest(stack.url)
    ask_in_every_way(visit)
    assert_the_key_is_nowhere(stack, visit)


def test_the_key_never_reaches_a_page_elsewhere(stack: Stack, visit: Visit) -> None:
    with serving_the_page(stack.other_origin, stack.url) as elsewhere:
        visit.open_with_token(elsewhere, stack.url, stack.token("alice"))
        ask_in_every_way(visit)
        assert_the_key_is_nowhere(stack, visit)


def test_no_script_can_see_the_session_cookie(stack: Stack, visit: Visit) -> None:
    visit.open_signed_in(stack.url, stack.token())
    ask_in_every_way(visit)
    (cookie,) = visit.context.cookies()
    assert (cookie["name"], cookie["httpOnly"], cookie["sameSite"]) == ("fal_session", True, "Lax")
    held = held_by(visit)
    assert held["document.cookie"] == ""
    assert holders_of(cookie["value"], held, visit.leave()) == []


def test_a_guest_gets_the_session_in_one_answer_only(stack: Stack, visit: Visit) -> None:
    visit.open_as_guest(stack.url)
    ask_in_every_way(visit)
    (cookie,) = visit.context.cookies()
    held, received = held_by(visit), visit.leave()
    # Its body has the token too, for apps that can keep no cookie; the page leaves it alone.
    assert holders_of(cookie["value"], held, received) == ["/v1/sessions/guest"]
    (answer,) = [one for one in received if one.path == "/v1/sessions/guest"]
    assert f"fal_session={cookie['value']}; HttpOnly" in dict(answer.headers)["set-cookie"]


def test_an_injected_script_does_not_run(stack: Stack, visit: Visit) -> None:
    visit.open_signed_in(stack.url, stack.token())
    visit.expect_complaint("Content Security Policy")
    visit.page.evaluate(
        """() => {
          const script = document.createElement("script");
          script.textContent = "window.ran = true";
          document.body.append(script);
        }"""
    )
    assert visit.page.evaluate("window.ran") is None
    wait_until(
        lambda: visit.page.evaluate("1") and "Content Security Policy" in "".join(visit.messages),
        lambda: f"the page does not complain: {visit.messages}",
    )
