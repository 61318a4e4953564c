"""One visit of the page: a fresh browser profile, with a record of all answers and complaints."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import BrowserContext, ConsoleMessage, Locator, Page, Request, Response, WebError, expect

from tests.support.waiting import wait_until

#: What Chromium itself writes for an answer of 400 and above; `refusals` says the same, with the address.
_ECHO_OF_A_REFUSAL = "Failed to load resource: the server responded with a status of"
#: Long enough for a machine with much other work.
_WAIT_MILLISECONDS = 120_000

expect.set_options(timeout=_WAIT_MILLISECONDS)


@dataclass(frozen=True)
class Received:
    """An answer as the browser got it; `body` has one character a byte."""

    url: str
    status: int
    headers: list[tuple[str, str]]
    body: str

    @property
    def path(self) -> str:
        return urlsplit(self.url).path


class Visit:
    """Drives the page by what a person sees: roles and labels.

    Whatever goes wrong in the browser fails the test at the end, unless the test said before that it belongs to it:
    `expect_refusal` for an answer of 400 and above, `expect_complaint` for a line in the console.
    """

    def __init__(self, context: BrowserContext, archive: Path) -> None:
        self.context = context
        self._archive = archive
        self.messages: list[str] = []
        self._responses: list[Response] = []
        self._under_way: set[Request] = set()
        self._complaints: list[str] = []
        self._expected_refusals: set[tuple[int, str]] = set()
        self._expected_complaints: list[str] = []
        context.set_default_timeout(_WAIT_MILLISECONDS)
        context.on("request", self._note_request)
        context.on("requestfinished", self._note_end)
        context.on("requestfailed", self._note_end)
        context.on("response", self._note_response)
        context.on("console", self._note_message)
        context.on("weberror", self._note_error)
        self.page: Page = context.new_page()

    def expect_refusal(self, status: int, path: str) -> None:
        self._expected_refusals.add((status, path))

    def expect_complaint(self, pattern: str) -> None:
        self._expected_complaints.append(pattern)

    def open_signed_in(self, url: str, token: str) -> None:
        """Open the page at the proxy's own address, with the cookie that a backend's login would have set."""
        headers = {"authorization": f"Bearer {token}", "origin": url}
        assert self.context.request.post(f"{url}/v1/sessions/cookie", headers=headers).status == 201
        self.page.goto(url)
        expect(self.badge).to_contain_text("until")

    def open_as_guest(self, url: str) -> None:
        """Open the page at the proxy's own address as a stranger, and wait until it holds a session."""
        # The first request of a page without a session is refused, once.
        self.expect_refusal(401, "/v1/session")
        self.page.goto(url)
        expect(self.badge).to_contain_text("guest-")

    def open_with_token(self, page_url: str, proxy_url: str, token: str) -> None:
        """Open the page at another origin, and connect it to the proxy with a session token."""
        self.page.goto(f"{page_url}/?proxy={proxy_url}")
        self.connect(token)
        expect(self.badge).to_contain_text("until")

    def connect(self, token: str) -> None:
        self.page.get_by_label("Session token").fill(token)
        self.page.get_by_role("button", name="Connect").click()

    def choose(self, *files: Path | dict[str, object]) -> None:
        self.page.get_by_label("Choose a picture").set_input_files(list(files))  # type: ignore[arg-type]
        expect(self.caption).not_to_be_empty()

    def ask(self, question: str, *, mode: str = "Live queue", endpoint: str = "", upload: bool = False) -> None:
        self.page.get_by_label("What do you want to know?").fill(question)
        self.page.get_by_label(mode).check()
        self.page.get_by_label("Upload the picture first").set_checked(upload)
        if endpoint:
            self.page.get_by_label("Endpoint").select_option(endpoint)
        self.page.get_by_role("button", name="Ask").click()

    def cancel(self) -> None:
        self.page.locator("#cancel").click()

    def wait_for(self, state: str) -> None:
        """Until the ask is `done`, `failed` or `cancelled`."""
        expect(self.page.locator(f'#result[data-state="{state}"]')).to_be_visible()

    @property
    def badge(self) -> Locator:
        return self.page.locator("#session")

    @property
    def caption(self) -> Locator:
        return self.page.locator("#picture-caption")

    @property
    def upload_text(self) -> Locator:
        return self.page.locator("#upload-text")

    @property
    def upload_bar(self) -> Locator:
        return self.page.locator("#upload-bar")

    @property
    def answer(self) -> Locator:
        return self.page.locator("#answer")

    @property
    def failure(self) -> Locator:
        return self.page.get_by_role("alert")

    @property
    def progress(self) -> Locator:
        return self.page.get_by_role("log", name="Progress")

    @property
    def logs(self) -> Locator:
        return self.page.get_by_role("log", name="Logs")

    def request_id(self) -> str:
        """The id of the job that the page waits for."""
        expect(self.progress).to_contain_text("Accepted as ")
        (accepted,) = [step for step in self.steps() if step.startswith("Accepted as ")]
        return accepted.removeprefix("Accepted as ")

    def steps(self) -> list[str]:
        """The lines of the timeline, without their seconds."""
        return _lines(self.progress, r"\d+\.\d s")

    def log_lines(self) -> list[str]:
        """The log, without its times of day."""
        return _lines(self.logs, r"\d\d:\d\d:\d\d")

    def answers(self) -> list[tuple[int, str]]:
        """Status and path of every answer so far."""
        return [(one.status, urlsplit(one.url).path) for one in self._responses]

    def leave(self) -> list[Received]:
        """Close the browser's profile, and return every answer that it got, whole."""
        # A list that the page reads again, for example, may still be on its way when everything can be seen.
        wait_until(lambda: self.page.evaluate("1") and not self._under_way, lambda: f"no answers: {self._under_way}")
        self.context.close()
        entries = json.loads(self._archive.read_text())["log"]["entries"]
        answered = [entry for entry in entries if entry["response"]["status"] > 0]
        return [_read_response(entry["request"]["url"], entry["response"]) for entry in answered]

    def check(self) -> None:
        """Nothing was refused and nothing complained but what the test expected."""
        refusals = {(status, path) for status, path in self.answers() if status >= 400}
        assert refusals == self._expected_refusals, f"refused: {refusals}"
        unexpected = [line for line in self._complaints if not self._is_expected(line)]
        assert not unexpected, unexpected

    def _is_expected(self, line: str) -> bool:
        return any(re.search(pattern, line) for pattern in self._expected_complaints)

    def _note_request(self, request: Request) -> None:
        self._under_way.add(request)

    def _note_end(self, request: Request) -> None:
        self._under_way.discard(request)

    def _note_response(self, response: Response) -> None:
        self._responses.append(response)

    def _note_message(self, message: ConsoleMessage) -> None:
        self.messages.append(message.text)
        is_echo = message.text.startswith(_ECHO_OF_A_REFUSAL)
        if message.type in ("error", "warning") and not is_echo:
            self._complaints.append(message.text)

    def _note_error(self, error: WebError) -> None:
        self._complaints.append(str(error.error))


def _lines(items: Locator, mark: str) -> list[str]:
    lines = items.get_by_role("listitem").all_text_contents()
    assert all(re.match(mark, line) for line in lines), lines
    return [re.sub(mark, "", line, count=1) for line in lines]


def _read_response(url: str, response: dict[str, Any]) -> Received:
    headers = [(header["name"].lower(), header["value"]) for header in response["headers"]]
    return Received(url, response["status"], headers, _body(response["content"], dict(headers)))


def _body(content: dict[str, str], headers: dict[str, str]) -> str:
    if "text" not in content:
        # Chromium keeps no event stream that must not be stored; tests/security/test_canary.py looks into those.
        if content["mimeType"].startswith("text/event-stream") and "no-store" in headers["cache-control"]:
            return ""
        # Nor does it keep the answer to the upload of a file. It is no more than "{}".
        assert int(headers["content-length"]) <= 2, (content, headers)
        return ""
    if content.get("encoding") == "base64":
        return base64.b64decode(content["text"]).decode("latin-1")
    return content["text"]
