"""Other sites cannot submit forms, read pages or frame them, and no text becomes markup."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.console.operators import Operator, assert_refused, operator_of
from tests.console.test_tenants import entries
from tests.support.limited import operating
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack, proxy_in_front_of

SUSPEND = "/console/tenants/acme/suspend"
EVIL = "https://evil.example"
MARKUP = "<img src=x onerror=alert(1)>'\"&{{7*7}}"


def assert_nothing_happened(proxy: Stack) -> None:
    with operating(proxy) as admin:
        assert admin.get("/v1/admin/tenants/acme").json()["suspended_at"] is None


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": EVIL},
        {"origin": "null"},
        {"origin": ""},
        {"origin": "http://127.0.0.1"},
        {"origin": "http://127.0.0.1:1"},
        {"origin": "http://[::1"},
        {"origin": EVIL, "sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "none"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"},
    ],
    ids=str,
)
def test_a_form_of_another_site_changes_nothing(proxy: Stack, admin: Operator, headers: dict[str, str]) -> None:
    """Not even with the right cookie and the right field."""
    assert_refused(admin.post(SUSPEND, **headers), 403, "not_allowed")
    assert_nothing_happened(proxy)


def test_a_request_without_an_origin_changes_nothing(proxy: Stack, admin: Operator) -> None:
    answer = admin.http.post(SUSPEND, data={"csrf": admin.csrf()})
    assert_refused(answer, 403, "not_allowed")
    assert_nothing_happened(proxy)


def test_a_browser_that_says_same_origin_is_believed(admin: Operator) -> None:
    answer = admin.http.post(SUSPEND, data={"csrf": admin.csrf()}, headers={"sec-fetch-site": "same-origin"})
    assert answer.status_code == 303
    admin.post("/console/tenants/acme/resume")


def test_a_form_needs_the_token_of_its_own_session(proxy: Stack, admin: Operator, night_shift: Operator) -> None:
    for csrf in ("", "x", "é", admin.csrf()[:-1], night_shift.csrf(), admin.csrf("/console/sign-in")):
        assert_refused(admin.send(SUSPEND, {"csrf": csrf}), 403, "not_allowed")
    assert_refused(admin.send(SUSPEND, {"x": "1"}), 403, "not_allowed")
    assert_nothing_happened(proxy)


def test_signing_out_needs_the_token_too(admin: Operator) -> None:
    assert_refused(admin.send("/console/sign-out", {"csrf": "x"}), 403, "not_allowed")
    assert admin.is_signed_in()


def test_nothing_changes_by_a_link(proxy: Stack, admin: Operator) -> None:
    assert admin.get(SUSPEND).status_code == 200
    assert_refused(admin.get(f"{SUSPEND}?csrf={admin.csrf()}"), 400, "bad_request")
    resume = "/console/tenants/acme/resume"
    assert [admin.get(path).status_code for path in (resume, f"{resume}?csrf={admin.csrf()}")] == [405, 405]
    assert_nothing_happened(proxy)


@pytest.mark.parametrize(
    ("content_type", "body", "status", "code"),
    [
        ("application/json", b"{}", 415, "unsupported_media_type"),
        ("text/plain", b"csrf=x", 415, "unsupported_media_type"),
        ("multipart/form-data; boundary=x", b"--x--", 415, "unsupported_media_type"),
        ("application/x-www-form-urlencoded", b"a" * 70_000, 413, "body_too_large"),
        ("application/x-www-form-urlencoded", b"a=1&a=2", 400, "bad_request"),
        ("application/x-www-form-urlencoded", b"a=%ff", 400, "bad_request"),
        ("application/x-www-form-urlencoded", b"a=\xff", 400, "bad_request"),
        ("application/x-www-form-urlencoded", b"a", 400, "bad_request"),
        ("application/x-www-form-urlencoded", b"&".join(b"%d=1" % n for n in range(41)), 400, "bad_request"),
    ],
)
def test_a_malformed_form_is_refused(admin: Operator, content_type: str, body: bytes, status: int, code: str) -> None:
    headers = {"origin": admin.stack.url, "content-type": content_type}
    assert_refused(admin.http.post(SUSPEND, content=body, headers=headers), status, code)


@pytest.mark.parametrize(
    "path",
    [
        "/console",
        "/console/tenants",
        "/console/tenants/acme",
        "/console/tenants/acme/delete",
        "/console/tenants/acme/suspend",
        "/console/tenants/acme/statement/2026-01?format=json",
        "/console/usage/reconciliation",
        "/console/tokens",
        "/console/audit",
    ],
)
def test_no_page_of_another_origin_reads_or_frames_the_console(admin: Operator, path: str) -> None:
    """CORS lets pages of tenants read the proxy's answers, but not the console's."""
    answer = admin.get(path)
    assert answer.status_code in (200, 303)
    for headers in (
        {"origin": EVIL},
        {"origin": admin.stack.other_origin},
        {"sec-fetch-site": "same-site", "sec-fetch-mode": "cors", "sec-fetch-dest": "empty"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "script"},
    ):
        text = assert_refused(admin.get(path, **headers), 403, "not_allowed")
        assert "csrf" not in text


@pytest.mark.parametrize(
    "path", ["/console/sign-in", "/console/tenants", "/console/nothing", "/console/tenants/nobody"]
)
def test_every_page_is_private_and_runs_no_script_of_its_own(admin: Operator, path: str) -> None:
    answer = admin.get(path)
    if path == "/console/nothing":
        assert answer.status_code == 404 and answer.headers["content-type"] == "application/json"
        return
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert (
        policy["default-src"] == "'none'" and policy["frame-ancestors"] == "'none'" and policy["base-uri"] == "'none'"
    )
    assert policy["script-src"] == policy["style-src"] == policy["form-action"] == "'self'"
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers.get_list("cache-control") == ["no-store"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "same-origin"
    assert answer.headers["cross-origin-opener-policy"] == "same-origin"
    assert not re.search(r"<script(?![^>]* src=)|<style| style=| on\w+=|javascript:", answer.text)
    assert "//" not in "".join(re.findall(r'(?:src|href|action)="([^"]*)"', answer.text))


def test_a_link_on_another_site_opens_the_page_for_a_signed_in_operator(admin: Operator) -> None:
    """The cookie is `SameSite=Strict`, so the browser leaves it out of the first request."""
    from_elsewhere = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    with operator_of(admin.stack, None) as other:
        answer = other.get("/console/audit", **from_elsewhere)
    assert answer.status_code == 200 and 'http-equiv="refresh"' in answer.text
    assert "set-cookie" not in answer.headers
    assert admin.get("/console/audit", **from_elsewhere).text.count("<table>") == 1


@pytest.mark.parametrize(
    "path",
    [
        f"/console/tenants?q={quote(MARKUP)}",
        f"/console/tenants?cursor={quote(MARKUP)}",
        f"/console/tenants?{quote(MARKUP)}=1",
        f"/console/audit?tenant={quote(MARKUP)}",
        f"/console/tenants/{quote(MARKUP, safe='')}",
        f"/console/sign-in?next={quote(MARKUP)}",
        f"/console/sign-in?{quote(MARKUP)}=1",
    ],
)
def test_text_of_a_request_does_not_become_markup(admin: Operator, path: str) -> None:
    assert_no_markup(admin.get(path).text)


class Markup(HTMLParser):
    """The names of the elements and attributes of a page, as a browser reads it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attrs}


