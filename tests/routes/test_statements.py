"""Monthly statements as a tenant and the operator read them: JSON, CSV, a page, and the command line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.clock import to_iso
from proxy.limits.statements import Line, Statement, parse_month
from proxy.routes.statements import STYLE_PATH, write_html
from tests.server.commands import Commands, Done
from tests.support.limited import ADMIN_TOKEN, COUNTING, NEXT, Client, assert_refused_with, limited_proxy, per, plan
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack

UNITS = ("requests", "tokens", "compute_seconds", "usd", "upload_bytes")
PLAN = plan(quotas=[per("tenant", unit, 10**6, "month") for unit in UNITS])
PLANS = {
    "acme": PLAN,
    "globex": PLAN,
    "running": PLAN,
    "hurried": plan(rate_limits={"ip": None, "session": None, "subject": None, "tenant": "2/minute"}),
    "granted": plan(quotas=[per("tenant", "requests", 1, "month")]),
}
PRICES = [{"id": NEXT, "price_per_compute_second": 0.01}, {"id": COUNTING, "price_per_compute_second": 0}]
PAGE = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
OF_OPERATOR = "/v1/admin/tenants/{}/statements/{}"


class Months:
    """Calls in this month, with the clock in the middle of the next. Commands use the system's clock."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        self.stack = stack
        self.folder = folder
        self.month = to_iso(stack.clock.now())[:7]
        for tenant, subject in (("acme", "alice"), ("acme", "bob"), ("globex", "carol")):
            with Client(stack, stack.token(subject, tenant=tenant)) as client:
                assert client.run("[[pace run_seconds=0.25]] ?").is_success
                assert client.run(endpoint=COUNTING).is_success
                assert client.run(temperature=9).status_code == 422
        with stack.client(ADMIN_TOKEN) as operator, Client(stack, stack.token("erin", tenant="granted")) as client:
            gift = {"unit": "requests", "amount": 5, "reason": "order 4711"}
            operator.post("/v1/admin/tenants/granted/grants", json=gift).raise_for_status()
            assert client.run().is_success and client.run().is_success
        with Client(stack, stack.token("dora", tenant="running")) as client:
            self.job = client.submitted("[[pace hold=IN_QUEUE]] ?")
        self.now = self.move_to_next_month()

    def move_to_next_month(self) -> str:
        first = datetime.fromtimestamp(self.stack.clock.now(), UTC).replace(day=1)
        moment = (first + timedelta(days=32)).replace(day=15, hour=12, minute=0, second=0)
        self.stack.clock.set(moment.isoformat())
        return f"{moment:%Y-%m}"

    def get(self, token: str, path: str, headers: dict[str, str] | None = None, **query: str) -> httpx.Response:
        with self.stack.client(token, headers=headers or {}) as client:
            return client.get(path, params=query)

    def read(self, token: str, path: str, **query: str) -> dict[str, Any]:
        answer = self.get(token, path, **query)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def read_own(self, tenant: str, month: str | None = None) -> dict[str, Any]:
        return self.read(self.stack.tenant_key(tenant), f"/v1/statements/{month or self.month}")


@pytest.fixture(scope="module")
def months(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Months]:
    folder = tmp_path_factory.mktemp("statements")
    shared_sandbox.clear_faults()
    with limited_proxy(shared_sandbox, folder, PLANS, endpoints=PRICES) as stack:
        yield Months(stack, folder)


def test_a_statement_has_the_figures_of_usage(months: Months) -> None:
    found = months.read_own("acme")
    assert (found["tenant"], found["month"], found["status"]) == ("acme", months.month, "final")
    period = {"from": found["from"], "to": found["to"], "group_by": "endpoint"}
    usage = months.read(months.stack.tenant_key("acme"), "/v1/usage", **period)
    assert [line["endpoint"] for line in found["lines"]] == [row["endpoint"] for row in usage["usage"]]
    for line, row in zip([*found["lines"], found["total"]], [*usage["usage"], usage["total"]], strict=True):
        assert line["calls"] == row["calls"]
        assert {unit: Decimal(line[unit]) for unit in UNITS} == {unit: Decimal(str(row[unit])) for unit in UNITS}
    assert found["total"]["calls"] == 4 and Decimal(found["total"]["usd"]) > 0
    prices = {line["endpoint"]: line["usd_per_compute_second"] for line in found["lines"]}
    assert prices == {NEXT: "0.01", COUNTING: "0"}


