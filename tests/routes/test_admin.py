"""The admin API: every route, and who may call it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from proxy.limits.rates import ADMIN_LIMIT
from tests.server.commands import Commands
from tests.support.limited import ADMIN_TOKEN, COUNTING, NEXT, Client, assert_refused_with, limited_proxy, per, plan
from tests.support.sandbox import SandboxControl
from tests.support.secrets import SECRET
from tests.support.stack import Stack

PLANS = {"acme": plan(max_tokens=100), "globex": plan(endpoints=[NEXT])}
ROUTES = [
    ("GET", "/tenants"),
    ("PUT", "/tenants"),
    ("GET", "/tenants/acme"),
    ("DELETE", "/tenants/acme"),
    ("POST", "/tenants/acme/suspend"),
    ("POST", "/tenants/acme/resume"),
    ("GET", "/tenants/acme/keys"),
    ("POST", "/tenants/acme/keys"),
    ("GET", "/tenants/acme/grants"),
    ("POST", "/tenants/acme/grants"),
    ("GET", "/tenants/acme/overrides"),
    ("PUT", "/tenants/acme/overrides/alice"),
    ("DELETE", "/tenants/acme/overrides/alice"),
    ("DELETE", "/keys/0123456789abcdef"),
    ("POST", "/sessions"),
    ("DELETE", "/sessions"),
    ("GET", "/jobs"),
    ("GET", "/jobs/x"),
    ("DELETE", "/jobs/x"),
    ("GET", "/upstreams"),
    ("GET", "/usage"),
    ("GET", "/audit"),
    ("GET", "/tokens"),
    ("POST", "/tokens"),
    ("DELETE", "/tokens/ops"),
]


@pytest.fixture(scope="module")
def limited(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with limited_proxy(shared_sandbox, tmp_path_factory.mktemp("admin"), PLANS) as stack:
        yield stack


@pytest.fixture
def proxy(limited: Stack, sandbox: SandboxControl) -> Stack:
    return limited


@pytest.fixture
def operator(proxy: Stack) -> Iterator[httpx.Client]:
    with admin(proxy, f"Bearer {ADMIN_TOKEN}") as client:
        yield client


def admin(proxy: Stack, *authorization: str) -> httpx.Client:
    headers = [("authorization", value) for value in authorization]
    return httpx.Client(base_url=f"{proxy.url}/v1/admin", headers=headers, trust_env=False, verify=False, timeout=60)


# --- credentials


def test_every_route_wants_the_token(proxy: Stack) -> None:
    wrong: list[tuple[str, ...]] = [
        (),
        ("",),
        ("Bearer",),
        (f"Bearer {ADMIN_TOKEN}x",),
        (f"Bearer {ADMIN_TOKEN[:-1]}",),
        (f"bearer {ADMIN_TOKEN}",),
        (f"Key {ADMIN_TOKEN}",),
        (ADMIN_TOKEN,),
        (f"Bearer {ADMIN_TOKEN}", f"Bearer {ADMIN_TOKEN}"),
        (f"Bearer {proxy.token(tenant='acme')}",),
        (f"Bearer {proxy.tenant_key('acme')}",),
    ]
    for authorization in wrong:
        with admin(proxy, *authorization) as stranger:
            assert_refused_with(stranger.get("/tenants"), 401, "unauthenticated")
    with admin(proxy) as stranger:
        for method, path in ROUTES:
            assert_refused_with(stranger.request(method, path), 401, "unauthenticated")


@pytest.mark.slow
def test_the_list_of_routes_is_complete(sandbox: SandboxControl, tmp_path: Path) -> None:
    """The list above is complete: each route exists, and no other method does. One of them deletes the tenant."""
    with limited_proxy(sandbox, tmp_path, PLANS) as own, admin(own, f"Bearer {ADMIN_TOKEN}") as operator:
        for method, path in ROUTES:
            assert operator.request(method, path).status_code != 405
        for path in {path for _, path in ROUTES}:
            known = {method for method, route in ROUTES if route == path}
            for method in {"GET", "POST", "PUT", "DELETE", "PATCH"} - known:
                assert_refused_with(operator.request(method, path), 405, "method_not_allowed")


def test_without_an_admin_token_in_the_settings_the_api_is_closed(sandbox: SandboxControl, tmp_path: Path) -> None:
    with limited_proxy(sandbox, tmp_path, PLANS, environ={"PROXY_ADMIN_TOKEN": ""}) as own:
        for authorization in ((), (f"Bearer {ADMIN_TOKEN}",)):
            with admin(own, *authorization) as stranger:
                for method, path in ROUTES:
                    assert_refused_with(stranger.request(method, path), 403, "not_allowed")


def test_guessing_is_slowed_down(sandbox: SandboxControl, tmp_path: Path) -> None:
    most = int(ADMIN_LIMIT.partition("/")[0])
    with limited_proxy(sandbox, tmp_path, PLANS) as own, admin(own, "Bearer guess") as guesser:
        statuses = [guesser.request(*ROUTES[number % len(ROUTES)]).status_code for number in range(most)]
        assert set(statuses) == {401}
        assert assert_refused_with(guesser.get("/tenants"), 429, "rate_limited", "ip")["retry_after"] == 60


# --- tenants


def test_tenants_are_listed_and_shown_with_their_limits(operator: httpx.Client) -> None:
    listed = operator.get("/tenants").json()["tenants"]
    assert [(one["id"], one["plan"]) for one in listed][:2] == [("acme", "acme"), ("globex", "globex")]
    shown = operator.get("/tenants/acme").json()
    assert shown["limits"]["max_tokens"] == 100 and shown["guests"]["enabled"] is False
    assert_refused_with(operator.get("/tenants/nobody"), 404, "not_found")


def test_plans_and_tenants_are_applied_at_once_and_only_once(proxy: Stack, operator: httpx.Client) -> None:
    file = {"plans": {"new": plan(endpoints=[NEXT])}, "tenants": [{"id": "newcomer", "plan": "new"}]}
    assert operator.put("/tenants", json=file).json() == {"changed": True}
    assert operator.put("/tenants", json=file).json() == {"changed": False}
    assert operator.get("/tenants/newcomer").json()["plan"] == "new"
    assert operator.get("/tenants/acme").status_code == 200
    with Client(proxy, proxy.token(tenant="newcomer")) as client:
        assert client.facts()["endpoints"] == [NEXT]


def test_a_dry_run_lists_what_would_change_and_changes_nothing(proxy: Stack, operator: httpx.Client) -> None:
    quota = per("tenant", "requests", 5)
    file = {"plans": {"dry": plan(endpoints=[NEXT], quotas=[quota])}, "tenants": [{"id": "globex", "plan": "dry"}]}
    before, dry = operator.get("/tenants").json(), {"dry_run": "1"}
    answer = operator.put("/tenants", json=file, params=dry)
    assert answer.status_code == 200
    created, moved = answer.json()["changes"]
    assert (created["action"], created["kind"], created["id"]) == ("create", "plan", "dry")
    assert {"field": "quotas", "to": quota} in created["fields"]
    assert moved["fields"] == [{"field": "plan", "from": "globex", "to": "dry"}]
    assert operator.get("/tenants").json() == before
    assert not [one for one in operator.get("/audit").json()["entries"] if one["target"] == "dry"]
    assert_refused_with(
        operator.put("/tenants", json={"plans": {"p": {"endpoints": []}}}, params=dry), 400, "bad_request"
    )
    for query in ({"dry_run": "yes"}, {"dry_rnu": "1"}):
        assert_refused_with(operator.put("/tenants", json=file, params=query), 400, "bad_request")
    assert operator.get("/tenants").json() == before
    unchanged = {"plans": {"globex": PLANS["globex"]}}
    nothing = {"dry_run": True, "changed": False, "changes": []}
    assert operator.put("/tenants", json=unchanged, params=dry).json() == nothing
    assert operator.put("/tenants", json=unchanged, params={"dry_run": "0"}).json() == {"changed": False}


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ({}, "plans"),
        ({"plans": {"p": {"endpoints": ["fal-ai/unknown"]}}}, "fal-ai/unknown is not in the catalogue"),
        ({"plans": {"p": {"endpoints": []}}}, "allows nothing"),
        ({"plans": {}, "tenants": [{"id": "t", "plan": "nowhere"}]}, "there is no plan nowhere"),
        ({"plans": {"p": plan(concurency={})}}, "concurency"),
        ({"plans": {"p": plan(rate_limits={"ip": "often"})}}, "rate_limits.ip"),
        ({"plans": {}, "endpoints": [{"id": NEXT, "schema": "s.json"}]}, f"{NEXT}: schema belongs in the PROXY_CONFIG"),
        ({"plans": {}, "endpoints": [{"id": "fal-ai/unknown"}]}, "endpoints: fal-ai/unknown is not in the catalogue"),
        ({"plans": {}, "endpoints": [{"id": NEXT, "price_per_compute_second": 1e4}]}, "price_per_compute_second"),
        (
            {"plans": {"p": plan(endpoints=[NEXT], quotas=[per("tenant", "usd", 5)])}},
            f"plans.p.quotas: usd counts nothing for {NEXT}, which has no price",
        ),
    ],
)
def test_a_file_that_is_wrong_changes_nothing(operator: httpx.Client, file: dict[str, Any], words: str) -> None:
    before = operator.get("/tenants").json()
    assert words in assert_refused_with(operator.put("/tenants", json=file), 400, "bad_request")["detail"]
    assert operator.get("/tenants").json() == before


A_PLAN = f'{{"endpoints": ["{NEXT}"]}}'


@pytest.mark.parametrize(
    "text",
    [
        f'{{"plans": {{"p": {A_PLAN}, "p": {A_PLAN}}}}}',
        f'{{"plans": {{"p": {A_PLAN[:-1]}, "max_tokens": 5, "max_tokens": 9}}}}}}',
        f'{{"plans": {{}}, "plans": {{"p": {A_PLAN}}}}}',
        f'{{"plans": {{"p": {A_PLAN}, "\\u0070": {A_PLAN}}}}}',
    ],
)
def test_a_file_with_a_key_twice_changes_nothing(operator: httpx.Client, text: str) -> None:
    before = operator.get("/tenants").json()
    answer = operator.put("/tenants", content=text, headers={"content-type": "application/json"})
    assert "stands in the body twice" in assert_refused_with(answer, 400, "bad_request")["detail"]
    assert operator.get("/tenants").json() == before


def test_a_form_with_a_key_twice_is_refused(operator: httpx.Client) -> None:
    twice = '{"tenant": "globex", "subject": "alice", "endpoints": [], "endpoints": null}'
    answer = operator.post("/sessions", content=twice, headers={"content-type": "application/json"})
    assert assert_refused_with(answer, 400, "bad_request")["detail"] == "endpoints: stands in the body twice; keep one."


# --- keys


def test_a_key_is_shown_once_and_its_hash_never(proxy: Stack, operator: httpx.Client) -> None:
    made = operator.post("/tenants/globex/keys", json={"name": "backend"})
    assert made.status_code == 201 and made.headers["cache-control"] == "no-store"
    key = made.json()
    assert set(key) == {"id", "tenant", "name", "created_at", "last_used_at", "key"}
    assert key["key"].startswith(f"fpk_{key['id']}_") and (key["tenant"], key["name"]) == ("globex", "backend")
    with Client(proxy, key["key"]) as server:
        assert server.facts()["tenant"] == "globex"
    listed = operator.get("/tenants/globex/keys")
    assert [one["id"] for one in listed.json()["keys"]] == [key["id"]]
    for text in (listed.text, operator.get("/tenants/globex").text, operator.get("/tenants").text):
        assert "hash" not in text and key["key"].split("_", 2)[2] not in text
    assert key["id"] not in operator.get("/tenants/acme/keys").text
    assert operator.delete(f"/keys/{key['id']}").status_code == 204
    assert_refused_with(operator.delete(f"/keys/{key['id']}"), 404, "not_found")
    with Client(proxy, key["key"]) as server:
        assert_refused_with(server.http.get("/v1/session"), 401, "unauthenticated")
    assert_refused_with(operator.post("/tenants/nobody/keys", json={}), 404, "not_found")
    assert_refused_with(operator.get("/tenants/nobody/keys"), 404, "not_found")
    assert_refused_with(operator.post("/tenants/globex/keys", json={"nme": "x"}), 400, "bad_request")


#: Names that a database refuses: PostgreSQL's text holds no zero byte, and a text longer than its column is an error.
UNSTORABLE = ["a\x00b", "\x00", "a\nb", " a", "a" * 201]


@pytest.mark.parametrize("text", UNSTORABLE)
def test_a_name_that_cannot_be_stored_is_refused(operator: httpx.Client, text: str) -> None:
    refusals = [
        operator.post("/tenants/acme/keys", json={"name": text}),
        operator.post("/sessions", json={"tenant": "acme", "subject": text}),
        operator.request("DELETE", "/sessions", json={"tenant": "acme", "subject": text}),
        operator.request("DELETE", "/sessions", json={"tenant": "acme", "session_id": text}),
        operator.get("/usage", params={"tenant": "acme", "subject": text}),
        operator.get("/jobs", params={"tenant": "acme", "subject": text}),
    ]
    for answer in refusals:
        words = (
            "id of a session" if b"session_id" in answer.request.content else "must be 1 to 200 printable characters"
        )
        assert words in assert_refused_with(answer, 400, "bad_request")["message"]


@pytest.mark.parametrize("text", [*UNSTORABLE, "é", "0123456789abcdeg", "0123456789abcdef0"])
def test_an_invalid_name_in_a_path_is_not_found(operator: httpx.Client, text: str) -> None:
    name = quote(text, safe="")
    for method, path in [("DELETE", f"/keys/{name}"), ("GET", f"/tenants/{name}"), ("GET", f"/tenants/{name}/keys")]:
        assert_refused_with(operator.request(method, path), 404, "not_found")
    for path in ("/usage", "/jobs"):
        assert_refused_with(operator.get(path, params={"tenant": text}), 404, "not_found")


def test_the_tenant_itself_is_the_empty_subject(operator: httpx.Client) -> None:
    assert operator.get("/jobs", params={"tenant": "acme", "subject": ""}).status_code == 200


# --- sessions


def test_a_revocation_outlives_the_sessions_of_an_older_plan(
    sandbox: SandboxControl, tmp_path: Path, commands: Commands
) -> None:
    """A plan that shortens sessions does not shorten those that were minted before it."""
    with limited_proxy(sandbox, tmp_path, PLANS) as proxy, admin(proxy, f"Bearer {ADMIN_TOKEN}") as operator:
        mine, by_subject, by_command = (minted_for(operator, name) for name in ("alice", "carol", "dave"))
        shorter = {"plans": {"acme": plan(session_ttl_seconds=60)}, "tenants": [{"id": "acme", "plan": "acme"}]}
        assert operator.put("/tenants", json=shorter).json() == {"changed": True}
        with Client(proxy, mine) as alice:
            assert alice.http.delete("/v1/session").status_code == 204
        assert operator.request("DELETE", "/sessions", json={"tenant": "acme", "subject": "carol"}).status_code == 204
        environ = {"PROXY_DATABASE_URL": proxy.settings.stores.database_url.reveal(), "PROXY_SESSION_SECRETS": SECRET}
        done = commands("sessions", "revoke", "--tenant", "acme", "--subject", "dave", environ=environ, cwd=tmp_path)
        assert done.code == 0, done.stderr
        for _ in range(2):
            proxy.clock.advance(14 * 86_400)
            # Each revocation deletes expired revocations.
            operator.request("DELETE", "/sessions", json={"tenant": "acme", "session_id": "another"})
            for token in (mine, by_subject, by_command):
                with Client(proxy, token) as client:
                    assert_refused_with(client.http.get("/v1/session"), 401, "session_revoked")


def minted_for(operator: httpx.Client, subject: str) -> str:
    answer = operator.post("/sessions", json={"tenant": "acme", "subject": subject})
    assert answer.status_code == 201, answer.text
    token: str = answer.json()["token"]
    return token


def test_a_session_is_revoked_by_the_id_in_the_answer_that_gave_it(proxy: Stack, operator: httpx.Client) -> None:
    with proxy.client(proxy.tenant_key("acme")) as backend:
        answers = [
            operator.post("/sessions", json={"tenant": "acme", "subject": "erin"}),
            backend.post("/v1/sessions", json={"subject": "erin"}),
        ]
    for answer in answers:
        with Client(proxy, answer.json()["token"]) as erin:
            assert erin.facts()["subject"] == "erin"
            revoked = operator.request(
                "DELETE", "/sessions", json={"tenant": "acme", "session_id": answer.json()["id"]}
            )
            assert revoked.status_code == 204
            assert_refused_with(erin.http.get("/v1/session"), 401, "session_revoked")


def test_sessions_are_minted_and_revoked(proxy: Stack, operator: httpx.Client) -> None:
    def minted(subject: str, **more: Any) -> str:
        answer = operator.post("/sessions", json={"tenant": "acme", "subject": subject, **more})
        assert answer.status_code == 201, answer.text
        token: str = answer.json()["token"]
        return token

    carol, carol_again, dave = minted("carol"), minted("carol", endpoints=[NEXT]), minted("dave")
    with Client(proxy, carol_again) as client:
        assert client.facts()["endpoints"] == [NEXT]
    assert operator.request("DELETE", "/sessions", json={"tenant": "acme", "subject": "carol"}).status_code == 204
    for token in (carol, carol_again):
        with Client(proxy, token) as client:
            assert_refused_with(client.http.get("/v1/session"), 401, "session_revoked")
    with Client(proxy, dave) as client:
        assert client.facts()["subject"] == "dave"
    wrong_mints: list[tuple[dict[str, Any], int, str]] = [
        ({"subject": "x"}, 400, "bad_request"),
        ({"tenant": "nobody", "subject": "x"}, 404, "not_found"),
        ({"tenant": "acme", "subject": " "}, 400, "bad_request"),
        ({"tenant": "globex", "subject": "x", "endpoints": [COUNTING]}, 403, "endpoint_not_allowed"),
    ]
    for form, status, code in wrong_mints:
        assert_refused_with(operator.post("/sessions", json=form), status, code)
    for form in ({"tenant": "acme"}, {"tenant": "acme", "subject": "a", "session_id": "b"}, {"subject": "a"}):
        assert_refused_with(operator.request("DELETE", "/sessions", json=form), 400, "bad_request")
    assert_refused_with(
        operator.request("DELETE", "/sessions", json={"tenant": "nobody", "subject": "a"}), 404, "not_found"
    )


# --- jobs


def test_jobs_are_listed_newest_first(proxy: Stack, operator: httpx.Client) -> None:
    tokens = [proxy.token(name, tenant="acme") for name in ("eve", "finn")]
    with Client(proxy, tokens[0]) as eve, Client(proxy, tokens[1]) as finn:
        job = eve.submitted("[[pace hold=IN_QUEUE]] ?")
        proxy.clock.advance(1)
        finn.run(endpoint=COUNTING)
        listed = operator.get("/jobs", params={"tenant": "acme"}).json()["jobs"]
        assert [(one["subject"], one["kind"], one["endpoint"], one["state"]) for one in listed] == [
            ("finn", "run", COUNTING, "settled"),
            ("eve", "submit", NEXT, "accepted"),
        ]
        assert listed[1]["request_id"] == job and listed[0]["request_id"] is None
        assert operator.get("/jobs", params={"tenant": "acme", "subject": "eve"}).json()["jobs"] == listed[1:]
        assert operator.get("/jobs", params={"tenant": "globex"}).json() == {"jobs": [], "next_cursor": None}
        eve.cancel(job)
        eve.status(job)
    assert_refused_with(operator.get("/jobs"), 404, "not_found")
    assert_refused_with(operator.get("/jobs", params={"tenant": "nobody"}), 404, "not_found")
    assert_refused_with(operator.get("/jobs", params={"tenant": "acme", "user": "eve"}), 400, "bad_request")
