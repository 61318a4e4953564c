"""The console in Chromium: an operator's work up to the audit log, what a viewer sees, and how it looks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.browser.conftest import PAGE
from tests.console.operators import new_token, revoke_token
from tests.routes.jobs import HELD
from tests.support.limited import ADMIN_TOKEN, Client, assert_refused_with, limited_proxy, operating, per, plan
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack
from tests.support.waiting import wait_until

pytestmark = pytest.mark.tools
RESULTS = Path(__file__).parents[2] / "test-results"
AXE = PAGE.parent / "node_modules" / "axe-core" / "axe.min.js"
#: Tests that suspend a tenant have one of their own: where one fails, the others go on.
PLANS = {
    "acme": plan(quotas=[per("tenant", "requests", 10, "month")]),
    "globex": plan(),
    "stark": plan(),
    "umbrella": plan(),
    "wayne": plan(),
}
_TODAY = datetime.now(UTC).date()
PAGES = [
    "/console",
    "/console/tenants",
    "/console/tenants/acme",
    "/console/tenants/acme/subjects",
    "/console/tenants/acme/subject?name=alice",
    "/console/tenants/acme/grants",
    "/console/tenants/acme/overrides",
    "/console/tenants/acme/statement",
    "/console/jobs?tenant=acme",
    "/console/usage?group_by=day",
    f"/console/usage/reconciliation?from={_TODAY - timedelta(days=1)}&to={_TODAY + timedelta(days=1)}",
    "/console/upstreams",
    "/console/alerts",
    "/console/audit",
    "/console/configuration",
    "/console/tokens",
]
PAGES_OF_ADMINS = [
    "/console/tenants/acme/delete",
    "/console/tenants/acme/suspend",
    f"/console/tenants/acme/subject/sign-out?subject={'a' * 80}%20<b>",
    "/console/tenants/acme/subject/forget?name=alice",
]
#: A tenant that is not there yet.
INITECH = """\
plans:
  small:
    endpoints: [fal-ai/llava-next]
    quotas: [{per: tenant, unit: requests, limit: 5, window: day}]
    alerts: [80]
tenants:
  - {id: initech, plan: small}