def test_the_operator_reads_the_statement_of_any_tenant(months: Months) -> None:
    for tenant in ("acme", "globex"):
        path = OF_OPERATOR.format(tenant, months.month)
        assert months.read(ADMIN_TOKEN, path) == months.read_own(tenant)
    assert months.read_own("globex")["total"]["calls"] == 2
    missing = months.get(ADMIN_TOKEN, OF_OPERATOR.format("nobody", months.month))
    assert_refused_with(missing, 404, "not_found")


def test_the_amount_paid_by_grants_is_shown(months: Months) -> None:
    found = months.read_own("granted")
    assert found["granted"] == [{"per": "tenant", "unit": "requests", "used": "1"}]
    key, path = months.stack.tenant_key("granted"), f"/v1/statements/{months.month}"
    rows = list(csv.DictReader(io.StringIO(months.get(key, path, format="csv").text, newline="")))
    assert (rows[-1]["endpoint"], rows[-1]["requests"], rows[-1]["calls"]) == ("paid by grants per tenant", "1", "")
    assert "Paid by grants" in months.get(key, path, PAGE).text
    assert months.read_own("acme")["granted"] == []
    assert "Paid by grants" not in months.get(months.stack.tenant_key("acme"), path, PAGE).text


def test_a_month_that_is_not_over_is_preliminary(months: Months) -> None:
    now = months.read_own("acme", months.now)
    assert (now["status"], now["lines"], now["total"]["calls"]) == ("preliminary", [], 0)


def test_a_month_is_preliminary_while_a_call_of_it_runs(months: Months) -> None:
    assert months.read_own("running")["status"] == "preliminary"
    with Client(months.stack, months.stack.token("dora", tenant="running")) as client:
        assert client.cancel(months.job).status_code == 202 and client.status(months.job).is_success
    assert months.read_own("running")["status"] == "final"


@pytest.mark.parametrize("month", ["9999-12", "2026-13", "2026-1", "2026", "now", "2026-01-01", "%00", "9" * 5000])
def test_an_invalid_or_future_month_is_refused(months: Months, month: str) -> None:
    assert_refused_with(months.get(months.stack.tenant_key("acme"), f"/v1/statements/{month}"), 400, "bad_request")
    assert_refused_with(months.get(ADMIN_TOKEN, OF_OPERATOR.format("acme", month)), 400, "bad_request")


@pytest.mark.parametrize("query", [{"format": "pdf"}, {"format": ""}, {"tenant": "globex"}])
def test_an_invalid_query_is_refused(months: Months, query: dict[str, str]) -> None:
    assert_refused_with(
        months.get(months.stack.tenant_key("acme"), f"/v1/statements/{months.month}", **query), 400, "bad_request"
    )
    assert_refused_with(months.get(ADMIN_TOKEN, OF_OPERATOR.format("acme", months.month), **query), 400, "bad_request")


def test_a_statement_needs_the_right_credential(months: Months) -> None:
    path = f"/v1/statements/{months.month}"
    assert_refused_with(months.get(months.stack.token("alice", tenant="acme"), path), 403, "not_allowed")
    assert_refused_with(months.get("", path), 401, "unauthenticated")
    of_operator = OF_OPERATOR.format("acme", months.month)
    assert_refused_with(months.get(months.stack.tenant_key("acme"), of_operator), 401, "unauthenticated")


def test_a_statement_counts_as_a_call_in_the_rate_limits(months: Months) -> None:
    key, path = months.stack.tenant_key("hurried"), f"/v1/statements/{months.month}"
    assert [months.get(key, path).status_code for _ in range(3)] == [200, 200, 429]


# Formats


def test_names_are_never_markup() -> None:
    name = "<script>alert(1)</script>\"'&"
    lines = {name: Line(1, {"usd": 1})}
    page = write_html(Statement(name, parse_month("2026-01", 2e9), True, lines, {("tenant", name): 1}), name)
    text = bytes(page.body).decode()
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;&#34;&#39;&amp;") == 5 and "<script" not in text


