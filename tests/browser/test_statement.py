"""A monthly statement as a page: in both schemes, on a phone and on paper, with its stylesheet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from proxy.clock import to_iso
from tests.browser.test_tools import AXE
from tests.browser.visit import Visit
from tests.support.limited import ADMIN_TOKEN, COUNTING, NEXT, Client, limited_proxy, per, plan
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack

pytestmark = pytest.mark.tools
RESULTS = Path(__file__).parents[2] / "test-results"
PRICES = [{"id": one, "price_per_compute_second": 0.01} for one in (NEXT, COUNTING)]


# The proxy stops after the visit, as in the other fixtures of this folder.
@pytest.fixture
def stack(sandbox: SandboxControl, tmp_path: Path) -> Iterator[Stack]:
    plans = {"acme": plan(quotas=[per("tenant", "requests", 1, "month")])}
    with limited_proxy(sandbox, tmp_path, plans, endpoints=PRICES) as stack:
        with stack.client(ADMIN_TOKEN) as operator, Client(stack, stack.token()) as client:
            gift = {"unit": "requests", "amount": 5, "reason": "order 4711"}
            operator.post("/v1/admin/tenants/acme/grants", json=gift).raise_for_status()
            assert client.run().is_success and client.run(endpoint=COUNTING).is_success
        yield stack


@pytest.mark.parametrize("context_options", [{"color_scheme": "light"}, {"color_scheme": "dark"}], ids=["day", "night"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_for_everyone(stack: Stack, visit: Visit, context_options: dict[str, str], width: int) -> None:
    page, month = visit.page, to_iso(stack.clock.now())[:7]
    page.set_viewport_size({"width": width, "height": 900})
    page.set_extra_http_headers({"authorization": f"Bearer {ADMIN_TOKEN}"})
    page.goto(f"{stack.url}/v1/admin/tenants/acme/statements/{month}")
    expect(page.get_by_role("heading")).to_have_text(f"Statement of {month}")
    expect(page.get_by_text("preliminary")).to_be_visible()
    expect(page.get_by_role("row", name="Total")).to_contain_text("2")
    expect(page.get_by_role("table", name="Paid by grants")).to_contain_text("requests")
    # The stylesheet is there: without it, numbers would stand at the left.
    assert page.locator("tfoot td").first.evaluate("cell => getComputedStyle(cell).textAlign") == "end"
    # A wide table scrolls in its own region.
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run().then(({ violations }) => violations.map(({ id, nodes }) => [id, nodes[0].html]))")
    assert found == []
    RESULTS.mkdir(exist_ok=True)
    page.screenshot(path=RESULTS / f"statement-{width}-{context_options['color_scheme']}.png", full_page=True)


def test_the_page_fits_on_paper(stack: Stack, visit: Visit) -> None:
    page = visit.page
    page.set_extra_http_headers({"authorization": f"Bearer {ADMIN_TOKEN}"})
    page.goto(f"{stack.url}/v1/admin/tenants/acme/statements/{to_iso(stack.clock.now())[:7]}")
    page.emulate_media(media="print", color_scheme="dark")
    # A4 in landscape, without its margins.
    page.set_viewport_size({"width": 1009, "height": 680})
    region = page.get_by_role("region", name="Use by endpoint")
    assert region.evaluate("one => one.scrollWidth <= one.clientWidth")
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "light"
    assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")
    RESULTS.mkdir(exist_ok=True)
    page.screenshot(path=RESULTS / "statement-print.png", full_page=True)
