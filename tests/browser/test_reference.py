"""`/docs` in a browser: the whole description, without a request to another host."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect

from tests.browser.visit import Visit
from tests.server.commands import PLAINLY
from tests.support.stack import Stack

pytestmark = pytest.mark.tools
RESULTS = Path(__file__).parents[2] / "test-results"


def test_the_reference_shows_every_operation(visit: Visit, shared_stack: Stack) -> None:
    document = httpx.get(f"{shared_stack.url}/openapi.json", **PLAINLY).json()
    operations = sum(name in ("get", "put", "post", "delete") for path in document["paths"].values() for name in path)
    page = visit.page
    page.goto(f"{shared_stack.url}/docs")
    expect(page.locator(".opblock")).to_have_count(operations)
    page.get_by_text("List your jobs, the newest first").click()
    expect(page.get_by_text("next_cursor of the page before")).to_be_visible()
    RESULTS.mkdir(exist_ok=True)
    page.screenshot(path=RESULTS / "reference.png")


def test_a_call_can_be_tried_from_the_reference(visit: Visit, shared_stack: Stack) -> None:
    page = visit.page
    page.goto(f"{shared_stack.url}/docs")
    page.get_by_text("Whether the process runs").click()
    page.get_by_role("button", name="Try it out").click()
    page.get_by_role("button", name="Execute").click()
    expect(page.locator(".live-responses-table tbody .response-col_status").first).to_contain_text("200")