def test_csv_has_the_same_figures(months: Months) -> None:
    shown = months.read_own("acme")
    for asked in ({"format": "csv"}, {}):
        headers = {} if asked else {"accept": "text/csv"}
        answer = months.get(months.stack.tenant_key("acme"), f"/v1/statements/{months.month}", headers, **asked)
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/csv")
        assert f'filename="statement-acme-{months.month}.csv"' in answer.headers["content-disposition"]
        rows = list(csv.DictReader(io.StringIO(answer.text, newline="")))
        for row, line in zip(rows, [*shown["lines"], {"endpoint": "total", **shown["total"]}], strict=True):
            known = {"tenant": "acme", "month": months.month, "status": "final", **line}
            assert row == {name: str(value) for name, value in known.items()}


def test_the_page_shows_the_same_figures_and_runs_no_script(months: Months) -> None:
    key, path = months.stack.tenant_key("acme"), f"/v1/statements/{months.month}"
    page = months.get(key, path, PAGE)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["cache-control"] == "no-store" and "Accept" in page.headers["vary"]
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "style-src 'self'" in policy and "script" not in policy
    assert "frame-ancestors 'none'" in policy and "unsafe" not in policy
    assert "<script" not in page.text and "style=" not in page.text and "preliminary" not in page.text
    shown = months.read_own("acme")
    for line in (*shown["lines"], shown["total"]):
        assert all(f">{value}</" in page.text for value in line.values() if value is not None), line
    assert "preliminary" in months.get(key, f"/v1/statements/{months.now}", PAGE).text
    assert months.get(key, path, PAGE, format="json").json() == shown
    assert months.get(key, path, {"accept": "*/*"}).json() == shown


def test_each_page_names_its_stylesheet(months: Months) -> None:
    for token, path in (
        (months.stack.tenant_key("acme"), f"/v1/statements/{months.month}"),
        (ADMIN_TOKEN, OF_OPERATOR.format("acme", months.month)),
    ):
        page = months.get(token, path, format="html")
        (name,) = (part.partition('"')[0] for part in page.text.split('href="')[1:])
        style = months.get("", str(page.url.join(name).path))
        assert style.status_code == 200 and "@media print" in style.text
        assert style.headers["content-type"].startswith("text/css")


def test_the_stylesheet_has_a_flood_guard(sandbox: SandboxControl, tmp_path: Path) -> None:
    with limited_proxy(sandbox, tmp_path, {"acme": plan()}) as stack, stack.client("") as stranger:
        statuses = [stranger.get(STYLE_PATH).status_code for _ in range(121)]
    assert set(statuses[:120]) == {200} and statuses[120] == 429


# The command line


def print_statement(months: Months, run: Commands, *arguments: str) -> Done:
    environ = {
        "PROXY_DATABASE_URL": months.stack.settings.stores.database_url.reveal(),
        "PROXY_CONFIG": str(months.folder / "plans.yaml"),
    }
    return run("statement", *arguments, environ=environ, cwd=months.folder)


def test_the_command_line_prints_the_same(months: Months, commands: Commands) -> None:
    shown = months.read_own("acme") | {"status": "preliminary"}
    done = print_statement(months, commands, "acme", months.month, "--json")
    assert json.loads(done.stdout) == shown
    done = print_statement(months, commands, "acme", months.month, "--csv")
    rows = list(csv.DictReader(io.StringIO(done.stdout, newline="")))
    assert [row["endpoint"] for row in rows] == [*(line["endpoint"] for line in shown["lines"]), "total"]
    assert rows[-1]["usd"] == shown["total"]["usd"]
    done = print_statement(months, commands, "acme", months.month)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0][0] == "endpoint" and lines[-1][0] == "total"
    assert (lines[-1][1], lines[-1][-1]) == ("4", shown["total"]["usd"])
    assert "preliminary" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("nobody", "2026-01"), 1, "there is no tenant nobody"),
        (("acme", "2026-13"), 1, "must be a month such as 2026-01"),
        (("acme", "9999-01"), 1, "has not begun"),
        (("acme", "2026-01", "--json", "--csv"), 2, "not both"),
    ],
)
def test_the_command_line_refuses(
    months: Months, commands: Commands, arguments: tuple[str, ...], code: int, message: str
) -> None:
    done = print_statement(months, commands, *arguments)
    assert (done.code, done.stdout) == (code, "") and message in done.stderr
