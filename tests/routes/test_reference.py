"""`/docs` serves its own files only."""

from __future__ import annotations

import pytest

from tests.support.limited import assert_refused_with
from tests.support.stack import Stack


def test_the_page_needs_no_credential_and_allows_no_other_host(stack: Stack) -> None:
    with stack.client("") as stranger:
        page = stranger.get("/docs")
        assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
        assert "openapi.json" in page.text and "//" not in page.text.replace("<!doctype", "")
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "http" not in policy
        assert page.headers["cache-control"] == "public, max-age=3600"
        assert stranger.get("/docs", headers={"if-none-match": page.headers["etag"]}).status_code == 304
        assert stranger.get("/docs/page.js").headers["content-type"].startswith("text/javascript")


@pytest.mark.parametrize("name", ["x", "index.html", "LICENSE", "..%2f..%2fapi.yaml", "bundle", "page.js%00"])
def test_other_files_are_not_served(stack: Stack, name: str) -> None:
    with stack.client("") as stranger:
        assert_refused_with(stranger.get(f"/docs/{name}"), 404, "not_found")


def test_other_methods_are_refused(stack: Stack) -> None:
    with stack.client() as client:
        assert assert_refused_with(client.post("/docs"), 405, "method_not_allowed")
        assert client.post("/docs").headers["allow"] == "GET, HEAD"
