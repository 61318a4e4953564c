"""Signing in to the console at a provider in Chromium: a served proxy whose console has a port of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.browser.conftest import PAGE
from tests.console.operators import COOKIE
from tests.console.test_oidc import CALLBACK, oidc_environ
from tests.server.commands import Commands, serving
from tests.server.conftest import cli_in
from tests.support.clock import MovableClock
from tests.support.issuer import key_host
from tests.support.openid import OpenIdHost
from tests.support.sandbox import SandboxControl
from tests.support.servers import free_port
from tests.support.stack import sandbox_environ

pytestmark = pytest.mark.tools
AXE = PAGE.parent / "node_modules" / "axe-core" / "axe.min.js"
ADA = {"sub": "u-1", "email": "ada@acme.example", "email_verified": True}


@dataclass
class Company:
    """A provider, and the address at which its operators reach the console."""

    provider: OpenIdHost
    public: str
    console: str


@pytest.fixture
def company(shared_sandbox: SandboxControl, commands: Commands, tmp_path: Path) -> Iterator[Company]:
    console = f"http://127.0.0.1:{free_port()}"
    (folder := tmp_path / "proxy").mkdir()
    with key_host(tmp_path) as (host, trust):
        provider = OpenIdHost(host, trust, MovableClock(), redirect_uris={f"{console}{CALLBACK}"}, has_page=True)
        # Tokens are good for as long as a test on a busy machine takes.
        provider.changed["exp"] = int(time.time()) + 86_400
        environ = {
            **cli_in(folder, commands).environ,
            **sandbox_environ(shared_sandbox.url),
            **oidc_environ(provider.issuer),
            "SSL_CERT_FILE": str(tmp_path / "ca.pem"),
            "PROXY_OPS_PORT": str(urlsplit(console).port),
            "PROXY_CONSOLE_URL": console,
        }
        with serving("serve", environ=environ, folder=folder) as server:
            yield Company(provider, server.url, console)


@pytest.fixture
def context(company: Company, chromium: Browser) -> Iterator[BrowserContext]:
    with chromium.new_context(base_url=company.console, ignore_https_errors=True) as context:
        yield context


def sign_in(context: BrowserContext, company: Company, path: str = "/console", **claims: Any) -> tuple[Page, str]:
    """Sign in at the provider, with these claims; the page where that ends, and the address of the way back."""
    company.provider.person = {**ADA, **claims}
    page, back = context.new_page(), []
    page.on("request", lambda one: back.append(one.url) if urlsplit(one.url).path == CALLBACK else None)
    page.goto(path)
    page.get_by_role("link", name="Sign in with").click()
    page.get_by_role("link", name="Continue").click()
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    (found,) = back
    return page, found


def expect_refusal(page: Page, text: str) -> None:
    expect(page.get_by_role("alert")).to_contain_text(text)
    assert COOKIE not in {cookie.get("name") for cookie in page.context.cookies()}
    page.goto("/console/audit")
    expect(page.get_by_label("Admin token")).to_be_visible()


def test_a_person_signs_in_with_the_role_of_a_claim_and_out(company: Company, context: BrowserContext) -> None:
    page, back = sign_in(context, company, "/console/audit", groups=["fal-admins"])
    expect(page).to_have_url(f"{company.console}/console/audit")
    expect(page.get_by_role("banner")).to_contain_text("oidc:ada@acme.example admin")
    expect(page.get_by_role("row").filter(has_text="console.sign_in").first).to_contain_text("oidc:ada@acme.example")
    # The way back leads to the console's own address, and the public listener has no console.
    assert back.startswith(f"{company.console}{CALLBACK}?") and company.public not in back
    assert context.request.get(f"{company.public}/console").status == 404
    page.goto("/console/tokens")
    expect(page.get_by_role("button", name="Create")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Admin token")).to_be_visible()
    page.go_back()
    expect(page.get_by_label("Admin token")).to_be_visible()


def test_a_viewer_of_the_provider_changes_nothing(company: Company, context: BrowserContext) -> None:
    page, _ = sign_in(context, company, "/console/tenants/acme", groups=["support"])
    expect(page.get_by_role("banner")).to_contain_text("viewer")
    expect(page.get_by_role("button")).to_have_text(["Sign out"])
    expect(page.locator("a.button")).to_have_count(0)
    page.goto("/console/tenants/acme/delete")
    expect(page.get_by_role("alert")).to_contain_text("this one has the role viewer")


def test_a_user_without_a_role_is_refused(company: Company, context: BrowserContext) -> None:
    page, _ = sign_in(context, company, groups=["others"])
    page.evaluate(AXE.read_text())
    assert page.evaluate("axe.run().then(({ violations }) => violations.map(({ id }) => id))") == []
    expect_refusal(page, "Your account has no role here")


def test_a_user_who_declines_at_the_provider_is_refused(company: Company, context: BrowserContext) -> None:
    company.provider.refusal = "access_denied"
    page, _ = sign_in(context, company)
    expect_refusal(page, "access_denied")
    expect(page.locator("b")).to_have_count(0)


def test_a_redirect_from_the_provider_is_accepted_only_once(
    company: Company, context: BrowserContext, chromium: Browser
) -> None:
    attempts: list[Any] = []
    context.on("request", lambda one: attempts.extend(context.cookies()) if "/authorize" in one.url else None)
    _, back = sign_in(context, company, groups=["fal-admins"])
    (attempt, *_) = [cookie for cookie in attempts if cookie["name"] == "fal_console_oidc"]
    with chromium.new_context(base_url=company.console) as other:
        page = other.new_page()
        page.goto(back)
        expect_refusal(page, "has begun no sign-in")
        # Not even with a copy of the cookie.
        other.add_cookies([{"name": attempt["name"], "value": attempt["value"], "url": company.console}])
        page.goto(back)
        expect_refusal(page, "was used before")


def test_a_redirect_of_another_sign_in_is_refused(company: Company, context: BrowserContext) -> None:
    """An attacker's link signs no one in as the attacker."""
    page = context.new_page()
    page.goto("/console/oidc")
    expect(page.get_by_role("link", name="Continue")).to_be_visible()
    page.goto(f"{company.console}{CALLBACK}?{urlencode({'code': 'x', 'state': 'of-the-attacker'})}")
    expect_refusal(page, "belongs to another sign-in (state)")


def test_a_token_of_another_sign_in_is_refused(company: Company, context: BrowserContext) -> None:
    company.provider.changed["nonce"] = "of-another"
    page, _ = sign_in(context, company, groups=["fal-admins"])
    expect_refusal(page, "(nonce)")
