"""Usage as CSV: of a tenant's key, of the operator, and of the command, in pages that a spreadsheet can open."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.commands import Commands, Done
from tests.support.limited import ADMIN_TOKEN, COUNTING, NEXT, Client, assert_refused_with, limited_proxy, plan
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack

UNITS = ["requests", "tokens", "compute_seconds", "usd", "upload_bytes"]
#: Names that a spreadsheet would run as a formula, split, or show as something else.
SUBJECTS = ['=HYPERLINK("https://evil.example")', "+1", "-1", "@SUM(A1)", 'a,"b";c', "ünï"]
OPERATORS = "/v1/admin/usage"


@pytest.fixture(scope="module")
def limited(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    plans = {"acme": plan(), "globex": plan()}
    with limited_proxy(shared_sandbox, tmp_path_factory.mktemp("csv"), plans) as stack:
        for subject in SUBJECTS:
            with Client(stack, stack.token(subject, tenant="acme")) as client:
                assert client.run(endpoint=COUNTING).status_code == 200
        with Client(stack, stack.token("zoe", tenant="globex")) as client:
            assert client.run(endpoint=NEXT).status_code == 200
        yield stack


@pytest.fixture
def proxy(limited: Stack, sandbox: SandboxControl) -> Stack:
    return limited


@pytest.fixture
def backend(proxy: Stack) -> Iterator[httpx.Client]:
    with proxy.client(proxy.tenant_key("acme")) as client:
        yield client


@pytest.fixture
def operator(proxy: Stack) -> Iterator[httpx.Client]:
    with proxy.client(ADMIN_TOKEN) as client:
        yield client


def ask(client: httpx.Client, path: str = "/v1/usage", **query: str) -> httpx.Response:
    return client.get(path, params={"format": "csv", **query}).raise_for_status()


def read(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline="")))


def test_the_rows_are_those_of_json_under_their_names(backend: httpx.Client) -> None:
    answer = ask(backend, group_by="day,endpoint")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8; header=present"
    assert answer.headers["cache-control"] == "no-store"
    report = backend.get("/v1/usage", params={"group_by": "day,endpoint", "format": "json"}).json()
    name = f"usage-acme-{report['from']}-{report['to']}.csv"
    assert answer.headers["content-disposition"] == f'attachment; filename="{name}"'
    header, *rows = read(answer.text)
    assert header == ["day", "endpoint", "calls", *UNITS]
    assert rows == [[str(row[column]) for column in header] for row in report["usage"]] and rows


def test_a_name_is_no_formula_and_stays_in_its_cell(backend: httpx.Client) -> None:
    header, *rows = read(ask(backend, group_by="subject").text)
    assert header[0] == "subject" and {len(row) for row in rows} == {len(header)}
    cells = {row[0] for row in rows}
    assert cells == {f"'{name}" if name[0] in "=+-@" else name for name in SUBJECTS}


def test_pages_are_linked(backend: httpx.Client) -> None:
    url, cells = httpx.URL(f"{backend.base_url}/v1/usage?format=csv&group_by=subject&limit=4"), []
    for length in (4, 2):
        answer = backend.get(url).raise_for_status()
        header, *rows = read(answer.text)
        assert header[0] == "subject" and len(rows) == length
        cells += [row[0] for row in rows]
        if "next" in answer.links:
            url = answer.url.join(answer.links["next"]["url"])
    assert len(set(cells)) == len(SUBJECTS) and "link" not in answer.headers
    # JSON has the same link, beside its cursor.
    page = backend.get("/v1/usage", params={"group_by": "subject", "limit": "4"})
    following = backend.get(page.url.join(page.links["next"]["url"])).json()
    assert len(following["usage"]) == 2 and following["next_cursor"] is None


def test_the_operator_gets_csv_too(operator: httpx.Client) -> None:
    header, *rows = read(ask(operator, OPERATORS).text)
    assert header == ["tenant", "calls", *UNITS]
    assert [row[:3] for row in rows] == [["acme", "6", "6"], ["globex", "1", "1"]]
    answer = ask(operator, OPERATORS, tenant="globex", group_by="subject", subject="zoe")
    assert [row[:2] for row in read(answer.text)] == [["subject", "calls"], ["zoe", "1"]]
    assert 'filename="usage-globex-' in answer.headers["content-disposition"]
    assert 'filename="usage-all-tenants-' in ask(operator, OPERATORS).headers["content-disposition"]


def test_no_rows_still_have_a_header(proxy: Stack) -> None:
    with proxy.client(proxy.token("unseen", tenant="acme")) as client:
        assert read(ask(client).text) == [["day", "calls", *UNITS]]


@pytest.mark.parametrize("query", [{"format": "xlsx"}, {"format": ""}, {"format": "csv", "group_by": "month"}])
def test_another_format_is_refused(backend: httpx.Client, operator: httpx.Client, query: dict[str, str]) -> None:
    assert_refused_with(backend.get("/v1/usage", params=query), 400, "bad_request")
    assert_refused_with(operator.get(OPERATORS, params=query), 400, "bad_request")


def test_pages_of_allowed_origins_may_read_the_headers(proxy: Stack) -> None:
    origin = {"origin": next(iter(proxy.settings.server.allowed_origins), proxy.url)}
    with proxy.client(proxy.tenant_key("acme")) as client:
        exposed = client.get("/v1/usage", params={"format": "csv"}, headers=origin).headers
    assert {"link", "content-disposition"} <= set(exposed["access-control-expose-headers"].split(", "))


def test_the_command_prints_all_rows(proxy: Stack, backend: httpx.Client, commands: Commands, tmp_path: Path) -> None:
    url = proxy.settings.stores.database_url.reveal()
    environ = {"PROXY_DATABASE_URL": url, "PROXY_CONFIG": str(proxy.settings.config_path)}

    def run(*arguments: str) -> Done:
        return commands("usage", *arguments, environ=environ, cwd=tmp_path)

    report: dict[str, Any] = backend.get("/v1/usage").json()
    period = ("--from", report["from"], "--to", report["to"])
    done = run("--tenant", "acme", *period, "--group-by", "subject", "--csv")
    assert done.code == 0, done.stderr
    assert read(done.stdout) == read(ask(backend, group_by="subject").text)
    assert read(run(*period, "--csv").stdout)[1][:2] == ["acme", "6"]
    both = run("--csv", "--json")
    assert (both.code, both.stdout) == (2, "") and "not both" in both.stderr
