"""Usage by hour, session and tag: for a tenant's key, a user and the operator."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.commands import Commands, Done
from tests.support.limited import ADMIN_TOKEN, NEXT, Client, assert_refused_with, limited_proxy, plan
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack

OPERATORS = "/v1/admin/usage"


class Past:
    """Sessions of two users with tags, and a tenant key, that made calls in two hours."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        now = datetime.fromtimestamp(stack.clock.now(), UTC)
        start = now.replace(hour=10, minute=50, second=0, microsecond=0) + timedelta(days=1)
        stack.clock.set(start.isoformat())
        self.first, self.second = (str(start.replace(hour=hour, minute=0)) for hour in (10, 11))
        self.first, self.second = self.first.replace(" ", "T"), self.second.replace(" ", "T")
        self.key = stack.tenant_key("acme")
        self.blue = self.mint("alice", "trial", "team:blue")
        self.plain = self.mint("alice")
        self.call(self.blue["token"], 2)
        self.call(self.plain["token"], 1)
        stack.clock.advance(900)
        self.red = self.mint("bob", "trial")
        self.call(self.red["token"], 1)
        self.call(self.key, 3)

    def mint(self, subject: str, *tags: str) -> dict[str, Any]:
        with self.stack.client(self.key) as backend:
            form = {"subject": subject, "tags": list(tags)}
            minted: dict[str, Any] = backend.post("/v1/sessions", json=form).raise_for_status().json()
        return minted

    def call(self, token: str, times: int) -> None:
        with Client(self.stack, token) as client:
            for _ in range(times):
                assert client.run(endpoint=NEXT).status_code == 200

    def ask(self, token: str, path: str = "/v1/usage", **query: str) -> httpx.Response:
        with self.stack.client(token) as client:
            return client.get(path, params=query)

    def rows(self, token: str, group_by: str, path: str = "/v1/usage", **query: str) -> list[tuple[Any, ...]]:
        report = self.ask(token, path, group_by=group_by, **query).raise_for_status().json()
        names = [name for name in ("day", "endpoint", "subject", "hour", "session", "tag") if name in group_by]
        assert all(list(row)[: len(names)] == names for row in report["usage"])
        return [(*(row[name] for name in names), row["calls"]) for row in report["usage"]]


@pytest.fixture(scope="module")
def past(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Past]:
    folder = tmp_path_factory.mktemp("details")
    shared_sandbox.clear_faults()
    with limited_proxy(shared_sandbox, folder, {"acme": plan(), "globex": plan()}) as stack:
        yield Past(stack)


def test_a_tenant_sees_its_hours_sessions_and_tags(past: Past) -> None:
    assert past.rows(past.key, "hour") == [(past.first, 3), (past.second, 4)]
    assert past.rows(past.key, "tag") == [("", 4), ("team:blue", 2), ("trial", 3)]
    sessions = {past.blue["id"]: 2, past.plain["id"]: 1, past.red["id"]: 1, "": 3}
    assert past.rows(past.key, "session") == sorted(sessions.items())
    assert past.rows(past.key, "hour,tag,subject") == [
        ("", past.second, "", 3),
        ("alice", past.first, "", 1),
        ("alice", past.first, "team:blue", 2),
        ("alice", past.first, "trial", 2),
        ("bob", past.second, "trial", 1),
    ]


def test_the_total_counts_a_job_with_two_tags_once(past: Past) -> None:
    for group_by in ("tag", "session,tag", "hour"):
        report = past.ask(past.key, group_by=group_by).json()
        assert (report["total"]["calls"], report["total"]["requests"]) == (7, 7), group_by


def test_the_operator_sees_the_same_and_a_user_its_own(past: Past) -> None:
    own = past.rows(ADMIN_TOKEN, "tag,session", OPERATORS, tenant="acme")
    assert own == past.rows(past.key, "tag,session") and len(own) == 5
    assert past.rows(ADMIN_TOKEN, "tag", OPERATORS, tenant="acme", subject="bob") == [("trial", 1)]
    assert past.rows(past.plain["token"], "tag") == [("", 1), ("team:blue", 2), ("trial", 2)]
    assert past.rows(past.red["token"], "hour") == [(past.second, 1)]
    assert past.rows(past.stack.tenant_key("globex"), "session") == []


