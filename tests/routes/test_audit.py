"""Every route of the admin API that changes something leaves an entry in the audit log."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import httpx
import pytest

from tests.support.audit_log import read_entries
from tests.support.limited import ADMIN_TOKEN, NEXT, Client, asking, assert_refused_with, limited_proxy, operating, plan
from tests.support.routes import admin_routes
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack

PLANS = {"acme": plan(), "globex": plan(), "initech": plan()}
ALICE = {"tenant": "acme", "subject": "alice@example.com"}
BOB = {"tenant": "acme", "subject": "bob@example.com"}
GRANT = {"subject": "alice@example.com", "unit": "usd", "amount": 5, "reason": "order of alice@example.com"}
APPLIED = {"plans": {"acme": plan(max_tokens=7)}, "tenants": [{"id": "acme", "plan": "acme"}]}

TOKEN = {"name": "ops", "role": "operator"}
MADE_AND_REVOKED = ["admin_token.create", "admin_token.revoke"]
OVERRIDE = "/tenants/{tenant}/overrides/{subject:path}"

#: One request for each route that changes something, and the actions that it records.
Requests = dict[tuple[str, str], tuple[Callable[[httpx.Client], httpx.Response], list[str]]]
MUTATIONS: Requests = {
    ("PUT", "/tenants"): (lambda http: http.put("/tenants", json=APPLIED), ["plan.change"]),
    ("POST", "/tenants/{tenant}/suspend"): (lambda http: http.post("/tenants/globex/suspend"), ["tenant.suspend"]),
    ("POST", "/tenants/{tenant}/resume"): (lambda http: resumed(http), ["tenant.suspend", "tenant.resume"]),
    ("DELETE", "/tenants/{tenant}"): (lambda http: http.delete("/tenants/initech"), ["tenant.delete"]),
    ("DELETE", "/tenants/{tenant}/subjects/{subject:path}"): (
        lambda http: http.delete("/tenants/acme/subjects/alice@example.com"),
        ["subject.forget"],
    ),
    ("POST", "/tenants/{tenant}/keys"): (lambda http: http.post("/tenants/acme/keys"), ["key.create"]),
    ("POST", "/tenants/{tenant}/grants"): (lambda http: http.post("/tenants/acme/grants", json=GRANT), ["grant.add"]),
    ("PUT", OVERRIDE): (lambda http: an_override(http), ["override.set"]),
    ("DELETE", OVERRIDE): (
        lambda http: an_override(http) and http.delete(f"/tenants/acme/overrides/{ALICE['subject']}"),
        ["override.set", "override.clear"],
    ),
    ("DELETE", "/keys/{key}"): (lambda http: http.delete(f"/keys/{a_key(http)}"), ["key.create", "key.revoke"]),
    ("POST", "/sessions"): (lambda http: http.post("/sessions", json=ALICE), ["session.mint"]),
    ("DELETE", "/sessions"): (lambda http: http.request("DELETE", "/sessions", json=ALICE), ["session.revoke"]),
    ("POST", "/tokens"): (lambda http: http.post("/tokens", json=TOKEN), ["admin_token.create"]),
    ("DELETE", "/tokens/{token}"): (lambda http: http.delete(f"/tokens/{a_token(http)}"), MADE_AND_REVOKED),
    ("DELETE", "/jobs/{job}"): (lambda http: http.delete(f"/jobs/{a_job(http)}"), ["session.mint", "job.cancel"]),
}

#: This route needs a failed alert: tests/alerts/test_resend.py checks its entry.
RESEND = ("POST", "/alerts/{alert}/resend")


def a_job(http: httpx.Client) -> str:
    """A job that waits in fal's queue."""
    token = http.post("/sessions", json=BOB).json()["token"]
    wanted = {"endpoint": NEXT, "input": asking("[[pace hold=IN_QUEUE]]")}
    jobs, headers = http.base_url.join("/v1/jobs"), {"authorization": f"Bearer {token}"}
    job_id: str = http.post(jobs, json=wanted, headers=headers).raise_for_status().json()["id"]
    return job_id


def a_token(http: httpx.Client) -> str:
    name: str = http.post("/tokens", json={"name": "short-lived", "role": "viewer"}).json()["name"]
    return name


def a_key(http: httpx.Client) -> str:
    key_id: str = http.post("/tenants/acme/keys").json()["id"]
    return key_id


def resumed(http: httpx.Client) -> httpx.Response:
    http.post("/tenants/acme/suspend").raise_for_status()
    return http.post("/tenants/acme/resume")


def an_override(http: httpx.Client) -> httpx.Response:
    form = {"plan": "globex", "until": "2099-01-31"}
    return http.put(f"/tenants/acme/overrides/{ALICE['subject']}", json=form)


