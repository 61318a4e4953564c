"""The example page that needs no build step, in Chromium, at an origin of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Route, expect
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from tests.browser.conftest import CHELSEA
from tests.clients.expectations import describes_the_picture
from tests.support.limited import limited_proxy, plan
from tests.support.sandbox import SandboxControl
from tests.support.servers import free_port, running
from tests.support.stack import Stack

pytestmark = pytest.mark.tools

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "test-results"
EXAMPLE, PAGE = ROOT / "examples" / "browser", ROOT / "proxy" / "playground" / "web"


@pytest.fixture(scope="module")
def page_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example as `npm ci` leaves it, with the packages that the development page was built from."""
    folder = tmp_path_factory.mktemp("example") / "browser"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("node_modules", "vendor"))
    (folder / "node_modules").symlink_to(PAGE / "node_modules", target_is_directory=True)
    subprocess.run(["npm", "run", "--silent", "prepare"], cwd=folder, check=True, timeout=60)
    return folder


def test_the_packages_are_those_of_the_development_page() -> None:
    example, page = (json.loads((folder / "package.json").read_text()) for folder in (EXAMPLE, PAGE))
    assert example["dependencies"].items() <= {**page["dependencies"], **page["devDependencies"]}.items()


def test_the_example_shows_answers_and_refusals(chromium: Browser, stack: Stack, page_folder: Path) -> None:
    app = Starlette(routes=[Mount("/", StaticFiles(directory=page_folder, html=True))])
    with running(app, port=urlsplit(stack.other_origin).port), chromium.new_context() as context:
        page, held = context.new_page(), []
        page.route("**/ask.js", lambda route: held.append(route))
        page.goto(stack.other_origin, wait_until="commit")
        page.get_by_label("Proxy").fill(stack.url)
        page.get_by_label("Session, or nothing").fill(stack.token())
        page.get_by_label("Picture").set_input_files(CHELSEA)
        # Before the script is there, a form would send the session as a part of the address.
        page.get_by_label("Question").press("Enter")
        expect(page.get_by_role("button", name="Ask")).to_be_disabled()
        assert page.url == f"{stack.other_origin}/"
        page.unroute("**/ask.js")
        before = {job["id"] for job in stack.sandbox.jobs()}
        page.get_by_label("Question").fill("What? [[pace hold=IN_QUEUE]]")
        page.get_by_role("button", name="Ask").click()
        expect(page.locator("p")).to_contain_text("IN_QUEUE")
        # The answer to a second question might come before that to the first.
        expect(page.get_by_role("button", name="Ask")).to_be_disabled()
        (job,) = {job["id"] for job in stack.sandbox.jobs()} - before
        stack.sandbox.move_job(job, "finish")
        expect(page.locator("output")).to_contain_text("451 × 300")
        assert describes_the_picture(page.locator("output").inner_text())
        page.get_by_label("Session, or nothing").fill("nonsense")
        page.get_by_role("button", name="Ask").click()
        expect(page.locator("p")).to_contain_text("(unauthenticated)")


def test_without_a_session_the_example_works_for_one(
    chromium: Browser, sandbox: SandboxControl, tmp_path: Path, page_folder: Path
) -> None:
    origin = f"http://localhost:{free_port()}"
    guests = {"enabled": True, "tiers": [{"proof": "pow", "plan": "acme", "difficulty": 2000}]}
    tenants = {"acme": {"allowed_origins": [origin], "guests": guests}}
    app = Starlette(routes=[Mount("/", StaticFiles(directory=page_folder, html=True))])
    held: list[Route] = []
    with (
        limited_proxy(sandbox, tmp_path, {"acme": plan()}, tenants=tenants) as stack,
        running(app, port=urlsplit(origin).port),
        chromium.new_context() as context,
    ):
        page = context.new_page()
        page.goto(origin)
        page.get_by_label("Proxy").fill(stack.url)
        page.get_by_label("Picture").set_input_files(CHELSEA)
        # The work waits until it was seen.
        page.route("**/v1/sessions/challenge", lambda route: held.append(route))
        page.get_by_role("button", name="Ask").click()
        expect(page.locator("altcha-widget")).to_be_visible()
        page.screenshot(path=RESULTS / "example-proof.png")
        # This lets go what is held, too.
        page.unroute("**/v1/sessions/challenge")
        expect(page.locator("output")).to_contain_text("451 × 300")
        # The session is there already.
        minted = []
        page.on("response", lambda answer: minted.append(answer.url) if "/sessions/" in answer.url else None)
        page.get_by_label("Question").fill("Once more?")
        page.get_by_role("button", name="Ask").click()
        expect(page.locator("output")).to_contain_text("Once more?")
        assert minted == []
