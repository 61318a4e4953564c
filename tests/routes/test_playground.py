"""`/playground`: off unless a setting turns it on, and then it serves its own files only."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx
import pytest

from proxy.limits.rates import DESCRIPTION_LIMIT
from tests.support.limited import assert_refused_with
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack, proxy_in_front_of


@pytest.fixture(scope="module")
def opened(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    environ = {"PROXY_PLAYGROUND": "on"}
    # Trusts forwarded addresses from the loopback, as `serve` does.
    trusting = {"proxy_headers": True, "forwarded_allow_ips": ["127.0.0.0/8"]}
    folder = tmp_path_factory.mktemp("playground")
    with proxy_in_front_of(shared_sandbox, folder, environ=environ, server=trusting) as stack:
        yield stack


@pytest.fixture
def stranger(opened: Stack) -> Iterator[httpx.Client]:
    with opened.client("") as client:
        yield client


@pytest.mark.parametrize("path", ["/playground", "/playground/", "/playground/page.css", "/"])
def test_there_is_no_page_unless_it_is_turned_on(tls_stack: Stack, path: str) -> None:
    with tls_stack.client("") as stranger:
        assert_refused_with(stranger.get(path), 404, "not_found")


def test_the_page_needs_no_credential_and_allows_no_other_host(stranger: httpx.Client) -> None:
    page = stranger.get("/playground")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self';" in policy and "connect-src 'self';" in policy
    assert "frame-ancestors 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert (page.headers["cache-control"], page.headers["referrer-policy"]) == ("no-cache", "no-referrer")
    assert "set-cookie" not in page.headers
    assert not re.search(r"<script(?![^>]* src=)|<style| style=| on\w+=", page.text)


@pytest.mark.parametrize("kind", [r"text/css", r"image/svg\+xml"])
def test_the_files_that_the_page_names_are_served(stranger: httpx.Client, kind: str) -> None:
    named = re.findall(r'(?:href|src)="(playground/[^"]+)"', stranger.get("/playground").text)
    assert "playground/bundle/main.js" in named
    found = [stranger.get(f"/{path}") for path in {*named} - {"playground/bundle/main.js"}]
    (file,) = [one for one in found if re.match(kind, one.headers["content-type"])]
    assert file.status_code == 200 and "default-src 'none'" in file.headers["content-security-policy"]
    assert stranger.get(file.url, headers={"if-none-match": file.headers["etag"]}).status_code == 304


def test_controls_of_the_sandbox_are_shown_in_dev_mode_only(stranger: httpx.Client, stack: Stack) -> None:
    with stack.client("") as developer:
        pages = {path: developer.get(path).text for path in ("/", "/playground")}
    assert pages["/"] == pages["/playground"] and "[[fault" in pages["/"]
    served = stranger.get("/playground").text
    assert "[[" not in served and 'id="fault"' not in served and "sandbox" not in served
    assert 'id="ask-form"' in served and served.rstrip().endswith("</html>")


@pytest.mark.parametrize("name", ["", "x", "index.html", "..%2findex.html", "samples", "page.css%00"])
def test_other_files_are_not_served(stranger: httpx.Client, name: str) -> None:
    assert_refused_with(stranger.get(f"/playground/{name}"), 404, "not_found")


def test_the_page_is_at_its_path_alone(stranger: httpx.Client) -> None:
    assert_refused_with(stranger.get("/"), 404, "not_found")


@pytest.mark.parametrize("path", ["/playground", "/playground/page.css"])
def test_other_methods_are_refused(stranger: httpx.Client, path: str) -> None:
    answer = stranger.post(path)
    assert_refused_with(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize("path", ["/playground", "/playground/page.css"])
def test_the_playground_has_a_flood_guard(stranger: httpx.Client, path: str) -> None:
    most = int(DESCRIPTION_LIMIT.partition("/")[0])
    here, elsewhere = {"x-forwarded-for": "192.0.2.200"}, {"x-forwarded-for": "192.0.2.201"}
    assert {stranger.get(path, headers=here).status_code for _ in range(most)} == {200}
    assert_refused_with(stranger.get(path, headers=here), 429, "rate_limited", "ip")
    assert stranger.get(path, headers=elsewhere).status_code == 200