@pytest.mark.parametrize("group_by", ["hour", "session", "tag", "day,hour,session,tag"])
def test_pages_have_each_row_once(past: Past, group_by: str) -> None:
    whole = past.ask(past.key, group_by=group_by).json()["usage"]
    found: list[dict[str, Any]] = []
    cursor: str | None = ""
    while cursor is not None:
        page = past.ask(past.key, group_by=group_by, limit="1", **({"cursor": cursor} if cursor else {})).json()
        found, cursor = found + page["usage"], page["next_cursor"]
    assert found == whole and len(whole) > 1


def test_details_come_as_csv_too(past: Past) -> None:
    lines = past.ask(past.key, group_by="hour,tag", format="csv").text.splitlines()
    assert lines[0].startswith("hour,tag,calls,requests,")
    assert lines[1].startswith(f"{past.first},,1,1,") and len(lines) == 6


def cursor_of(*names: str) -> str:
    return base64.urlsafe_b64encode(json.dumps(names).encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "query",
    [
        {"group_by": "hour", "from": "2026-01-01", "to": "2026-02-01"},
        {"group_by": "session", "from": "0001-01-01", "to": "9999-12-31"},
        {"group_by": "tag,day", "from": "2026-01-01", "to": "2026-02-01"},
        {"group_by": "tags"},
        *(
            {"group_by": "hour", "cursor": cursor_of(hour)}
            for hour in ("", "2026-01-31", "2026-01-31T24:00:00+00:00", "2026-01-31T08:30:00+00:00", "9" * 200)
        ),
        {"group_by": "hour,tag", "cursor": cursor_of("trial", "2026-01-31T08:00:00+00:00")},
        {"group_by": "session,tag", "cursor": cursor_of("s")},
        {"group_by": "tag", "cursor": cursor_of("a\x00")},
    ],
)
def test_an_invalid_query_is_refused(past: Past, query: dict[str, str]) -> None:
    assert_refused_with(past.ask(past.key, **query), 400, "bad_request")
    assert_refused_with(past.ask(ADMIN_TOKEN, OPERATORS, tenant="acme", **query), 400, "bad_request")


def test_31_days_of_hours_are_accepted_and_all_tenants_are_refused(past: Past) -> None:
    period = {"from": "2026-01-01", "to": "2026-01-31"}
    assert past.ask(past.key, group_by="hour", **period).status_code == 200
    for name in ("hour", "session", "tag"):
        message = assert_refused_with(past.ask(ADMIN_TOKEN, OPERATORS, group_by=name), 400, "bad_request")["message"]
        assert "name a tenant" in message


def test_the_operator_finds_the_session_of_a_job(past: Past) -> None:
    listed = past.ask(ADMIN_TOKEN, "/v1/admin/jobs", tenant="acme", subject="alice").json()["jobs"]
    found = [past.ask(ADMIN_TOKEN, f"/v1/admin/jobs/{one['id']}").json() for one in listed]
    assert sorted((one["session"], one["tags"]) for one in found) == sorted(
        [(past.blue["id"], ["trial", "team:blue"])] * 2 + [(past.plain["id"], [])]
    )


def test_the_command_prints_the_same(past: Past, commands: Commands, tmp_path: Path) -> None:
    url = past.stack.settings.stores.database_url.reveal()
    environ = {"PROXY_DATABASE_URL": url, "PROXY_CONFIG": str(past.stack.settings.config_path)}
    day = past.first[:10]

    def run(*arguments: str) -> Done:
        return commands("usage", "--from", day, "--to", day, *arguments, environ=environ, cwd=tmp_path)

    report = past.ask(past.key, group_by="tag", **{"from": day, "to": day}).json()
    del report["next_cursor"]
    assert json.loads(run("--tenant", "acme", "--group-by", "tag", "--json").stdout) == report
    assert run("--tenant", "acme", "--group-by", "hour", "--csv").stdout.startswith("hour,calls,")
    wrong = run("--group-by", "tag")
    assert (wrong.code, wrong.stdout) == (1, "") and "name a tenant" in wrong.stderr