def assert_no_markup(page: str) -> None:
    found = Markup(page)
    assert "main" in found.elements and "img" not in found.elements
    assert not [name for name in found.attributes if name.startswith("on") or not re.fullmatch("[a-z-]+", name)]


def test_text_of_a_sign_in_does_not_become_markup(stranger: Operator) -> None:
    assert_no_markup(stranger.sign_in(MARKUP, next=MARKUP).text)


def test_names_that_were_stored_do_not_become_markup(proxy: Stack, admin: Operator) -> None:
    with operating(proxy) as operator:
        operator.post("/v1/admin/tenants/acme/keys", json={"name": MARKUP}).raise_for_status()
        operator.request("DELETE", "/v1/admin/sessions", json={"tenant": "acme", "subject": MARKUP}).raise_for_status()
    for path in ("/console/tenants/acme", "/console/audit"):
        page = admin.get(path).text
        assert html.escape(MARKUP, quote=True).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in page
        assert_no_markup(page)
    assert entries(proxy)[-1]["action"] == "session.revoke"


def test_a_page_that_a_tenant_allows_reads_nothing(sandbox: SandboxControl, tmp_path: Path) -> None:
    """Its requests can carry the cookie, if it is on the same site, and CORS would let it read the answer."""
    token = "an-admin-token-of-another-proxy-with-32-bytes"
    with (
        proxy_in_front_of(sandbox, tmp_path, environ={"PROXY_ADMIN_TOKEN": token}) as stack,
        operator_of(stack, token) as operator,
    ):
        answer = operator.get("/console/tenants", origin=stack.other_origin)
        assert answer.headers["access-control-allow-origin"] == stack.other_origin
        assert "csrf" not in assert_refused(answer, 403, "not_allowed")
