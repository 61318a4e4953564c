"""The page of monthly statements: the figures of the admin API, as a table and as downloads."""

from __future__ import annotations

import html
import re
from datetime import UTC, datetime, timedelta

import pytest

from proxy.clock import to_iso
from tests.console.operators import Operator, assert_refused
from tests.support.limited import Client, operating
from tests.support.stack import Stack

PAGE = "/console/tenants/acme/statement"


def month_of(proxy: Stack) -> str:
    return to_iso(proxy.clock.now())[:7]


def cells(page: str) -> list[list[str]]:
    """The rows of a page's first table, head and foot included."""
    table = page.partition("<table>")[2].partition("</table>")[0]
    return [re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)]


@pytest.fixture(scope="module", autouse=True)
def _some_calls(proxy: Stack) -> None:
    """Calls in the middle of a month, which does not end while the tests run."""
    first = datetime.fromtimestamp(proxy.clock.now(), UTC).replace(day=1, hour=12)
    proxy.clock.set((first + timedelta(days=45)).replace(day=15).isoformat())
    with Client(proxy, proxy.token("erin")) as caller:
        assert caller.run().status_code == 200


def test_the_page_has_the_figures_of_the_admin_api(proxy: Stack, viewer: Operator) -> None:
    month = month_of(proxy)
    with operating(proxy) as admin:
        wanted = admin.get(f"/v1/admin/tenants/acme/statements/{month}").raise_for_status().json()
    page = viewer.get(PAGE).text
    head, *lines, total = cells(page)
    assert [row[0] for row in lines] == [line["endpoint"] for line in wanted["lines"]] and lines
    for row, line in zip([*lines, total], [*wanted["lines"], wanted["total"]], strict=True):
        shown = dict(zip(head[1:], row[1:], strict=True))
        assert shown == {name: "–" if line[name] is None else str(line[name]) for name in head[1:]}
    assert total[0] == "Total" and int(total[1]) >= 1
    assert f'value="{month}" max="{month}"' in page and ">preliminary<" in page
    assert viewer.get(f"{PAGE}?month={month}").text == page


def test_a_statement_is_downloaded(proxy: Stack, viewer: Operator) -> None:
    links = re.findall(rf'href="({PAGE}/[^"]+)"', viewer.get(PAGE).text)
    with operating(proxy) as admin:
        for link, kind in zip(links, ("text/html", "text/csv", "application/json"), strict=True):
            answer = viewer.get(html.unescape(link))
            path, _, query = link.rpartition("/")[2].partition("?")
            wanted = admin.get(f"/v1/admin/tenants/acme/statements/{path}?{query}").raise_for_status()
            assert answer.headers["content-type"].startswith(kind) and answer.headers["cache-control"] == "no-store"
            assert answer.headers.get("content-disposition") == wanted.headers.get("content-disposition")
            if kind != "text/html":
                assert answer.text == wanted.text
                continue
            # The page to print loads its style from the console.
            style = re.search(r'rel="stylesheet" href="([^"]+)"', answer.text)
            assert style and style[1].startswith("/console/static/")
            assert viewer.get(style[1]).headers["content-type"].startswith("text/css")
            assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


def test_a_month_that_is_over_is_final(proxy: Stack, viewer: Operator) -> None:
    # The proxy is shared: others have used something in the months since it started.
    year, month = month_of(proxy).split("-")
    page = viewer.get(f"{PAGE}?month={int(year) - 2}-{month}").text
    assert ">final<" in page and "Nothing was used" in page


def test_the_amount_paid_by_grants_is_shown_below(proxy: Stack, viewer: Operator) -> None:
    with operating(proxy) as admin, Client(proxy, proxy.token("a-grantee")) as caller:
        gift = {"subject": "a-grantee", "unit": "requests", "amount": 2, "reason": "<i>"}
        admin.post("/v1/admin/tenants/acme/grants", json=gift).raise_for_status()
        # The plan pays nine.
        for _ in range(10):
            assert caller.run().status_code == 200
    page = viewer.get(PAGE).text
    assert "Paid by grants" in page and "its users" in page.partition("Paid by grants")[2]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("?month=2026-13", 400),
        ("?month=x", 400),
        ("?month=9999-12", 400),
        ("?format=csv", 400),
        ("?month=2026-01&month=2026-02", 400),
        ("/2026-1", 400),
        ("/2026-01?format=pdf", 400),
        ("/2026-01?x=1", 400),
    ],
)
def test_an_invalid_month_is_refused(viewer: Operator, path: str, status: int) -> None:
    assert_refused(viewer.get(f"{PAGE}{path}"), status, "bad_request")


@pytest.mark.parametrize("path", ["nobody/statement", "nobody/statement/2026-01", "acme~0123456789abcdef/statement"])
def test_an_unknown_tenant_has_no_statement(viewer: Operator, path: str) -> None:
    assert_refused(viewer.get(f"/console/tenants/{path}"), 404, "not_found")


@pytest.mark.parametrize("path", [PAGE, f"{PAGE}/2026-01?format=json"])
def test_a_stranger_reads_no_statement(stranger: Operator, path: str) -> None:
    assert stranger.get(path).status_code == 303
