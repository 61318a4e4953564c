"""The page that compares the ledger with fal's record."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from proxy.console.reconciliation import MOST_ROWS
from proxy.sandbox.app import SANDBOX_ADMIN_KEY
from tests.console.operators import Operator, assert_refused, operator_of
from tests.support.limited import Client, limited_proxy, operating, plan
from tests.support.sandbox import SandboxControl, running_sandbox
from tests.support.servers import running
from tests.support.stack import Stack
from tests.upstream.test_platform import Fal, line

PAGE = "/console/usage/reconciliation"


@pytest.fixture
def fal() -> Iterator[SandboxControl]:
    """A fal for this test only: calls of other tests would count as drift."""
    with running_sandbox() as control:
        yield control


@pytest.fixture
def compared(fal: SandboxControl, tmp_path: Path) -> Iterator[Stack]:
    with limited_proxy(fal, tmp_path, {"acme": plan()}) as stack:
        yield stack


@pytest.fixture
def reader(compared: Stack) -> Iterator[Operator]:
    with operator_of(compared) as operator:
        yield operator


def around(stack: Stack) -> str:
    """Yesterday to tomorrow: a call at midnight can be on another day at fal."""
    today = datetime.fromtimestamp(stack.clock.now(), UTC)
    return f"from={(today - timedelta(days=1)).date()}&to={(today + timedelta(days=1)).date()}"


def questions(fal: SandboxControl) -> int:
    return len([one for one in fal.requests() if "/v1/models/" in one["path"]])


def test_the_page_has_the_rows_of_the_admin_api(compared: Stack, reader: Operator) -> None:
    with Client(compared, compared.token()) as caller:
        assert caller.run().status_code == 200
    page = reader.get(f"{PAGE}?{around(compared)}").text
    with operating(compared) as admin:
        wanted = admin.get(f"/v1/admin/reconciliation?{around(compared)}").raise_for_status().json()
    rows = [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in re.findall(r"<tr>.*?</tr>", page, re.DOTALL)][1:]
    assert len(rows) == len(wanted["rows"]) + 1 > 1
    for row, one in zip(rows, [*wanted["rows"], wanted["total"]], strict=True):
        figures = [str(one[side][name]) for name in ("calls", "usd") for side in ("ours", "fal", "difference")]
        assert row == ([one["endpoint"]] if "endpoint" in one else []) + figures


def test_fal_is_asked_only_when_the_form_is_sent(compared: Stack, reader: Operator) -> None:
    page = reader.get(PAGE).text
    assert "Compare" in page and questions(compared.sandbox) == 0
    assert "Neither side has a call" in reader.get(f"{PAGE}?{around(compared)}").text
    assert questions(compared.sandbox) > 0
    assert SANDBOX_ADMIN_KEY not in page and 'href="/console/usage/reconciliation"' in reader.get("/console/usage").text


@pytest.mark.parametrize("query", ["", "?from=2026-01-01&to=2026-01-02"])
def test_without_a_key_the_page_says_how_to_set_one(fal: SandboxControl, tmp_path: Path, query: str) -> None:
    environ = {"FAL_USAGE_KEY": ""}
    with limited_proxy(fal, tmp_path, {"acme": plan()}, environ=environ) as stack, operator_of(stack) as reader:
        page = reader.get(f"{PAGE}{query}").text
        assert "<code>FAL_USAGE_KEY</code>" in page and "Compare" not in page
        assert questions(fal) == 0


def test_a_failure_of_fal_is_reported(compared: Stack, reader: Operator) -> None:
    compared.sandbox.fault("status", status=401, on={"host": "api"})
    text = assert_refused(reader.get(f"{PAGE}?{around(compared)}"), 500, "upstream_rejected_key")
    assert "FAL_USAGE_KEY" in text and SANDBOX_ADMIN_KEY not in text


@pytest.mark.parametrize(
    "query",
    [
        "from=2026-01-01&to=2026-04-03",
        "from=2026-02-02&to=2026-02-01",
        "from=yesterday",
        "to=2026-02-30",
        "tenant=acme",
        "from=0001-01-01&to=9999-12-31",
    ],
)
def test_invalid_days_are_refused(viewer: Operator, query: str) -> None:
    assert_refused(viewer.get(f"{PAGE}?{query}"), 400, "bad_request")


def test_many_rows_and_names_that_look_like_markup(shared_sandbox: SandboxControl, tmp_path: Path) -> None:
    names = ["<img src=x onerror=alert(1)>", *(f"fal-ai/model-{number:04}" for number in range(MOST_ROWS))]
    fal = Fal({"2026-01-31T00:00:00Z": [line(name) for name in names]})
    with (
        running(fal.app()) as url,
        limited_proxy(shared_sandbox, tmp_path, {"acme": plan()}, environ={"FAL_API_URL": url}) as stack,
        operator_of(stack) as reader,
    ):
        page = reader.get(f"{PAGE}?from=2026-01-31&to=2026-01-31").text
    assert names[0] not in page and names[0] in html.unescape(page)
    assert page.count('<th scope="row">2026-01-31</th>') == MOST_ROWS and f"of {len(names)} rows" in page
    assert page.partition("<tfoot>")[2].count(str(sum(map(len, names)))) == 2
