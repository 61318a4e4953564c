"""The tools of the page: parameters, code to copy, limits, earlier jobs, requests, and faults on demand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import CHELSEA, PAGE
from tests.browser.visit import Visit
from tests.clients.install import NODE
from tests.support.limited import NEXT, limited_proxy, per, plan
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack

pytestmark = pytest.mark.tools
RESULTS = Path(__file__).parents[2] / "test-results"
AXE = PAGE.parent / "node_modules" / "axe-core" / "axe.min.js"
PLACEHOLDER = "https://example.com/picture.jpg"


def open_page(visit: Visit, stack: Stack, subject: str = "alice") -> Page:
    visit.open_signed_in(stack.url, stack.token(subject))
    visit.page.get_by_label("Endpoint").select_option(NEXT)
    expect(visit.page.locator("#parameter-temperature")).to_be_attached()
    return visit.page


def asked_inputs(stack: Stack) -> list[dict[str, Any]]:
    """The inputs that reached fal."""
    return [one["json"] for one in stack.sandbox.requests() if "prompt" in (one["json"] or {})]


def test_parameters_come_from_the_schema_and_reach_fal(visit: Visit, stack: Stack) -> None:
    page = open_page(visit, stack)
    visit.choose(CHELSEA)
    page.get_by_text("Parameters", exact=True).click()
    page.get_by_label("max_tokens").fill("3")
    page.get_by_label("temperature").fill("0.5")
    visit.ask("What is this?")
    visit.wait_for("done")
    (sent,) = asked_inputs(stack)
    assert (sent["max_tokens"], sent["temperature"]) == (3, 0.5) and "top_p" not in sent
    assert len(visit.answer.inner_text().split()) == 3


def run_javascript(code: str, folder: Path, environ: dict[str, str]) -> str:
    package = folder / "node_modules" / "@fal-ai"
    package.mkdir(parents=True)
    (package / "client").symlink_to(NODE / "node_modules" / "client-1.10.1")
    # The code's dependencies are installed beside it.
    for dependency in (NODE / "node_modules").iterdir():
        if not (folder / "node_modules" / dependency.name).exists():
            (folder / "node_modules" / dependency.name).symlink_to(dependency)
    (folder / "ask.mjs").write_text(code)
    return run(["node", "ask.mjs"], folder, environ)


def run_python(code: str, folder: Path, environ: dict[str, str]) -> str:
    return run([sys.executable, "-c", code], folder, environ)


def run_shell(code: str, folder: Path, environ: dict[str, str]) -> str:
    return str(json.loads(run(["sh", "-c", code], folder, environ))["output"])


def run(command: list[str], folder: Path, environ: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


RUNNERS = {"javascript": run_javascript, "python": run_python, "curl": run_shell}


@pytest.mark.parametrize("language", RUNNERS)
def test_the_code_beside_the_form_runs(visit: Visit, stack: Stack, tmp_path: Path, language: str) -> None:
    page = open_page(visit, stack)
    page.get_by_label("What do you want to know?").fill("It's a \"quoted\" $question, isn't it?")
    page.get_by_text("Parameters", exact=True).click()
    page.get_by_label("max_tokens").fill("50")
    page.get_by_label("Language").select_option(language)
    code = page.locator("#code-text").inner_text()
    assert PLACEHOLDER in code and stack.token() not in code
    with stack.client() as client:
        typed = {"content-type": "image/png"}
        url = client.post("/v1/uploads", content=CHELSEA.read_bytes(), headers=typed).json()["url"]
    environ = {"PATH": os.environ["PATH"], "FAL_PROXY_SESSION": stack.token()}
    assert "quoted" in RUNNERS[language](code.replace(PLACEHOLDER, url), tmp_path, environ)
    sent = asked_inputs(stack)[-1]
    assert sent["prompt"] == "It's a \"quoted\" $question, isn't it?" and sent["max_tokens"] == 50


def test_the_swift_code_has_the_session_in_its_path(visit: Visit, stack: Stack) -> None:
    page = open_page(visit, stack)
    page.get_by_label("Language").select_option("swift")
    assert f'FalClient.withProxy("{stack.url}/s/\\(session)/api/fal/proxy")' in page.locator("#code-text").inner_text()


@pytest.mark.parametrize("context_options", [{"permissions": ["clipboard-read", "clipboard-write"]}], ids=[""])
def test_the_code_can_be_copied(visit: Visit, stack: Stack) -> None:
    page = open_page(visit, stack)
    page.get_by_role("button", name="Copy").click()
    expect(page.locator("#code-copied")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == page.locator("#code-text").text_content()


@pytest.fixture
def limited(sandbox: SandboxControl, tmp_path: Path) -> Iterator[Stack]:
    plans = {"acme": plan(quotas=[per("subject", "requests", 5), per("tenant", "upload_bytes", 2_000_000_000)])}
    with limited_proxy(sandbox, tmp_path, plans, dev=True) as stack:
        yield stack


def test_what_is_left_is_shown_and_goes_down(limited: Stack, visit: Visit) -> None:
    page = open_page(visit, limited)
    quotas = page.locator("#quotas li")
    expect(quotas.first).to_contain_text("requests, yours, each day: 5 of 5 left")
    expect(quotas.last).to_contain_text("upload bytes, the tenant's, each day: 2.0 GB of 2.0 GB left")
    visit.choose(CHELSEA)
    visit.ask("What is this?")
    visit.wait_for("done")
    expect(quotas.first).to_contain_text("4 of 5 left")


def test_earlier_jobs_can_be_read_and_running_ones_cancelled(visit: Visit, stack: Stack) -> None:
    page = open_page(visit, stack, "historian")
    visit.choose(CHELSEA)
    visit.ask("What is this?")
    visit.wait_for("done")
    answer = visit.answer.inner_text()
    rows = page.locator("#jobs tr")
    expect(rows.first).to_contain_text("done")
    page.reload()
    rows.first.get_by_role("button", name="Show").click()
    expect(visit.answer).to_have_text(answer)
    with stack.client(stack.token("historian")) as client:
        wanted = {
            "endpoint": "fal-ai/llava-next",
            "input": asked_inputs(stack)[0] | {"prompt": "[[pace hold=IN_QUEUE]]"},
        }
        stack.clock.advance(1)
        client.post("/v1/jobs", json=wanted).raise_for_status()
    page.reload()
    rows.first.get_by_role("button", name="Cancel").click()
    expect(rows.first).to_contain_text("cancelling")
    (cancelled,) = [one["path"] for one in stack.sandbox.requests() if one["method"] == "PUT"]
    assert cancelled.endswith("/cancel")


def test_a_fault_fails_the_ask_and_the_next_try_clears_it(visit: Visit, stack: Stack) -> None:
    page = open_page(visit, stack)
    visit.choose(CHELSEA)
    page.get_by_label("What goes wrong").select_option("The model fails")
    visit.expect_refusal(503, "/api/fal/proxy")
    visit.ask("What is this?")
    visit.wait_for("failed")
    expect(page.locator("#failure-message")).to_be_visible()
    page.get_by_label("What goes wrong").select_option("Nothing")
    visit.ask("What is this?")
    visit.wait_for("done")
    expect(page.locator("#failure")).to_be_hidden()


def test_requests_are_shown_with_their_ids_and_without_the_session(visit: Visit, stack: Stack) -> None:
    page = open_page(visit, stack)
    visit.choose(CHELSEA)
    visit.ask("What is this?", upload=True)
    visit.wait_for("done")
    requests = page.locator("#requests")
    expect(requests).to_contain_text("POST /fal-ai/llava-next · 200")
    requests.get_by_text("POST /fal-ai/llava-next · 200").click()
    expect(requests.locator("details[open] pre")).to_contain_text("< x-request-id:")
    shown = requests.inner_text()
    assert stack.token() not in shown and "/uploads/…" in shown


@pytest.mark.parametrize("context_options", [{"color_scheme": "light"}, {"color_scheme": "dark"}], ids=["day", "night"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing(visit: Visit, stack: Stack, context_options: dict[str, str], width: int) -> None:
    page = open_page(visit, stack)
    page.set_viewport_size({"width": width, "height": 900})
    visit.choose(CHELSEA)
    visit.ask("What is this?")
    visit.wait_for("done")
    expect(page.locator("#jobs tr").first).to_contain_text("done")
    for summary in page.locator("summary").all()[:4]:
        summary.click()
    page.evaluate(AXE.read_text())
    violations = page.evaluate(
        "axe.run().then(({ violations }) => violations.map(({ id, nodes }) => [id, nodes[0].html]))"
    )
    assert violations == []
    page.screenshot(path=RESULTS / f"tools-{width}-{context_options['color_scheme']}.png", full_page=True)
