"""Grants as the operator gives them and callers spend them, by the admin API and by the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.routes.test_listings import read_pages
from tests.server.commands import Commands
from tests.support.limited import ADMIN_TOKEN, NEXT, Client, asking, assert_refused_with, limited_proxy, per, plan
from tests.support.sandbox import SandboxControl
from tests.support.secrets import SECRET
from tests.support.stack import Stack

PATH = "/v1/admin/tenants/{}/grants"
QUOTAS = [per("subject", "requests", 1, "month"), per("tenant", "requests", 100, "month")]
#: One tenant per test, so that grants of other tests do not count.
NAMES = ("acme", "spent", "shown", "mixed", "listed", "keyed", "wrong", "command", "endless")
PLANS = {name: plan(quotas=QUOTAS) for name in NAMES} | {
    name: plan(quotas=[per("tenant", "requests", 1, "month")]) for name in ("small", "paid")
}


@pytest.fixture(scope="module")
def limited(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with limited_proxy(shared_sandbox, tmp_path_factory.mktemp("grants"), PLANS) as stack:
        yield stack


@pytest.fixture
def proxy(limited: Stack, sandbox: SandboxControl) -> Stack:
    return limited


@pytest.fixture
def operator(proxy: Stack) -> Iterator[httpx.Client]:
    with proxy.client(ADMIN_TOKEN) as client:
        yield client


def give(operator: httpx.Client, tenant: str, amount: float, **more: Any) -> dict[str, Any]:
    form = {"unit": "requests", "amount": amount, "reason": "order 4711", **more}
    answer = operator.post(PATH.format(tenant), json=form)
    assert answer.status_code == 201, answer.text
    given: dict[str, Any] = answer.json()
    return given


def later(proxy: Stack, seconds: float) -> str:
    return datetime.fromtimestamp(proxy.clock.now() + seconds, UTC).isoformat()


def count_runs(client: Client) -> int:
    """How many calls run until one is refused for its quota."""
    for count in range(20):
        if (answer := client.run()).status_code != 200:
            assert_refused_with(answer, 402, "quota_exceeded", answer.json()["scope"])
            return count
    raise AssertionError("no call was refused")


# --- spending


def test_a_subjects_grant_pays_only_for_it_and_only_when_its_quota_is_used_up(
    proxy: Stack, operator: httpx.Client
) -> None:
    with Client(proxy, proxy.token(tenant="spent")) as alice, Client(proxy, proxy.token("bob", tenant="spent")) as bob:
        give(operator, "spent", 2, subject="alice")
        # A failed call returns its amount to the grant.
        assert alice.run("[[fault fail=internal_server_error]]").status_code == 500
        assert (count_runs(alice), count_runs(bob)) == (3, 1)
        give(operator, "spent", 1, subject="alice")
        assert alice.run("[[fault fail=internal_server_error]]").status_code == 500
        assert count_runs(alice) == 1
    usage = operator.get("/v1/admin/usage", params={"tenant": "spent"}).json()
    assert usage["total"]["requests"] == 5


def test_a_job_names_the_grants_that_paid_for_it(proxy: Stack, operator: httpx.Client) -> None:
    endless, ending = give(operator, "paid", 3), give(operator, "paid", 1, expires_at=later(proxy, 60))
    with Client(proxy, proxy.token(tenant="paid")) as alice:
        for _ in range(3):
            assert alice.run().status_code == 200
            proxy.clock.advance(1)
    jobs = operator.get("/v1/admin/jobs", params={"tenant": "paid"}).json()["jobs"]
    details = [operator.get(f"/v1/admin/jobs/{one['id']}").raise_for_status().json() for one in reversed(jobs)]
    paid = [{one["account"]: one["reserved"] for one in job["charges"] if one["reserved"]} for job in details]
    assert paid == [{"": 1}, {f"grant {ending['id']}": 1}, {f"grant {endless['id']}": 1}]


def test_an_estimate_counts_what_grants_have_left(proxy: Stack, operator: httpx.Client) -> None:
    def estimate(client: Client) -> Any:
        wanted = {"endpoint": NEXT, "input": asking("What is this?")}
        refused = client.http.post("/v1/estimate", json=wanted).raise_for_status().json()["refusal"]
        return refused and refused["message"]

    with Client(proxy, proxy.token("dave", tenant="acme")) as dave:
        assert dave.run().status_code == 200
        assert "is used up" in estimate(dave)
        give(operator, "acme", 1, subject="dave")
        assert estimate(dave) is None and dave.run().status_code == 200
        assert "is used up" in estimate(dave)


def test_a_tenants_grant_pays_for_all_its_callers(proxy: Stack, operator: httpx.Client) -> None:
    give(operator, "small", 3)
    counts = []
    for token in (proxy.token("alice", tenant="small"), proxy.tenant_key("small")):
        with Client(proxy, token) as client:
            counts.append([client.run().status_code for _ in range(2)])
    with Client(proxy, proxy.token("bob", tenant="small")) as bob:
        assert (counts, count_runs(bob)) == ([[200, 200], [200, 200]], 0)


def test_an_expired_grant_pays_nothing(proxy: Stack, operator: httpx.Client) -> None:
    give(operator, "acme", 5, subject="carol", expires_at=later(proxy, 60))
    with Client(proxy, proxy.token("carol", tenant="acme")) as carol:
        assert [carol.run().status_code for _ in range(3)] == [200] * 3
        proxy.clock.advance(61)
        assert count_runs(carol) == 0
        assert carol.facts()["grants"] == []


#: As programs write a moment that never comes: the last one of their calendar.
@pytest.mark.parametrize("end", ["9999-12-31T23:59:59Z", "2999-12-31T23:59:59.123456789Z", "9999-12-31"])
def test_a_grant_to_the_end_of_time_can_be_given_shown_and_spent(
    proxy: Stack, operator: httpx.Client, end: str
) -> None:
    given = give(operator, "endless", 1, subject=f"erin-{len(end)}", expires_at=end)
    assert given["expires_at"].startswith(end[:10])
    assert given in operator.get(PATH.format("endless")).json()["grants"]
    with Client(proxy, proxy.token(given["subject"], tenant="endless")) as erin:
        assert [one["expires_at"] for one in erin.facts()["grants"]] == [given["expires_at"]]
        assert count_runs(erin) == 2


def test_a_session_sees_what_is_left_of_a_grant_and_not_its_reason(proxy: Stack, operator: httpx.Client) -> None:
    with Client(proxy, proxy.token(tenant="shown")) as alice:
        assert alice.facts()["grants"] == []
        end = later(proxy, 86_400)
        give(operator, "shown", 2, subject="alice", expires_at=end)
        proxy.clock.advance(1)
        give(operator, "shown", 0.5, unit="usd")
        give(operator, "shown", 7, subject="bob")
        assert alice.run().status_code == alice.run().status_code == 200
        seconds = datetime.fromisoformat(end).replace(microsecond=0).isoformat()
        figures = {"used": 1, "reserved": 0, "left": 1, "expires_at": seconds}
        assert alice.facts()["grants"] == [
            {"per": "tenant", "unit": "usd", "amount": 0.5, "used": 0, "reserved": 0, "left": 0.5, "expires_at": None},
            {"per": "subject", "unit": "requests", "amount": 2, **figures},
        ]
        assert "4711" not in str(alice.facts())
    reported = operator.get("/v1/admin/usage", params={"tenant": "shown", "subject": "alice"}).json()["grants"]
    assert [(one["subject"], one["left"], one["reason"]) for one in reported] == [("alice", 1, "order 4711")]
    reported = operator.get("/v1/admin/usage", params={"tenant": "shown"}).json()["grants"]
    assert {one["subject"] for one in reported} == {"bob", None, "alice"}


# --- giving and listing


def test_grants_are_listed_in_pages(proxy: Stack, operator: httpx.Client) -> None:
    given = []
    for number in range(5):
        proxy.clock.advance(1)
        given.append(give(operator, "listed", number + 1, **({"subject": "alice"} if number % 2 else {})))
    pages = read_pages(operator, PATH.format("listed"), "grants", limit="2")
    assert pages == [given[:-3:-1], given[2:0:-1], given[:1]]
    assert read_pages(operator, PATH.format("listed"), "grants", subject="alice") == [[given[3], given[1]]]
    assert read_pages(operator, PATH.format("listed"), "grants", subject="") == [given[::-2]]
    for query in ({"limit": "501"}, {"cursor": "x"}, {"subject": " "}, {"user": "alice"}):
        assert_refused_with(operator.get(PATH.format("listed"), params=query), 400, "bad_request")
    assert_refused_with(operator.get(PATH.format("nobody")), 404, "not_found")


def test_requests_with_one_idempotency_key_give_one_grant(operator: httpx.Client) -> None:
    def send(key: str | None, tenant: str = "keyed", **more: Any) -> httpx.Response:
        form = {"unit": "requests", "amount": 5, "reason": "order", **more}
        headers = {} if key is None else {"idempotency-key": key}
        return operator.post(PATH.format(tenant), json=form, headers=headers)

    first, again = send("one"), send("one")
    assert again.status_code == 201 and again.json() == first.json()
    assert (first.headers.get("idempotency-replayed"), again.headers["idempotency-replayed"]) == (None, "true")
    others = [{"amount": 6}, {"subject": "alice"}, {"unit": "usd"}, {"reason": "more"}, {"expires_at": "2099-01-31"}]
    for other in others:
        assert (
            assert_refused_with(send("one", **other), 422, "invalid_input")["detail"][0]["type"]
            == "idempotency_key_reused"
        )
    apart = [send("two"), send("one", "mixed"), send(None), send(None)]
    assert len({one.json()["id"] for one in [first, *apart]}) == 5
    for key in ("", "a b", "k" * 256):
        assert_refused_with(send(key), 400, "bad_request")


def test_a_request_that_is_repeated_after_its_grant_expired_still_gets_it(proxy: Stack, operator: httpx.Client) -> None:
    form = {"unit": "requests", "amount": 5, "reason": "order", "expires_at": later(proxy, 60)}

    def send(key: str, **more: Any) -> httpx.Response:
        return operator.post(PATH.format("keyed"), json={**form, **more}, headers={"idempotency-key": key})

    given = send("in-time").json()
    proxy.clock.advance(61)
    again = send("in-time")
    assert (again.status_code, again.headers["idempotency-replayed"], again.json()) == (201, "true", given)
    assert_refused_with(send("in-time", amount=6), 422, "invalid_input")
    assert "in the future" in assert_refused_with(send("too-late"), 400, "bad_request")["message"]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"unit": "calls"}, "unit"),
        ({"amount": 0}, "amount"),
        ({"amount": -1}, "amount"),
        ({"amount": 1e-7}, "amount"),
        ({"amount": 1.1e12}, "amount"),
        ({"amount": "5"}, "amount"),
        ({"amount": True}, "amount"),
        ({"reason": ""}, "reason"),
        ({"reason": " paid"}, "reason"),
        ({"reason": "a\nb"}, "reason"),
        ({"reason": "a\x00b"}, "reason"),
        ({"reason": "r" * 201}, "reason"),
        ({"subject": ""}, "subject"),
        ({"subject": "a\x00"}, "subject"),
        ({"subject": "s" * 201}, "subject"),
        ({"expires_at": "soon"}, "expires_at"),
        ({"expires_at": "2020-01-31"}, "in the future"),
        ({"expires_at": "2099-01-31T00:00:00"}, "expires_at"),
        ({"expires_at": "9999-12-31T23:59:59-14:00"}, "expires_at"),
        ({"expires_at": "9999-12-31T23:59:59.999999Z"}, "expires_at"),
        ({"expires_at": 4_000_000_000}, "expires_at"),
        ({"expired_at": "2099-01-31"}, "expired_at"),
    ],
)
def test_an_invalid_form_gives_nothing(operator: httpx.Client, wrong: dict[str, Any], words: str) -> None:
    form = {"unit": "requests", "amount": 5, "reason": "order", **wrong}
    assert words in assert_refused_with(operator.post(PATH.format("wrong"), json=form), 400, "bad_request")["message"]
    assert operator.get(PATH.format("wrong")).json() == {"grants": [], "next_cursor": None}


def test_an_unknown_tenant_gets_nothing(operator: httpx.Client) -> None:
    form = {"unit": "requests", "amount": 5, "reason": "order"}
    assert_refused_with(operator.post(PATH.format("nobody"), json=form), 404, "not_found")


# --- commands


def test_commands_give_and_list_as_the_routes_do(
    proxy: Stack, operator: httpx.Client, commands: Commands, tmp_path: Path
) -> None:
    environ = {"PROXY_DATABASE_URL": proxy.settings.stores.database_url.reveal(), "PROXY_SESSION_SECRETS": SECRET}

    def run(*arguments: str) -> str:
        done = commands("grants", *arguments, environ=environ, cwd=tmp_path)
        assert done.code == 0, done.stderr
        return done.stdout.strip()

    def refused(*arguments: str) -> str:
        done = commands("grants", *arguments, environ=environ, cwd=tmp_path)
        assert (done.code, done.stdout) == (1, "")
        return done.stderr

    form = ["command", "--unit", "requests", "--amount", "2", "--reason", "order 4711", "--subject", "alice"]
    id_ = run("add", *form, "--key", "k-1")
    assert run("add", *form, "--key", "k-1") == id_
    (listed,) = operator.get(PATH.format("command")).json()["grants"]
    assert (listed["id"], listed["subject"], listed["left"]) == (id_, "alice", 2)
    assert json.loads(run("list", "command", "--json")) == [listed]
    assert run("list", "command") == f"{id_}\talice\trequests\t2\t2\tNone\torder 4711"
    assert run("list", "command", "--subject", "bob") == ""
    own = run("add", "command", "--unit", "usd", "--amount", "1", "--reason", "order 4712")
    assert run("list", "command", "--subject", "").split("\t")[:2] == [own, "None"]
    assert run("list", "command", "--subject", "alice").split("\t")[0] == id_
    made = json.loads(run("add", *form, "--expires-at", "2099-01-31", "--json"))
    assert made["expires_at"] == "2099-01-31T00:00:00+00:00"
    # The server sees the command's grant when it reads its directory again.
    proxy.clock.advance(5)
    with Client(proxy, proxy.token(tenant="command")) as alice:
        assert count_runs(alice) == 5
    assert "no tenant nobody" in refused("add", "nobody", *form[1:])
    assert "--amount: " in refused("add", *form, "--amount", "0")
    assert "--unit: " in refused("add", *form, "--unit", "calls")
    assert "in the future" in refused("add", *form, "--expires-at", "2020-01-31")
    assert "Idempotency-Key" in refused("add", *form, "--key", "a b")
    assert "--subject: " in refused("list", "command", "--subject", " ")
    assert "no tenant nobody" in refused("list", "nobody")
