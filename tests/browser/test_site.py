"""The documentation's site in Chromium: no script of it fails or asks another host for anything."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Request, expect
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from tests.support.servers import running
from tests.support.site import build_site

pytestmark = pytest.mark.tools


def test_every_page_shows_itself_with_what_the_site_has(chromium: Browser, tmp_path: Path) -> None:
    site = build_site(tmp_path)
    requested: list[Request] = []
    complaints: list[str] = []
    with (
        running(Starlette(routes=[Mount("/", StaticFiles(directory=site, html=True))])) as url,
        chromium.new_context() as context,
    ):
        page = context.new_page()
        page.on("request", lambda request: requested.append(request))
        # What the next page breaks off did not fail.
        broken_off = "net::ERR_ABORTED"
        page.on("requestfailed", lambda one: None if one.failure == broken_off else complaints.append(one.url))
        page.on("response", lambda answer: complaints.append(answer.url) if answer.status >= 400 else None)
        page.on("console", lambda line: complaints.append(line.text) if line.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        for path in sorted(site.glob("*.html")):
            page.goto(f"{url}/{path.name}")
            expect(page.locator("h1").first).to_be_visible()
        page.goto(url)
        search = page.get_by_role("textbox", name="Search")
        search.click()
        search.press_sequentially("quota")
        expect(page.locator(".md-search-result__item").first).to_be_visible()
    assert complaints == []
    assert {urlsplit(one.url).netloc for one in requested if one.url.startswith("http")} == {urlsplit(url).netloc}
