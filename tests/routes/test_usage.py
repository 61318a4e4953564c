"""Usage of a session's user, of a key's tenant, and of any tenant for the operator; its sums are the ledger's."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.images import png
from tests.support.limited import (
    ADMIN_TOKEN,
    COUNTING,
    NEXT,
    Client,
    account,
    assert_refused_with,
    limited_proxy,
    per,
    plan,
)
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack

UNITS = ("requests", "tokens", "compute_seconds", "usd", "upload_bytes")
ACCOUNTS = [per(whose, unit, 10**6, "month") for whose in ("tenant", "subject") for unit in UNITS]
PLANS = {"acme": plan(quotas=ACCOUNTS), "globex": plan(quotas=ACCOUNTS)}
PRICES = [{"id": NEXT, "price_per_compute_second": 0.01}, {"id": COUNTING, "price_per_compute_second": 0}]


NO_DAYS = [
    "20260131",
    "2026-W05-6",
    "2026-031",
    "+2026-01-31",
    "２０２６-01-31",
    "2026-1-31",
    "10000-01-01",
    "0000-01-01",
    "2026-13-01",
    "2026-01-31\n",
    "\x00",
    "9" * 5000,
]


class Past:
    """Two users of one tenant, and one of another, who made calls on two days."""

    def __init__(self, stack: Stack, folder: Path, days: tuple[str, str]) -> None:
        self.stack = stack
        self.folder = folder
        self.first, self.second = days

    def usage(self, token: str, path: str = "/v1/usage", **query: str) -> httpx.Response:
        headers = {"authorization": f"Bearer {token}"}
        return httpx.get(
            self.stack.url + path, params=query, headers=headers, trust_env=False, verify=False, timeout=60
        )

    def of(self, token: str, path: str = "/v1/usage", **query: str) -> dict[str, Any]:
        answer = self.usage(token, path, **query)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found


@pytest.fixture(scope="module")
def past(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Past]:
    folder = tmp_path_factory.mktemp("usage")
    shared_sandbox.clear_faults()
    with limited_proxy(shared_sandbox, folder, PLANS, endpoints=PRICES) as stack:
        first = _noon(stack)
        _calls(stack, "alice", "acme", upload=True)
        stack.clock.advance(86_400)
        _calls(stack, "alice", "acme")
        _calls(stack, "bob", "acme")
        _calls(stack, "carol", "globex")
        yield Past(stack, folder, (first, str(datetime.fromtimestamp(stack.clock.now(), UTC).date())))


def _noon(stack: Stack) -> str:
    """Move to noon of the tenth of a month: both days lie in it."""
    now = datetime.fromtimestamp(stack.clock.now(), UTC)
    month = (now.replace(day=1) + timedelta(days=32)).replace(day=10, hour=12, minute=0, second=0)
    stack.clock.set(month.isoformat())
    return str(month.date())


def _calls(stack: Stack, subject: str, tenant: str, *, upload: bool = False) -> None:
    with Client(stack, stack.token(subject, tenant=tenant)) as client:
        assert client.run("[[pace run_seconds=0.25]] ?").status_code == 200
        assert client.run(endpoint=COUNTING).status_code == 200
        job = client.submitted("[[pace hold=IN_QUEUE]] ?")
        # Refused, released and unsettled calls do not count.
        assert client.run(temperature=9).status_code == 422
        assert client.run("[[fault status=500]] ?").status_code == 500
        assert client.cancel(job).status_code == 202 and client.status(job).is_success
        client.submitted("[[pace hold=IN_QUEUE]] ?")
        if upload:
            wanted = {"content_type": "image/png", "file_name": "a.png"}
            slot = client.call("POST", "rest/storage/upload/initiate", wanted).json()["upload_url"]
            assert client.http.put(slot, content=png(77), headers={"content-type": "image/png"}).is_success


def test_a_session_sees_its_user_and_a_key_its_tenant(past: Past) -> None:
    alice = past.of(past.stack.token("alice", tenant="acme"))
    assert (alice["tenant"], alice["subject"]) == ("acme", "alice")
    assert (alice["total"]["calls"], alice["total"]["requests"]) == (5, 4)  # an upload is a call, and no request
    bob = past.of(past.stack.token("bob", tenant="acme"))
    assert (bob["subject"], bob["total"]["requests"], bob["total"]["upload_bytes"]) == ("bob", 2, 0)
    acme = past.of(past.stack.tenant_key("acme"))
    assert "subject" not in acme and acme["total"]["requests"] == 6
    idle = past.of(past.stack.token("nobody", tenant="acme"))
    assert idle["usage"] == [] and idle["total"] == dict.fromkeys(("calls", *UNITS), 0)
    # The same name with another tenant is another user.
    assert past.of(past.stack.token("alice", tenant="globex"))["total"]["calls"] == 0


@pytest.mark.parametrize(("tenant", "subject"), [("acme", ""), ("acme", "alice"), ("acme", "bob"), ("globex", "carol")])
def test_the_sums_are_those_of_the_ledger(past: Past, tenant: str, subject: str) -> None:
    query = {"tenant": tenant, **({"subject": subject} if subject else {})}
    found = past.of(ADMIN_TOKEN, "/v1/admin/usage", group_by="day,endpoint,subject", **query)
    for unit in UNITS:
        booked = account(past.folder, tenant, unit, subject).used
        assert found["total"][unit] == pytest.approx(booked, abs=1e-9), unit
        assert sum(row[unit] for row in found["usage"]) == pytest.approx(booked, abs=1e-9)
    assert sum(row["calls"] for row in found["usage"]) == found["total"]["calls"]
    assert found["total"]["usd"] > 0 and found["total"]["tokens"] > 0


def test_rows_are_grouped_as_asked(past: Past) -> None:
    key = past.stack.tenant_key("acme")

    def rows(group_by: str, *names: str) -> list[tuple[Any, ...]]:
        found = past.of(key, group_by=group_by)["usage"]
        assert all(set(row) == {*names, "calls", *UNITS} for row in found)
        return [(*(row[name] for name in names), row["requests"]) for row in found]

    assert rows("day", "day") == [(past.first, 2), (past.second, 4)]
    assert rows("subject", "subject") == [("alice", 4), ("bob", 2)]
    assert rows("endpoint", "endpoint") == [(NEXT, 3), (COUNTING, 3), ("upload", 0)]
    assert rows("subject,day", "day", "subject") == [
        (past.first, "alice", 2),
        (past.second, "alice", 2),
        (past.second, "bob", 2),
    ]
    assert [row["day"] for row in past.of(key)["usage"]] == [past.first, past.second]


def test_rows_come_in_pages_and_the_total_is_of_all(past: Past) -> None:
    key, query = past.stack.tenant_key("acme"), {"group_by": "day,subject", "limit": "2"}
    whole = past.of(key, group_by="day,subject")
    first = past.of(key, **query)
    second = past.of(key, **query, cursor=first["next_cursor"])
    assert first["usage"] + second["usage"] == whole["usage"] and len(first["usage"]) == 2
    assert first["total"] == second["total"] == whole["total"]
    assert second["next_cursor"] is None and whole["next_cursor"] is None
    assert past.of(key, group_by="day,subject", limit="3")["next_cursor"] is None
    assert past.of(ADMIN_TOKEN, "/v1/admin/usage", tenant="acme", **query) == first | {"grants": []}


def _cursor(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


@pytest.mark.parametrize(
    "query",
    [
        {"limit": "0"},
        {"limit": "501"},
        {"limit": "ten"},
        {"cursor": "x"},
        {"cursor": "\u00e9"},
        {"cursor": "!" + _cursor('["2026-01-31"]')},
        *(
            {"cursor": _cursor(text), "group_by": "day,subject"}
            for text in (
                "{}",
                '"2026-01-31"',
                '["2026-01-31"]',
                '["2026-01-31","a","b"]',
                '["2026-01-31",1]',
                '["2026-01-31",null]',
                '["2026-02-30","a"]',
                '["a","2026-01-31"]',
                '["2026-01-31","a\\u0000"]',
                f'["2026-01-31","{"a" * 2000}"]',
            )
        ),
    ],
)
def test_an_invalid_page_is_refused(past: Past, query: dict[str, str]) -> None:
    assert_refused_with(past.usage(past.stack.tenant_key("acme"), **query), 400, "bad_request")


def test_a_period_counts_whole_days_including_both_ends(past: Past) -> None:
    key = past.stack.tenant_key("acme")

    def requests(**query: str) -> int:
        found: int = past.of(key, **query)["total"]["requests"]
        return found

    before = str(datetime.fromisoformat(past.first).date() - timedelta(days=1))
    assert requests(**{"from": past.first, "to": past.first}) == 2
    assert requests(**{"from": past.second, "to": past.second}) == 4
    assert requests(**{"from": past.first, "to": past.second}) == 6
    assert requests(**{"from": before, "to": before}) == 0
    assert requests(to=past.first, **{"from": before}) == 2
    report = past.of(key)
    assert report["to"] == past.second
    assert report["from"] == str(datetime.fromisoformat(past.second).date() - timedelta(days=29))


@pytest.mark.parametrize(("first", "last"), [("0001-01-01", "9999-12-31"), ("1969-12-31", "9999-12-30")])
def test_a_period_may_span_all_dates(past: Past, first: str, last: str) -> None:
    """Extreme dates, which people use for an open period."""
    period = {"from": first, "to": last}
    report = past.of(past.stack.tenant_key("acme"), **period)
    assert (report["from"], report["to"]) == (first, last) and report["total"]["requests"] == 6
    assert past.of(past.stack.token("alice", tenant="acme"), **period)["total"]["requests"] == 4
    report = past.of(ADMIN_TOKEN, "/v1/admin/usage", tenant="acme", **period)
    assert report["total"]["requests"] == 6
    assert (
        json.loads(command(past, "--tenant", "acme", "--from", first, "--to", last, "--json").stdout)["total"][
            "requests"
        ]
        == 6
    )


@pytest.mark.parametrize(
    "query",
    [
        {"from": "yesterday"},
        {"from": "2026-02-30"},
        {"to": "2026-01-31T00:00:00"},
        {"to": "31.01.2026"},
        {"from": "2026-02-01", "to": "2026-01-31"},
        {"group_by": "month"},
        {"group_by": "day,day;subject"},
        {"subject": "bob"},
        {"tenant": "globex"},
        {"since": "2026-01-01"},
        *[{"to": day} for day in NO_DAYS],
        *[{"from": day} for day in NO_DAYS],
    ],
)
def test_an_invalid_query_is_refused(past: Past, query: dict[str, str]) -> None:
    assert_refused_with(past.usage(past.stack.token("alice", tenant="acme"), **query), 400, "bad_request")
    if not {"subject", "tenant"} & set(query):
        assert_refused_with(past.usage(ADMIN_TOKEN, "/v1/admin/usage", tenant="acme", **query), 400, "bad_request")


def test_usage_needs_a_credential_and_the_operator_names_a_tenant(past: Past) -> None:
    assert_refused_with(
        httpx.get(f"{past.stack.url}/v1/usage", trust_env=False, verify=False, timeout=60), 401, "unauthenticated"
    )
    assert_refused_with(
        past.usage(past.stack.tenant_key("acme"), "/v1/admin/usage", tenant="acme"), 401, "unauthenticated"
    )
    for tenant in ("", "nobody"):
        assert_refused_with(past.usage(ADMIN_TOKEN, "/v1/admin/usage", tenant=tenant), 404, "not_found")


def test_the_operator_sees_all_tenants_at_once(past: Past) -> None:
    def of_all(**query: str) -> dict[str, Any]:
        return past.of(ADMIN_TOKEN, "/v1/admin/usage", **query)

    def of_one(tenant: str, **query: str) -> list[dict[str, Any]]:
        return list(past.of(ADMIN_TOKEN, "/v1/admin/usage", tenant=tenant, **query)["usage"])

    whole = of_all()
    assert [row["tenant"] for row in whole["usage"]] == ["acme", "globex"] and "tenant" not in whole
    assert whole["total"]["calls"] == sum(row["calls"] for row in whole["usage"]) == 9
    by_day = of_all(group_by="day,endpoint")["usage"]
    assert by_day == [
        {"tenant": tenant, **row} for tenant in ("acme", "globex") for row in of_one(tenant, group_by="day,endpoint")
    ]
    pages: list[dict[str, Any]] = []
    cursor: str | None = ""
    while cursor is not None:
        page = of_all(group_by="day,endpoint", limit="1", **({"cursor": cursor} if cursor else {}))
        assert page["total"] == whole["total"]
        pages += page["usage"]
        cursor = page["next_cursor"]
    assert pages == by_day


def cursor_of(*names: str) -> str:
    return base64.urlsafe_b64encode(json.dumps(names).encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "query",
    [
        {"subject": "alice"},
        {"group_by": "subject"},
        {"group_by": "day", "cursor": cursor_of("acme", "no day")},
        {"cursor": cursor_of("acme", "2026-01-31")},
        {"to": "yesterday"},
    ],
    ids=["a subject of no tenant", "by subject", "a cursor without a day", "a cursor of other groups", "no day"],
)
def test_an_invalid_query_about_all_tenants_is_refused(past: Past, query: dict[str, str]) -> None:
    assert_refused_with(past.usage(ADMIN_TOKEN, "/v1/admin/usage", **query), 400, "bad_request")


def test_only_a_report_of_all_tenants_is_grouped_by_them(past: Past) -> None:
    for token in (past.stack.token("alice", tenant="acme"), past.stack.tenant_key("acme")):
        assert_refused_with(past.usage(token, group_by="tenant"), 400, "bad_request")
    assert_refused_with(
        past.usage(ADMIN_TOKEN, "/v1/admin/usage", tenant="acme", group_by="tenant"), 400, "bad_request"
    )


def command(past: Past, *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {
        "PATH": os.environ["PATH"],
        "PROXY_DATABASE_URL": past.stack.settings.stores.database_url.reveal(),
        "PROXY_CONFIG": str(past.folder / "plans.yaml"),
    }
    line = [sys.executable, "-m", "proxy", "usage", *arguments]
    return subprocess.run(line, env=environ, capture_output=True, text=True, timeout=300)


def test_the_command_line_prints_all_tenants(past: Past) -> None:
    period = ("--from", past.first, "--to", past.second)
    shown = past.of(ADMIN_TOKEN, "/v1/admin/usage", **{"from": past.first, "to": past.second})
    printed = json.loads(command(past, *period, "--json").stdout)
    assert printed == {name: value for name, value in shown.items() if name != "next_cursor"}
    lines = command(past, *period).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["tenant", "acme", "globex", "total"]


def test_the_command_line_prints_the_same(past: Past) -> None:
    period = ("--from", past.first, "--to", past.second)
    groups = "day,endpoint,subject"
    as_json = command(past, "--tenant", "acme", *period, "--group-by", groups, "--json")
    query = {"tenant": "acme", "from": past.first, "to": past.second, "group_by": groups}
    assert json.loads(as_json.stdout) | {"next_cursor": None, "grants": []} == past.of(
        ADMIN_TOKEN, "/v1/admin/usage", **query
    )
    table = command(past, "--tenant", "acme", *period).stdout.splitlines()
    assert table[0].split() == ["day", "calls", *UNITS]
    assert [line.split()[0] for line in table[1:]] == [past.first, past.second, "total"]
    assert [line.split()[2] for line in table[1:]] == ["2", "4", "6"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--tenant", "nobody"), 1, "there is no tenant nobody"),
        (("--tenant", "acme", "--from", "soon"), 1, "must be a day"),
        (("--tenant", "acme", "--group-by", "week"), 1, "'week'"),
        (("--group-by", "subject"), 1, "'subject'"),
    ],
)
def test_the_command_line_explains_a_refusal(past: Past, arguments: tuple[str, ...], code: int, words: str) -> None:
    done = command(past, *arguments)
    assert (done.returncode, done.stdout) == (code, "") and words in done.stderr
