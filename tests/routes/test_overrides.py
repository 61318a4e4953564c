"""Overrides: another plan or other limits for one subject, with any credential, until a given time."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from proxy.auth.sessions import Sessions, new_guest_name
from proxy.tenants.overrides import MOST_OVERRIDES
from tests.routes.test_grants import count_runs
from tests.routes.test_listings import read_pages
from tests.server.commands import Commands
from tests.support.images import png
from tests.support.limited import ADMIN_TOKEN, COUNTING, NEXT, Client, assert_refused_with, limited_proxy, per, plan
from tests.support.sandbox import SandboxControl
from tests.support.secrets import SECRET
from tests.support.stack import TTL_SECONDS, Stack

PATH = "/v1/admin/tenants/{}/overrides"
PAGE = "https://app.acme.example"
PLANS = {
    "acme": plan(
        endpoints=[NEXT],
        quotas=[per("subject", "requests", 1, "month"), per("tenant", "requests", 1000, "month")],
        max_tokens=64,
    ),
    "large": plan(quotas=[per("subject", "requests", 3, "month")], session_ttl_seconds=7_200),
    "tiny": plan(endpoints=[NEXT], quotas=[per("subject", "upload_bytes", 40)]),
    "visitors": plan(endpoints=[NEXT], quotas=[per("subject", "requests", 1, "month")]),
}
GUESTS = {"allowed_origins": [PAGE], "guests": {"enabled": True, "plan": "visitors", "share": 1.0}}


@pytest.fixture(scope="module")
def limited(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with limited_proxy(shared_sandbox, tmp_path_factory.mktemp("overrides"), PLANS, tenants={"acme": GUESTS}) as stack:
        yield stack


@pytest.fixture
def proxy(limited: Stack, sandbox: SandboxControl) -> Stack:
    return limited


@pytest.fixture
def operator(proxy: Stack) -> Iterator[httpx.Client]:
    with proxy.client(ADMIN_TOKEN) as client:
        yield client


def later(proxy: Stack, seconds: float = 86_400) -> str:
    return datetime.fromtimestamp(int(proxy.clock.now() + seconds), UTC).isoformat()


def put(proxy: Stack, operator: httpx.Client, subject: str, **form: Any) -> dict[str, Any]:
    answer = operator.put(f"{PATH.format('acme')}/{quote(subject, safe='')}", json={"until": later(proxy), **form})
    assert answer.status_code == 200, answer.text
    done: dict[str, Any] = answer.json()
    return done


# --- effects


def test_a_session_that_was_minted_before_follows_an_override_until_its_end(
    proxy: Stack, operator: httpx.Client
) -> None:
    with Client(proxy, proxy.token("alice")) as alice:
        assert alice.facts()["endpoints"] == [NEXT]
        put(proxy, operator, "alice", plan="large", until=later(proxy, 600))
        assert alice.facts()["endpoints"] == sorted([COUNTING, NEXT])
        assert count_runs(alice) == 3
        # No call in between, and no change in the database.
        proxy.clock.advance(600)
        assert alice.facts()["endpoints"] == [NEXT] and alice.facts()["quotas"][0]["limit"] == 1


def test_limits_change_what_they_name_and_nothing_else(proxy: Stack, operator: httpx.Client) -> None:
    limits = {"quotas": [per("subject", "requests", 2, "month")], "max_tokens": 512, "concurrency": {"subject": 7}}
    with Client(proxy, proxy.token("bob")) as bob:
        before = bob.facts()
        assert_refused_with(bob.run(max_tokens=100), 422, "invalid_input")
        assert put(proxy, operator, "bob", limits=limits)["limits"] == limits
        after = bob.facts()
        assert bob.run(max_tokens=500).status_code == 200
        assert_refused_with(bob.run(max_tokens=513), 422, "invalid_input")
        assert count_runs(bob) == 1
        assert [(one["per"], one["limit"]) for one in after["quotas"]] == [("tenant", 1000), ("subject", 2)]
        assert (before["in_flight"]["subject"]["limit"], after["in_flight"]["subject"]["limit"]) == (None, 7)
        assert after["endpoints"] == before["endpoints"]
        assert operator.delete(f"{PATH.format('acme')}/bob").status_code == 204
        assert bob.facts()["quotas"][0]["limit"] == 1
        assert_refused_with(bob.run(max_tokens=100), 422, "invalid_input")


def test_an_override_holds_for_one_subject_only(proxy: Stack, operator: httpx.Client) -> None:
    put(proxy, operator, "carol", plan="large")
    others = [proxy.token("dave"), proxy.token("carol", tenant="visitors"), proxy.tenant_key()]
    for token in others:
        with Client(proxy, token) as client:
            assert client.facts()["endpoints"] == [NEXT]


def test_rates_are_overridden_by_scope(proxy: Stack, operator: httpx.Client) -> None:
    put(proxy, operator, "erin", limits={"rate_limits": {"subject": "1/hour"}, "poll_limits": {"session": "2/hour"}})
    with Client(proxy, proxy.token("erin")) as erin:
        assert erin.run().status_code == 200
        assert_refused_with(erin.run(), 429, "rate_limited", "subject")
        assert [erin.http.get("/v1/session").status_code for _ in range(3)] == [200, 200, 429]


def test_a_guest_follows_its_override(proxy: Stack, operator: httpx.Client) -> None:
    with proxy.client("", headers={"origin": PAGE}) as page:
        guest = page.post("/v1/sessions/guest").raise_for_status().json()
    put(proxy, operator, guest["subject"], limits={"quotas": [per("subject", "requests", 2, "month")]})
    with Client(proxy, guest["token"], origin=PAGE) as client:
        assert count_runs(client) == 2


def test_a_session_is_minted_on_the_plan_of_the_override(proxy: Stack, operator: httpx.Client) -> None:
    with proxy.client(proxy.tenant_key()) as backend:
        wanted = {"subject": "frank", "endpoints": [COUNTING], "ttl_seconds": 7_200}
        assert_refused_with(backend.post("/v1/sessions", json=wanted), 403, "endpoint_not_allowed")
        put(proxy, operator, "frank", plan="large")
        minted = backend.post("/v1/sessions", json=wanted).raise_for_status().json()
    with Client(proxy, minted["token"]) as frank:
        assert frank.facts()["endpoints"] == [COUNTING]
        assert operator.delete(f"{PATH.format('acme')}/frank").status_code == 204
        assert frank.facts()["endpoints"] == []


def test_an_upload_slot_follows_an_override(proxy: Stack, operator: httpx.Client) -> None:
    with Client(proxy, proxy.token("grace")) as grace:
        begin = {"content_type": "image/png", "file_name": "a.png"}
        slot = grace.http.post("/fal/rest/storage/upload/initiate", json=begin).json()["upload_url"]
        put(proxy, operator, "grace", limits={"quotas": [per("subject", "upload_bytes", 40)]})
        headers = {"content-type": "image/png"}
        assert_refused_with(grace.http.put(slot, content=png(50), headers=headers), 402, "quota_exceeded", "subject")
        assert operator.delete(f"{PATH.format('acme')}/grace").status_code == 204
        assert grace.http.put(slot, content=png(50), headers=headers).status_code == 200


@pytest.mark.parametrize("is_guest", [False, True], ids=["user", "guest"])
def test_an_upload_slot_that_was_opened_on_the_plan_of_an_override_follows_its_end(
    proxy: Stack, operator: httpx.Client, is_guest: bool
) -> None:
    name = new_guest_name() if is_guest else "ivan"
    sessions = Sessions(proxy.settings.sessions.secrets, proxy.clock)
    token, _ = sessions.mint("acme", name, TTL_SECONDS, guest=is_guest)
    with Client(proxy, token) as ivan:
        put(proxy, operator, name, plan="tiny")
        begin = {"content_type": "image/png", "file_name": "a.png"}
        slots = [ivan.http.post("/fal/rest/storage/upload/initiate", json=begin).json()["upload_url"] for _ in range(2)]
        headers = {"content-type": "image/png"}
        refused = ivan.http.put(slots[0], content=png(50), headers=headers)
        assert_refused_with(refused, 402, "quota_exceeded", "subject")
        assert operator.delete(f"{PATH.format('acme')}/{name}").status_code == 204
        assert ivan.http.put(slots[1], content=png(50), headers=headers).status_code == 200


# --- setting, clearing and listing


def test_overrides_are_listed_in_pages_and_the_last_one_counts(proxy: Stack, operator: httpx.Client) -> None:
    path = PATH.format("large")
    for name in ("c", "a/b ü", "b"):
        operator.put(f"{path}/{quote(name, safe='')}", json={"plan": "large", "until": later(proxy)}).raise_for_status()
    operator.put(f"{path}/b", json={"plan": "acme", "until": later(proxy, 60)}).raise_for_status()
    pages = read_pages(operator, path, "overrides", limit="2")
    assert [[(one["subject"], one["plan"]) for one in page] for page in pages] == [
        [("a/b ü", "large"), ("b", "acme")],
        [("c", "large")],
    ]
    assert pages[0][1]["until"] == later(proxy, 60) and pages[0][1]["limits"] is None
    proxy.clock.advance(61)
    assert operator.delete(f"{path}/{quote('a/b ü', safe='')}").status_code == 204
    assert [one["subject"] for one in operator.get(path).json()["overrides"]] == ["c"]
    assert_refused_with(operator.delete(f"{path}/a"), 404, "not_found")
    assert_refused_with(operator.delete(f"{path}/%00"), 404, "not_found")
    assert_refused_with(operator.get(path, params={"cursor": "x"}), 400, "bad_request")
    assert_refused_with(operator.get(path, params={"subject": "x"}), 400, "bad_request")
    for method in ("PUT", "DELETE"):
        assert_refused_with(operator.request(method, f"{PATH.format('nobody')}/a"), 404, "not_found")
    assert_refused_with(operator.get(PATH.format("nobody")), 404, "not_found")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"plan": None}, "either plan or limits"),
        ({"limits": {"max_tokens": 5}}, "either plan or limits"),
        ({"plan": "nowhere"}, "there is no plan nowhere"),
        ({"plan": "No Plan"}, "plan"),
        ({"until": "soon"}, "until"),
        ({"until": "2020-01-31"}, "in the future"),
        ({"until": None}, "until"),
        ({"for": "ever"}, "for"),
        ({"until": "9999-12-31T23:59:59.999999Z"}, "until"),
        ({"plan": None, "limits": {}}, "at least one limit"),
        ({"plan": None, "limits": {"rate_limits": {}, "poll_limits": {}}}, "at least one limit"),
        ({"plan": None, "limits": {"quotas": [per("tenant", "requests", 5)]}}, "per subject only"),
        ({"plan": None, "limits": {"quotas": [per("subject", "requests", 0)]}}, "limits.quotas"),
        ({"plan": None, "limits": {"quotas": [per("subject", "requests", 5)] * 26}}, "limits.quotas"),
        (
            {"plan": None, "limits": {"quotas": [per("subject", "requests", 5), per("subject", "requests", 9)]}},
            "2 times",
        ),
        ({"plan": None, "limits": {"quotas": {}}}, "limits.quotas: Input should be a JSON array"),
        ({"plan": None, "limits": {"quotas": [per("subject", "usd", 5)]}}, "no price is known"),
        ({"plan": None, "limits": {"max_tokens": 0}}, "max_tokens"),
        ({"plan": None, "limits": {"max_tokens": True}}, "max_tokens"),
        ({"plan": None, "limits": {"max_prompt_chars": None}}, "max_prompt_chars"),
        ({"plan": None, "limits": {"concurrency": {"tenant": 5}}}, "tenant"),
        ({"plan": None, "limits": {"rate_limits": {"ip": "5/hour"}}}, "ip"),
        ({"plan": None, "limits": {"rate_limits": {"subject": "often"}}}, "subject"),
        ({"plan": None, "limits": {"endpoints": [NEXT]}}, "endpoints"),
    ],
)
def test_an_invalid_form_changes_nothing(
    proxy: Stack, operator: httpx.Client, wrong: dict[str, Any], words: str
) -> None:
    form = {"plan": "large", "until": later(proxy), **wrong}
    answer = operator.put(f"{PATH.format('visitors')}/heidi", json=form)
    assert words in assert_refused_with(answer, 400, "bad_request")["message"]
    assert operator.get(PATH.format("visitors")).json() == {"overrides": [], "next_cursor": None}


@pytest.mark.parametrize("end", ["9999-12-31T23:59:59Z", "2999-12-31T23:59:59.123456789Z", "9999-12-31"])
def test_an_override_to_the_end_of_time_can_be_set_and_shown(operator: httpx.Client, end: str) -> None:
    path = f"{PATH.format('visitors')}/ivan"
    answer = operator.put(path, json={"plan": "large", "until": end})
    assert answer.status_code == 200 and answer.json()["until"].startswith(end[:10])
    assert operator.get(PATH.format("visitors")).json()["overrides"] == [answer.json()]
    assert operator.delete(path).status_code == 204


def test_an_invalid_subject_gets_no_override(proxy: Stack, operator: httpx.Client) -> None:
    for name in ("", "%00", "%20a", "a" * 201):
        answer = operator.put(f"{PATH.format('visitors')}/{name}", json={"plan": "large", "until": later(proxy)})
        assert "printable" in assert_refused_with(answer, 400, "bad_request")["message"]


# --- commands


def test_commands_set_list_and_clear(proxy: Stack, operator: httpx.Client, commands: Commands, tmp_path: Path) -> None:
    environ = {"PROXY_DATABASE_URL": proxy.settings.stores.database_url.reveal(), "PROXY_SESSION_SECRETS": SECRET}

    def run(*arguments: str, code: int = 0) -> str:
        done = commands("overrides", *arguments, environ=environ, cwd=tmp_path)
        assert done.code == code, done.stderr
        return done.stderr if code else done.stdout.strip()

    with Client(proxy, proxy.token("ivan", tenant="visitors")) as ivan:
        assert ivan.facts()["quotas"][0]["limit"] == 1
        assert run("set", "visitors", "ivan", "--plan", "large", "--until", "2099-01-31") == "set"
        # The server sees the change when it reads its directory again.
        proxy.clock.advance(5)
        assert ivan.facts()["quotas"][0]["limit"] == 3
        limits = {"max_tokens": 9}
        done = run("set", "visitors", "ivan", "--limits", json.dumps(limits), "--until", "2099-01-31", "--json")
        assert json.loads(run("list", "visitors", "--json")) == [json.loads(done)]
        assert run("list", "visitors") == "ivan\tNone\t{'max_tokens': 9}\t2099-01-31T00:00:00+00:00"
        assert run("clear", "visitors", "ivan") == "cleared" and run("list", "visitors") == ""
        proxy.clock.advance(5)
        assert ivan.facts()["quotas"][0]["limit"] == 1
    until = ("--until", "2099-01-31")
    assert "no override" in run("clear", "visitors", "ivan", code=1)
    assert "no tenant nobody" in run("clear", "nobody", "ivan", code=1)
    assert "no tenant nobody" in run("list", "nobody", code=1)
    assert "no tenant nobody" in run("set", "nobody", "ivan", "--plan", "large", *until, code=1)
    assert "there is no plan nowhere" in run("set", "visitors", "ivan", "--plan", "nowhere", *until, code=1)
    assert "either plan or limits" in run("set", "visitors", "ivan", *until, code=1)
    assert "--limits: must be JSON" in run("set", "visitors", "ivan", "--limits", "{", *until, code=1)
    assert "--limits.max_tokens" in run("set", "visitors", "ivan", "--limits", '{"max_tokens": 0}', *until, code=1)
    assert "in the future" in run("set", "visitors", "ivan", "--plan", "large", "--until", "2020-01-31", code=1)
    for command in (("set", "visitors", " ", "--plan", "large", *until), ("clear", "visitors", " ")):
        assert "SUBJECT: " in run(*command, code=1)


def test_more_overrides_than_fit_are_refused_until_one_ends(sandbox: SandboxControl, tmp_path: Path) -> None:
    with limited_proxy(sandbox, tmp_path, PLANS) as proxy, proxy.client(ADMIN_TOKEN) as operator:
        until = proxy.clock.now() + 86_400
        rows = [("acme", f"user-{number}", "large", None, until) for number in range(MOST_OVERRIDES)]
        with closing(sqlite3.connect(tmp_path / "proxy.db", timeout=30)) as database, database:
            database.executemany("INSERT INTO overrides VALUES (?, ?, ?, ?, ?)", rows)
        form = {"until": later(proxy), "plan": "large"}
        refused = assert_refused_with(operator.put(f"{PATH.format('acme')}/one-more", json=form), 400, "bad_request")
        assert f"{MOST_OVERRIDES} overrides are in effect" in refused["detail"]
        put(proxy, operator, "user-0", plan="visitors")
        assert operator.delete(f"{PATH.format('acme')}/user-1").status_code == 204
        put(proxy, operator, "one-more", plan="large")