@pytest.fixture(scope="module")
def proxy(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with limited_proxy(shared_sandbox, tmp_path_factory.mktemp("audit"), PLANS) as stack:
        yield stack


@pytest.fixture
def operator(proxy: Stack) -> Iterator[httpx.Client]:
    with operating(proxy) as client:
        client.base_url = httpx.URL(f"{proxy.url}/v1/admin")
        yield client


def entries_of(proxy: Stack) -> list[dict[str, Any]]:
    return read_entries(proxy.settings.stores.database_url.reveal())


def test_each_mutating_route_is_in_the_table() -> None:
    found = {(method, path) for method, path in admin_routes() if method != "GET"}
    assert found == {(method, f"/v1/admin{path}") for method, path in [*MUTATIONS, RESEND]}


@pytest.mark.parametrize("route", MUTATIONS, ids=" ".join)
def test_each_mutating_route_leaves_an_entry(proxy: Stack, operator: httpx.Client, route: tuple[str, str]) -> None:
    send, actions = MUTATIONS[route]
    before = len(entries_of(proxy))
    answer = send(operator)
    assert answer.is_success, answer.text
    new = entries_of(proxy)[before:]
    assert [entry["action"] for entry in new] == actions
    assert new[-1]["request_id"] == answer.headers["x-request-id"]
    for entry in new:
        assert (entry["by"], entry["address"]) == ("PROXY_ADMIN_TOKEN", "127.0.0.1")
    text = json.dumps(new)
    assert ADMIN_TOKEN not in text and "@example.com" not in text
    if answer.status_code == 201:
        secrets = [answer.json()[name] for name in ("key", "token") if name in answer.json()]
        assert not any(secret.removeprefix("fpk_") in text for secret in secrets)


def test_refusals_and_reads_leave_no_entry(proxy: Stack, operator: httpx.Client) -> None:
    before = entries_of(proxy)
    assert_refused_with(operator.post("/tenants/nobody/keys"), 404, "not_found")
    assert_refused_with(operator.delete("/keys/0123456789abcdef"), 404, "not_found")
    for path in ("/tenants", "/tenants/acme", "/tenants/acme/keys", "/jobs?tenant=acme", "/usage?tenant=acme"):
        assert operator.get(path).status_code == 200
    assert entries_of(proxy) == before


def test_a_start_records_the_plans_that_it_applies(proxy: Stack) -> None:
    first = entries_of(proxy)[:6]
    assert [entry["action"] for entry in first] == ["plan.create"] * 3 + ["tenant.create"] * 3
    assert {entry["by"] for entry in first} == {"server:start"}


def test_an_end_user_cannot_make_the_log_longer(proxy: Stack) -> None:
    before = entries_of(proxy)
    with Client(proxy, proxy.token(subject="alice")) as client:
        assert client.http.delete("/v1/session").status_code == 204
    assert entries_of(proxy) == before


@pytest.mark.parametrize("route", MUTATIONS, ids=" ".join)
def test_a_change_that_cannot_be_recorded_does_not_happen(
    sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory, route: tuple[str, str]
) -> None:
    with limited_proxy(sandbox, tmp_path_factory.mktemp("full"), PLANS) as proxy, operating(proxy) as client:
        client.base_url = httpx.URL(f"{proxy.url}/v1/admin")
        key, job, token = a_key(client), a_job(client), a_token(client)
        client.post("/tenants/globex/suspend").raise_for_status()
        an_override(client).raise_for_status()
        path = proxy.settings.stores.database_url.reveal().removeprefix("sqlite:///")
        with closing(sqlite3.connect(path)) as database:
            database.execute("CREATE TRIGGER no_entry BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, 'full'); END")
            database.commit()
            prepared: dict[tuple[str, str], Callable[[httpx.Client], httpx.Response]] = {
                ("DELETE", "/keys/{key}"): lambda http: http.delete(f"/keys/{key}"),
                ("POST", "/tenants/{tenant}/suspend"): lambda http: http.post("/tenants/acme/suspend"),
                ("POST", "/tenants/{tenant}/resume"): lambda http: http.post("/tenants/globex/resume"),
                ("DELETE", "/jobs/{job}"): lambda http: http.delete(f"/jobs/{job}"),
                ("DELETE", "/tokens/{token}"): lambda http: http.delete(f"/tokens/{token}"),
                ("DELETE", OVERRIDE): lambda http: http.delete(f"/tenants/acme/overrides/{ALICE['subject']}"),
            }
            send = prepared.get(route, MUTATIONS[route][0])
            before = "".join(database.iterdump())
            assert_refused_with(send(client), 503, "store_unavailable")
            assert "".join(database.iterdump()) == before


# The list


def test_entries_are_listed_newest_first_in_pages(proxy: Stack, operator: httpx.Client) -> None:
    operator.request("DELETE", "/sessions", json=ALICE)
    stored, listed, cursor = entries_of(proxy), list[dict[str, Any]](), None
    while cursor or not listed:
        query = {"limit": 4, **({"cursor": cursor} if cursor else {})}
        page = operator.get("/audit", params=query).raise_for_status().json()
        assert 0 < len(page["entries"]) <= 4
        listed += page["entries"]
        cursor = page["next_cursor"]
    assert [{name: entry[name] for name in stored[0]} for entry in reversed(listed)] == stored
    assert (listed[0]["action"], listed[0]["subject"]) == ("session.revoke", ALICE["subject"])
    of_globex = operator.get("/audit", params={"tenant": "globex"}).json()["entries"]
    assert {entry["tenant"] for entry in of_globex} == {"globex"}
    assert of_globex == [entry for entry in listed if entry["tenant"] == "globex"]
    assert_refused_with(operator.get("/audit", params={"tenant": "initech2"}), 404, "not_found")


NAME_CURSOR, NEGATIVE, TRUE, HUGE = "ImEi", "LTE", "dHJ1ZQ", "MTAwMDAwMDAwMDAwMDAwMDAwMDAwMDA"


@pytest.mark.parametrize(
    "query",
    [{"limit": "0"}, {"limit": "101"}, {"tenant": "a\x00b"}, {"tenant": ""}, {"action": "x"}]
    + [{"cursor": cursor} for cursor in ("x", NAME_CURSOR, NEGATIVE, TRUE, HUGE)],
)
def test_a_query_that_is_wrong_is_refused(operator: httpx.Client, query: dict[str, str]) -> None:
    assert_refused_with(operator.get("/audit", params=query), 400, "bad_request")
