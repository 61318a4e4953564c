"""Named admin tokens: each route needs a role, and a token is valid until it expires or is revoked."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from proxy.auth.admin_tokens import MOST_TOKENS, Role
from proxy.clock import to_iso
from tests.server.commands import Commands
from tests.support.audit_log import read_entries
from tests.support.limited import ADMIN_TOKEN, assert_refused_with, limited_proxy, plan
from tests.support.routes import admin_routes
from tests.support.sandbox import SandboxControl
from tests.support.secrets import SECRET
from tests.support.stack import Stack

PLANS = {"acme": plan()}
DAY = 86_400
#: The lowest role of each route. The tests ask for things that do not exist, so an allowed request changes nothing.
LEAST = {
    ("GET", "/tenants"): Role.VIEWER,
    ("PUT", "/tenants"): Role.ADMIN,
    ("GET", "/tenants/{tenant}"): Role.VIEWER,
    ("DELETE", "/tenants/{tenant}"): Role.ADMIN,
    ("DELETE", "/tenants/{tenant}/subjects/{subject:path}"): Role.ADMIN,
    ("POST", "/tenants/{tenant}/suspend"): Role.OPERATOR,
    ("POST", "/tenants/{tenant}/resume"): Role.OPERATOR,
    ("GET", "/tenants/{tenant}/statements/{month}"): Role.VIEWER,
    ("GET", "/tenants/{tenant}/grants"): Role.VIEWER,
    ("POST", "/tenants/{tenant}/grants"): Role.OPERATOR,
    ("GET", "/tenants/{tenant}/overrides"): Role.VIEWER,
    ("PUT", "/tenants/{tenant}/overrides/{subject:path}"): Role.OPERATOR,
    ("DELETE", "/tenants/{tenant}/overrides/{subject:path}"): Role.OPERATOR,
    ("GET", "/tenants/{tenant}/keys"): Role.VIEWER,
    ("POST", "/tenants/{tenant}/keys"): Role.ADMIN,
    ("DELETE", "/keys/{key}"): Role.ADMIN,
    ("POST", "/sessions"): Role.OPERATOR,
    ("DELETE", "/sessions"): Role.OPERATOR,
    ("GET", "/jobs"): Role.VIEWER,
    ("GET", "/jobs/{job}"): Role.VIEWER,
    ("DELETE", "/jobs/{job}"): Role.OPERATOR,
    ("GET", "/usage"): Role.VIEWER,
    ("GET", "/upstreams"): Role.VIEWER,
    ("GET", "/reconciliation"): Role.VIEWER,
    ("GET", "/alerts"): Role.VIEWER,
    ("POST", "/alerts/{alert}/resend"): Role.OPERATOR,
    ("GET", "/audit"): Role.VIEWER,
    ("GET", "/tokens"): Role.VIEWER,
    ("POST", "/tokens"): Role.ADMIN,
    ("DELETE", "/tokens/{token}"): Role.ADMIN,
}


@pytest.fixture(scope="module")
def proxy(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with limited_proxy(shared_sandbox, tmp_path_factory.mktemp("roles"), PLANS) as stack:
        yield stack


def holder(proxy: Stack, token: str) -> httpx.Client:
    headers = {"authorization": f"Bearer {token}"}
    return httpx.Client(base_url=f"{proxy.url}/v1/admin", headers=headers, trust_env=False, verify=False, timeout=60)


@pytest.fixture
def admin(proxy: Stack) -> Iterator[httpx.Client]:
    with holder(proxy, ADMIN_TOKEN) as client:
        yield client
        for token in client.get("/tokens").json()["tokens"]:
            client.delete(f"/tokens/{token['name']}")


def create(admin: httpx.Client, name: str, role: str = "viewer", **more: str) -> str:
    answer = admin.post("/tokens", json={"name": name, "role": role, **more})
    assert answer.status_code == 201, answer.text
    token: str = answer.json()["token"]
    return token


# Roles


def test_the_table_lists_every_route() -> None:
    assert admin_routes() == {(method, f"/v1/admin{path}") for method, path in LEAST}


@pytest.mark.parametrize("role", Role, ids=str)
def test_each_route_is_open_to_its_role_and_higher_ones(proxy: Stack, admin: httpx.Client, role: Role) -> None:
    with holder(proxy, create(admin, "someone", str(role))) as someone:
        for (method, path), least in LEAST.items():
            for name in ("tenant", "key", "job", "token", "alert"):
                path = path.replace(f"{{{name}}}", "nobody")
            answer = someone.request(method, path)
            if role < least:
                message = assert_refused_with(answer, 403, "not_allowed")["message"]
                assert f"the role {least}" in message and f"the role {role}" in message
            else:
                assert answer.status_code in (200, 400, 404), (method, path, answer.text)


def test_a_refused_change_does_not_happen(proxy: Stack, admin: httpx.Client) -> None:
    before = read_entries(proxy.settings.stores.database_url.reveal())
    with holder(proxy, create(admin, "reader")) as viewer:
        assert_refused_with(viewer.post("/tenants/acme/keys", json={"name": "mine"}), 403, "not_allowed")
        assert_refused_with(viewer.post("/tokens", json={"name": "more", "role": "admin"}), 403, "not_allowed")
        assert_refused_with(viewer.post("/tenants/acme/suspend"), 403, "not_allowed")
    after = read_entries(proxy.settings.stores.database_url.reveal())
    assert [entry["action"] for entry in after[len(before) :]] == ["admin_token.create"]


def test_the_audit_log_names_the_token(proxy: Stack, admin: httpx.Client) -> None:
    with holder(proxy, create(admin, "night-shift", "operator")) as operator:
        operator.request("DELETE", "/sessions", json={"tenant": "acme", "subject": "alice"}).raise_for_status()
    entries = admin.get("/audit", params={"limit": "2"}).json()["entries"]
    assert [(entry["by"], entry["action"]) for entry in entries] == [
        ("token:night-shift", "session.revoke"),
        ("PROXY_ADMIN_TOKEN", "admin_token.create"),
    ]
    assert entries[1]["after"]["name"] == "night-shift" and entries[1]["after"]["role"] == "operator"


# Tokens


def test_a_token_is_shown_once_and_its_hash_never(proxy: Stack, admin: httpx.Client) -> None:
    token = create(admin, "once")
    id_, _, secret = token.removeprefix("fpa_").partition("_")
    listed = admin.get("/tokens")
    assert [set(one) for one in listed.json()["tokens"]] == [{"id", "name", "role", "created_at", "expires_at"}]
    assert listed.json()["tokens"][0]["id"] == id_
    path = proxy.settings.stores.database_url.reveal().removeprefix("sqlite:///")
    with closing(sqlite3.connect(path)) as database:
        assert secret not in "".join(database.iterdump())
        hashes = [text for (text,) in database.execute("SELECT secret_hash FROM admin_tokens")]
    assert hashes and not any(text in listed.text + admin.get("/audit").text for text in hashes)


def test_an_almost_correct_token_is_refused(proxy: Stack, admin: httpx.Client) -> None:
    token, other = create(admin, "one"), create(admin, "two")
    wrong = [
        token[:-1],
        f"{token}x",
        token.upper(),
        token.replace("fpa_", "fpk_"),
        f"{token[:21]}{other[21:]}",
        f"fpa_{'0' * 16}_{token[21:]}",
    ]
    for text in wrong:
        with holder(proxy, text) as stranger:
            assert_refused_with(stranger.get("/tenants"), 401, "unauthenticated")
    for credentials in (f"Key {token}", f"bearer {token}", token):
        assert_refused_with(admin.get("/tenants", headers={"authorization": credentials}), 401, "unauthenticated")
    with holder(proxy, token) as viewer:
        assert viewer.get("/tenants").status_code == 200
    # It opens nothing else.
    with proxy.client(token) as caller:
        assert_refused_with(caller.get("/v1/session"), 401, "unauthenticated")


def test_a_token_expires(proxy: Stack, admin: httpx.Client) -> None:
    token = create(admin, "short", expires_at=to_iso(proxy.clock.now() + 10))
    usual = create(admin, "usual")
    with holder(proxy, token) as viewer, holder(proxy, usual) as longer:
        proxy.clock.advance(9)
        assert viewer.get("/tenants").status_code == 200
        proxy.clock.advance(1)
        assert "expired" in assert_refused_with(viewer.get("/tenants"), 401, "unauthenticated")["message"]
        proxy.clock.advance(90 * DAY - 11)
        assert longer.get("/tenants").status_code == 200
        proxy.clock.advance(1)
        assert_refused_with(longer.get("/tenants"), 401, "unauthenticated")


def test_a_revoked_token_is_refused(proxy: Stack, admin: httpx.Client, commands: Commands) -> None:
    with holder(proxy, create(admin, "here")) as here, holder(proxy, create(admin, "elsewhere")) as elsewhere:
        assert (here.get("/tenants").status_code, elsewhere.get("/tenants").status_code) == (200, 200)
        assert admin.delete("/tokens/here").status_code == 204
        assert_refused_with(here.get("/tenants"), 401, "unauthenticated")
        assert_refused_with(admin.delete("/tokens/here"), 404, "not_found")
        folder = Path(proxy.settings.stores.database_url.reveal().removeprefix("sqlite:///")).parent
        environ = {"PROXY_DATABASE_URL": proxy.settings.stores.database_url.reveal()}
        done = commands("admin-tokens", "revoke", "elsewhere", environ=environ, cwd=folder)
        assert (done.code, done.stdout) == (0, "revoked\n"), done.stderr
        proxy.clock.advance(5)
        assert_refused_with(elsewhere.get("/tenants"), 401, "unauthenticated")


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"name": "a"},
        {"name": "a", "role": "root"},
        {"name": "A", "role": "viewer"},
        {"name": "a" * 64, "role": "viewer"},
        {"name": "a", "role": "viewer", "expires_at": "soon"},
        {"name": "a", "role": "viewer", "expires_at": "2001-01-01"},
        {"name": "a", "role": "viewer", "expires_at": "9999-12-31"},
        {"name": "a", "role": "viewer", "days": 3},
    ],
)
def test_an_invalid_form_makes_no_token(admin: httpx.Client, form: dict[str, object]) -> None:
    assert_refused_with(admin.post("/tokens", json=form), 400, "bad_request")
    assert admin.get("/tokens").json()["tokens"] == []


def test_a_name_belongs_to_one_token_and_their_number_is_bounded(sandbox: SandboxControl, tmp_path: Path) -> None:
    with limited_proxy(sandbox, tmp_path, PLANS) as proxy, holder(proxy, ADMIN_TOKEN) as admin:
        for number in range(MOST_TOKENS):
            create(admin, f"token-{number}")
        assert_refused_with(admin.post("/tokens", json={"name": "token-0", "role": "viewer"}), 400, "bad_request")
        assert_refused_with(admin.post("/tokens", json={"name": "one-more", "role": "viewer"}), 400, "bad_request")
        admin.delete("/tokens/token-0").raise_for_status()
        assert_refused_with(admin.post("/tokens", json={"name": "token-1", "role": "viewer"}), 400, "bad_request")
        create(admin, "one-more")


def test_named_tokens_need_no_token_in_the_settings(
    sandbox: SandboxControl, tmp_path: Path, commands: Commands
) -> None:
    with limited_proxy(sandbox, tmp_path, PLANS, environ={"PROXY_ADMIN_TOKEN": ""}) as proxy:
        with holder(proxy, f"fpa_{'0' * 16}_{'a' * 43}") as stranger:
            assert_refused_with(stranger.get("/tenants"), 403, "not_allowed")
        environ = {"PROXY_DATABASE_URL": proxy.settings.stores.database_url.reveal()}
        ends = to_iso(proxy.clock.now() + 30 * DAY)
        made = commands(
            "admin-tokens", "create", "ops", "--role", "admin", "--expires", ends, environ=environ, cwd=tmp_path
        )
        assert made.code == 0 and ends in made.stderr
        proxy.clock.advance(5)
        with holder(proxy, made.stdout.strip()) as ops:
            assert ops.get("/tenants").status_code == 200
        with holder(proxy, "guess") as stranger:
            assert_refused_with(stranger.get("/tenants"), 401, "unauthenticated")


def test_without_the_table_only_the_token_of_the_settings_counts(sandbox: SandboxControl, tmp_path: Path) -> None:
    with limited_proxy(sandbox, tmp_path, PLANS) as proxy, holder(proxy, ADMIN_TOKEN) as admin:
        token = create(admin, "ops", "admin")
        with closing(sqlite3.connect(tmp_path / "proxy.db")) as database:
            database.execute("ALTER TABLE admin_tokens RENAME TO elsewhere")
            database.commit()
        with holder(proxy, token) as ops:
            assert_refused_with(ops.get("/tenants"), 503, "store_unavailable")
        assert admin.get("/tenants").status_code == 200


# Commands


def test_tokens_are_created_listed_and_revoked_by_commands(tmp_path: Path, commands: Commands) -> None:
    environ = {"PROXY_DATABASE_URL": f"sqlite:///{tmp_path / 'proxy.db'}", "PROXY_SESSION_SECRETS": SECRET}

    def run(*arguments: str) -> tuple[int, str, str]:
        done = commands("admin-tokens", *arguments, environ=environ, cwd=tmp_path)
        return done.code, done.stdout, done.stderr

    code, text, words = run("create", "ops", "--role", "operator", "--json")
    made = json.loads(text)
    assert code == 0 and made["token"].startswith(f"fpa_{made['id']}_") and made["token"] not in words
    assert run("list")[1].split("\t")[:2] == ["ops", "operator"]
    assert [set(one) for one in json.loads(run("list", "--json")[1])] == [set(made) - {"token"}]
    assert run("create", "ops", "--role", "viewer")[::2] == (
        1,
        f"There is a token ops already, or there are {MOST_TOKENS}; revoke one first.\n",
    )
    assert run("create", "late", "--role", "viewer", "--expires", "2001-01-01")[0] == 1
    assert "--expires: must be a day" in run("create", "late", "--role", "viewer", "--expires", "soon")[2]
    assert "a name has up to 63 characters" in run("create", "Ops", "--role", "viewer")[2]
    assert run("create", "root", "--role", "root")[0] == 2
    assert run("revoke", "ops") == (0, "revoked\n", "")
    assert run("revoke", "ops") == (1, "", "there is no token ops\n")
