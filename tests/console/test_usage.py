"""The page of usage: the same figures as those of the admin API, as a table, as charts and as CSV."""

from __future__ import annotations

import html
import json
import re
from urllib.parse import quote

import pytest

from tests.console.operators import Operator, assert_refused
from tests.support.limited import Client, operating
from tests.support.stack import Stack

EVIL = "=1+1<i>&'\""


@pytest.fixture(autouse=True)
def _some_calls(proxy: Stack) -> None:
    with Client(proxy, proxy.token(EVIL, tenant="globex")) as caller:
        assert caller.run().status_code == 200


@pytest.mark.parametrize("query", ["", "tenant=globex", "tenant=globex&group_by=subject", "group_by=endpoint"])
def test_the_table_and_the_charts_have_the_figures_of_the_admin_api(proxy: Stack, viewer: Operator, query: str) -> None:
    with operating(proxy) as admin:
        report = admin.get(f"/v1/admin/usage?{query}").raise_for_status().json()
    page = viewer.get(f"/console/usage?{query}").text
    assert f"{report['total']['calls']} calls" in page
    calls, usd = (json.loads(html.unescape(text)) for text in re.findall(r'data-chart="([^"]+)"', page))
    assert calls["values"] == [row["calls"] for row in report["usage"]]
    assert usd["values"] == [row["usd"] for row in report["usage"]]
    assert page.count("<tr>") == len(report["usage"]) + 1
    assert ">Seconds</th>" in page and ">USD</th>" in page and "compute_seconds" not in page
    assert EVIL not in page and ("subject" not in query or EVIL in html.unescape(page))


def test_the_csv_is_that_of_the_admin_api(proxy: Stack, viewer: Operator) -> None:
    query = "tenant=globex&group_by=subject"
    link = re.search(r'href="(/console/usage\.csv[^"]+)"', viewer.get(f"/console/usage?{query}").text)
    assert link
    answer = viewer.get(html.unescape(link[1]))
    with operating(proxy) as admin:
        wanted = admin.get(f"/v1/admin/usage?{query}&format=csv").raise_for_status()
    assert answer.text == wanted.text and "'=1+1" in answer.text
    assert answer.headers["content-type"].startswith("text/csv")
    assert answer.headers["content-disposition"] == wanted.headers["content-disposition"]


def test_the_usage_of_tags_is_drawn_and_downloaded(proxy: Stack, viewer: Operator) -> None:
    with proxy.client(proxy.tenant_key("globex")) as backend:
        form = {"subject": "a-user-with-tags", "tags": ["team:blue", "trial"]}
        token = backend.post("/v1/sessions", json=form).raise_for_status().json()["token"]
    with Client(proxy, token) as caller:
        assert caller.run().status_code == 200
    query = "tenant=globex&group_by=tag"
    with operating(proxy) as admin:
        report = admin.get(f"/v1/admin/usage?{query}").raise_for_status().json()
        csv = admin.get(f"/v1/admin/usage?{query}&format=csv").raise_for_status().text
    page = viewer.get(f"/console/usage?{query}").text
    calls = json.loads(html.unescape(re.findall(r'data-chart="([^"]+)"', page)[0]))
    # A call with two tags is in both rows, and once in the total.
    drawn = dict(zip(calls["labels"], calls["values"], strict=True))
    assert drawn == {row["tag"] or "no tag": row["calls"] for row in report["usage"]}
    assert drawn["team:blue"] == drawn["trial"] == 1 and drawn["no tag"] >= 1
    assert sum(drawn.values()) == report["total"]["calls"] + 1 and f"{report['total']['calls']} calls" in page
    assert "the total counts it once" in page
    assert viewer.get(f"/console/usage.csv?{query}").text == csv
    assert ">Tag</option>" in page and "Name a tenant" not in page
    assert ">Tag</option>" not in viewer.get("/console/usage").text
    assert "Name a tenant" in viewer.get("/console/usage").text


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("usage?tenant=nobody", 404),
        ("usage?subject=a", 400),
        ("usage?from=x", 400),
        ("usage?from=2026-02-01&to=2026-01-01", 400),
        ("usage?group_by=nothing", 400),
        ("usage?format=csv", 400),
        ("usage?cursor=x", 400),
        ("usage.csv?tenant=nobody", 404),
        ("usage.csv?format=json", 400),
    ],
)
def test_a_query_that_is_wrong_is_refused(viewer: Operator, path: str, status: int) -> None:
    assert_refused(viewer.get(f"/console/{path}"), status, "not_found" if status == 404 else "bad_request")


def test_days_without_calls_have_no_chart(viewer: Operator) -> None:
    page = viewer.get(f"/console/usage?tenant=globex&from=2001-01-01&to=2001-01-02&subject={quote(EVIL)}").text
    assert "Nothing was used" in page and "data-chart" not in page