"""
#: The fields of filters that do not stand in the line of their labels.
_LABELS_FAR_FROM_THEIR_FIELDS = """() => [...document.querySelectorAll(".filter label")].filter((label) => {
  const [name, field] = [label.getBoundingClientRect(), label.control.getBoundingClientRect()];
  return name.bottom <= field.top || field.bottom <= name.top || field.left < name.right;
}).map((label) => label.textContent)"""
#: The refusal of a name that is not typed exactly.
MISTYPED = (400, "/console/tenants/hooli/delete")
#: What Chromium itself writes for a refusal.
ECHO = "Failed to load resource: the server responded with a status of"
SIZES = {"desk": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}


@pytest.fixture(scope="module")
def proxy(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with limited_proxy(shared_sandbox, tmp_path_factory.mktemp("console"), PLANS, reconciles=True) as stack:
        fill_lists(stack)
        yield stack


def fill_lists(stack: Stack) -> None:
    """Put a row into each list whose rows have an action."""
    new_token(stack, "former-shift", "operator")
    with operating(stack) as admin:
        admin.post("/v1/admin/tenants/acme/keys", json={"name": "of the backend"}).raise_for_status()
        override = {"limits": {"max_tokens": 64}, "until": "2999-01-01"}
        admin.put("/v1/admin/tenants/acme/overrides/alice", json=override).raise_for_status()


@pytest.fixture
def context_options() -> dict[str, Any]:
    return {}


@pytest.fixture
def context(proxy: Stack, chromium: Browser, context_options: dict[str, Any]) -> Iterator[BrowserContext]:
    """A fresh profile. What the browser complains about fails the test, such as a violated policy; so does a refusal
    that is not one of those that tests provoke."""
    proxy.clock.advance(61)
    complaints: list[str] = []
    with chromium.new_context(base_url=proxy.url, **context_options) as context:
        context.on("weberror", lambda error: complaints.append(str(error.error)))
        context.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        refused: set[tuple[int, str]] = set()
        context.on(
            "response", lambda one: refused.add((one.status, urlsplit(one.url).path)) if one.status > 399 else None
        )
        yield context
        assert [text for text in complaints if not text.startswith(ECHO)] == []
        assert refused <= {(403, "/console/tenants/acme/suspend"), (404, "/console/tenants/nobody"), MISTYPED}


def sign_in(context: BrowserContext, token: str = ADMIN_TOKEN, path: str = "/console") -> Page:
    page = context.new_page()
    page.goto(path)
    page.get_by_label("Admin token").fill(token)
    page.get_by_role("button", name="Sign in").click()
    expect(page).to_have_url(re.compile(f"{re.escape(path)}$"))
    return page


def create_key(page: Page, name: str) -> str:
    page.get_by_label("Name of a new key").fill(name)
    page.get_by_role("button", name="Create a key").click()
    return page.locator("#new-key").inner_text()


def test_from_the_sign_in_to_the_audit_log(proxy: Stack, context: BrowserContext) -> None:
    page = sign_in(context)
    page.get_by_role("link", name="Tenants", exact=True).click()
    page.get_by_role("link", name="umbrella").click()
    key = create_key(page, "of the browser")
    with Client(proxy, key) as caller:
        assert caller.run().status_code == 200
        page.get_by_role("link", name="Suspend").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Suspend umbrella?")
        page.get_by_role("button", name="Suspend").click()
        expect(page.get_by_role("heading", level=1)).to_contain_text("suspended")
        assert_refused_with(caller.run(), 403, "tenant_suspended")
        page.get_by_role("button", name="Resume").click()
        expect(page.get_by_role("heading", level=1)).to_contain_text("active")
        assert caller.run().status_code == 200
    # The key is on that one page alone.
    assert key not in page.content()
    page.get_by_role("link", name="Audit", exact=True).click()
    for action in ("tenant.resume", "tenant.suspend", "key.create", "console.sign_in"):
        row = page.get_by_role("row").filter(has_text=action).first
        expect(row).to_contain_text("console:PROXY_ADMIN_TOKEN")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Admin token")).to_be_visible()
    page.go_back()
    expect(page.get_by_label("Admin token")).to_be_visible()


def test_a_tenant_from_its_creation_to_its_alert(proxy: Stack, context: BrowserContext) -> None:
    page = sign_in(context, path="/console/configuration")
    page.get_by_label("Plan file").fill(INITECH)
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("heading", name="Create tenant initech")).to_be_visible()
    page.get_by_role("button", name="Apply").click()
    page.goto("/console/tenants/initech")
    with Client(proxy, create_key(page, "of its backend")) as backend:
        token = backend.http.post("/v1/sessions", json={"subject": "alice"}).raise_for_status().json()["token"]
    overview = context.new_page()
    overview.goto("/console")
    in_flight = overview.get_by_role("listitem").filter(has_text="jobs in flight").locator(".figure")
    with Client(proxy, token) as alice:
        job = alice.submitted(HELD)
        proxy.clock.advance(3)
        expect(in_flight).to_have_text("1")
        page.goto("/console/jobs?tenant=initech&status=open")
        page.get_by_role("table").get_by_role("link").first.click()
        expect(page.get_by_role("heading", level=1)).to_contain_text("accepted")
        proxy.sandbox.move_job(job, "go")
        wait_until(lambda: alice.status(job).json()["status"] == "COMPLETED", "the job does not end")
        assert alice.result(job).status_code == 200
        proxy.clock.advance(3)
        expect(in_flight).to_have_text("0")
        page.reload()
        expect(page.get_by_role("heading", level=1)).to_contain_text("settled")
        for _ in range(3):
            assert alice.run().status_code == 200
    # Four of five requests.
    with operating(proxy) as admin:
        wait_until(lambda: admin.get("/v1/admin/alerts?tenant=initech").json()["alerts"], "no alert is raised")
    page.goto("/console/alerts")
    expect(page.get_by_role("row").filter(has_text="initech")).to_contain_text("percent: 80")
    page.goto("/console/tenants/initech")
    expect(page.get_by_role("meter").first).to_be_visible()
    page.goto("/console/audit")
    for action in ("key.create", "tenant.create", "plan.create"):
        expect(page.get_by_role("row").filter(has_text=action).first).to_contain_text("console:PROXY_ADMIN_TOKEN")


def test_a_tenant_goes_once_its_name_is_typed(proxy: Stack, context: BrowserContext) -> None:
    with operating(proxy) as admin:
        file = {"plans": {"acme": PLANS["acme"]}, "tenants": [{"id": "hooli", "plan": "acme"}]}
        admin.put("/v1/admin/tenants", json=file).raise_for_status()
    page = sign_in(context, path="/console/tenants/hooli")
    page.get_by_role("link", name="Delete this tenant").click()
    for typed in ("Hooli", "hooli"):
        page.get_by_label("Type hooli to confirm").fill(typed)
        page.get_by_role("button", name="Delete for good").click()
        if typed != "hooli":
            expect(page.get_by_role("alert")).to_contain_text("nothing has changed")
            page.goto("/console/tenants/hooli/delete")
    expect(page.get_by_role("heading", level=1)).to_have_text("hooli deleted")
    check_page(page, "former")
    page.get_by_role("link", name="Statement").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("hooli~")


def test_a_suspension_that_is_not_confirmed_does_not_happen(proxy: Stack, context: BrowserContext) -> None:
    page = sign_in(context, path="/console/tenants/stark")
    page.get_by_role("link", name="Suspend").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Suspend stark?")
    page.get_by_role("link", name="Go back").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("active")


@pytest.mark.parametrize("context_options", [{"java_script_enabled": False}], ids=["no-scripts"])
def test_a_suspension_without_scripts_is_confirmed_too(proxy: Stack, context: BrowserContext) -> None:
    page = sign_in(context, path="/console/tenants/wayne")
    page.get_by_role("link", name="Suspend").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Suspend wayne?")
    page.goto("/console/tenants/wayne")
    expect(page.get_by_role("heading", level=1)).to_contain_text("active")
    page.get_by_role("link", name="Suspend").click()
    page.get_by_role("button", name="Suspend").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("suspended")
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("active")


def test_a_key_and_an_override_end_once_that_is_confirmed(proxy: Stack, context: BrowserContext) -> None:
    user = "mallory <b>&amp;?"
    page = sign_in(context, path="/console/tenants/stark")
    key = create_key(page, "of a former server").split("_")[1]
    page.get_by_role("link", name=f"Revoke {key}").click()
    expect(page.get_by_role("main")).to_contain_text("Its name is of a former server.")
    page.get_by_role("button", name="Revoke").click()
    expect(page).to_have_url(re.compile("/console/tenants/stark$"))
    expect(page.get_by_role("main")).not_to_contain_text(key)
    page.get_by_role("link", name="Overrides").click()
    page.get_by_label("User", exact=True).fill(user)
    page.get_by_label("Another plan").select_option("globex")
    page.get_by_label("Until").fill("2999-01-01")
    page.get_by_role("button", name="Set").click()
    page.get_by_role("link", name="Clear").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(f"Clear the override of {user}?")
    page.get_by_role("button", name="Clear").click()
    expect(page.get_by_role("main")).to_contain_text("Every user has the limits of the plan.")


def test_a_viewer_reads_and_changes_nothing(proxy: Stack, context: BrowserContext) -> None:
    page = sign_in(context, new_token(proxy, "onlooker", "viewer"))
    for path in PAGES:
        page.goto(path)
        expect(
            page.get_by_role("button", name=re.compile("Suspend|Resume|Create|Revoke|Cancel|Delete|Forget"))
        ).to_have_count(0)
        expect(page.locator("a.button")).to_have_count(0)
    page.goto("/console/tenants/acme")
    # The form that an admin would have, sent from the same page.
    page.evaluate("""() => {
        const form = document.querySelector("form[action='/console/sign-out']");
        form.action = "/console/tenants/acme/suspend";
        form.submit();
    }""")
    expect(page.get_by_role("alert")).to_contain_text("this one has the role viewer")
    page.goto("/console/tenants/acme")
    expect(page.get_by_role("heading", level=1)).to_contain_text("active")
    revoke_token(proxy, "onlooker")
    proxy.clock.advance(3)
    page.reload()
    expect(page.get_by_label("Admin token")).to_be_visible()


def test_the_overview_is_live(proxy: Stack, context: BrowserContext) -> None:
    page = sign_in(context)
    figure = page.get_by_role("listitem").filter(has_text="calls today")
    before = int(figure.locator(".figure").inner_text())
    with Client(proxy, proxy.token(tenant="globex")) as caller:
        assert caller.run().status_code == 200
    proxy.clock.advance(3)
    expect(figure.locator(".figure")).to_have_text(str(before + 1))


def test_usage_is_drawn(proxy: Stack, context: BrowserContext) -> None:
    with Client(proxy, proxy.token(tenant="globex")) as caller:
        assert caller.run().status_code == 200
    page = sign_in(context, path="/console/usage")
    charts = page.get_by_role("img", name=re.compile("as bars"))
    expect(charts).to_have_count(2)
    for chart in charts.all():
        drawn = chart.locator("canvas").evaluate("""(canvas) => {
            const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            const [red, green, blue] = [0x0b, 0x57, 0xb8];
            let found = 0;
            for (let at = 0; at < data.length; at += 4) {
                found += data[at] === red && data[at + 1] === green && data[at + 2] === blue;
            }
            return found;
        }""")
        assert (drawn > 200) == ("Calls" in (chart.get_attribute("aria-label") or ""))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("context_options", [{"color_scheme": "light"}, {"color_scheme": "dark"}], ids=["day", "night"])
def test_every_page_is_accessible_and_fits(
    proxy: Stack, context: BrowserContext, context_options: dict[str, Any], size: str
) -> None:
    RESULTS.mkdir(exist_ok=True)
    with Client(proxy, proxy.token("a-user-with-quite-a-long-name@example.com")) as caller:
        assert caller.run().status_code in (200, 402)
    page = context.new_page()
    page.set_viewport_size(SIZES[size])  # type: ignore[arg-type]
    page.goto("/console/sign-in")
    check_page(page, f"sign-in-{size}-{context_options['color_scheme']}")
    page.get_by_label("Admin token").fill(ADMIN_TOKEN)
    page.get_by_role("button", name="Sign in").click()
    for path in [*PAGES, *PAGES_OF_ADMINS, "/console/tenants/nobody"]:
        page.goto(path)
        check_page(
            page, f"{path.partition('?')[0].strip('/').replace('/', '-')}-{size}-{context_options['color_scheme']}"
        )


def check_page(page: Page, name: str) -> None:
    page.screenshot(path=RESULTS / f"{name}.png", full_page=True)
    # What the browser's tools run is not under the policy of the page.
    page.evaluate(AXE.read_text())
    findings = page.evaluate(
        "axe.run().then(({ violations }) => violations.map(({ id, nodes }) => [id, nodes[0].html]))"
    )
    assert findings == [], name
    width = page.evaluate("document.documentElement.clientWidth")
    assert page.evaluate("document.documentElement.scrollWidth") == width, f"{name} scrolls sideways"


@pytest.mark.parametrize("width", [390, 700, 1024, 1280])
def test_filters_keep_labels_beside_fields(proxy: Stack, context: BrowserContext, width: int) -> None:
    page = sign_in(context)
    page.set_viewport_size({"width": width, "height": 900})
    for path in ("/console/usage", "/console/jobs", "/console/alerts"):
        page.goto(path)
        assert page.locator(".filter label").count() > 1
        assert page.evaluate(_LABELS_FAR_FROM_THEIR_FIELDS) == [], path


def test_a_row_of_a_table_stays_low_on_a_phone(proxy: Stack, context: BrowserContext) -> None:
    """A cell that a phone does not show does not wrap at each word."""
    reason = "Goodwill after the outage of last week, as agreed with the customer on the phone"
    with operating(proxy) as admin:
        grant = {"unit": "requests", "amount": 1, "reason": reason}
        headers = {"idempotency-key": "a-long-reason"}
        admin.post("/v1/admin/tenants/acme/grants", json=grant, headers=headers).raise_for_status()
    page = sign_in(context)
    page.set_viewport_size(SIZES["phone"])  # type: ignore[arg-type]
    page.goto("/console/tenants/acme/grants")
    row = page.get_by_role("row").filter(has_text=reason).bounding_box()
    assert row and row["height"] < 140


def test_everything_can_be_done_with_the_keyboard(proxy: Stack, context: BrowserContext) -> None:
    page = context.new_page()
    page.goto("/console/tenants/acme")
    expect(page.get_by_label("Admin token")).to_be_focused()
    page.keyboard.type(ADMIN_TOKEN)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_contain_text("acme")
    page.wait_for_load_state()
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.textContent.trim() || document.activeElement.name"))
    for wanted in ("Skip to the content", "Overview", "Audit", "Sign out", "Suspend", "name", "Create a key"):
        assert wanted in reached, reached
    page.get_by_role("link", name="Suspend").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Suspend acme?")
    page.get_by_role("link", name="Go back").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_contain_text("active")
