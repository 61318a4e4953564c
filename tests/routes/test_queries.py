"""Queries of the proxy's own routes: what a route does not know is refused, and nothing happens meanwhile."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from proxy.routes.openapi import describe_routes
from tests.support.audit_log import read_entries
from tests.support.limited import ADMIN_TOKEN, NEXT, asking, assert_refused_with, limited_proxy, operating, plan, posts
from tests.support.routes import answered_routes
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack

#: Files, which are the same whatever stands behind them.
FILES = {"/v1/statements/statement.css"}
NAMES = {"month": "2026-01", "tenant": "acme", "subject": "alice"}
ROUTES = sorted((method, path) for path, method in answered_routes() if path.startswith("/v1/") and path not in FILES)


@pytest.fixture(scope="module")
def limited(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    guests = {"acme": {"allowed_origins": ["https://app.acme.example"], "guests": {"enabled": True}}}
    with limited_proxy(shared_sandbox, tmp_path_factory.mktemp("queries"), {"acme": plan()}, tenants=guests) as stack:
        yield stack


@pytest.fixture
def proxy(limited: Stack, sandbox: SandboxControl) -> Stack:
    return limited


def fill(path: str) -> str:
    """The path of a route with names in the place of its parameters."""
    return re.sub(r"{(\w+)[^}]*}", lambda match: NAMES.get(match[1], "0123456789abcdef"), path)


def credential_for(proxy: Stack, method: str, path: str) -> str:
    """What may use a route, so that nothing but the query is refused."""
    if path.startswith("/v1/admin"):
        return ADMIN_TOKEN
    if path.startswith("/v1/statements") or (path == "/v1/sessions"):
        return proxy.tenant_key("acme")
    return proxy.token("alice", tenant="acme")


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_query_key_that_a_route_does_not_know_is_named(proxy: Stack, method: str, path: str) -> None:
    with proxy.client(credential_for(proxy, method, path)) as client:
        answer = client.request(method, fill(path), params={"dry_runs": "1"}, headers={"origin": proxy.url})
        assert "'dry_runs' is unknown" in assert_refused_with(answer, 400, "bad_request")["message"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/session"),
        ("DELETE", "/v1/session"),
        ("GET", "/v1/endpoints"),
        ("POST", "/v1/jobs"),
        ("POST", "/v1/estimate"),
    ],
)
def test_a_query_is_looked_at_for_known_callers_only(proxy: Stack, method: str, path: str) -> None:
    with proxy.client("no-session-at-all") as stranger:
        assert_refused_with(stranger.request(method, path, params={"dry_runs": "1"}), 401, "unauthenticated")


def test_the_description_names_the_refusal() -> None:
    paths = json.loads(describe_routes("https://proxy.example"))["paths"]
    named = [(method, paths[path.replace(":path", "")][method.lower()]["responses"]) for method, path in ROUTES]
    assert len(named) > 50 and all("400" in responses for _, responses in named)


def test_a_refused_query_changes_nothing(proxy: Stack) -> None:
    with operating(proxy) as operator:
        before = read_entries(proxy.settings.stores.database_url.reveal())
        for method, path, body in (
            ("DELETE", "/v1/admin/tenants/acme", None),
            ("POST", "/v1/admin/tenants/acme/suspend", None),
            ("POST", "/v1/admin/tenants/acme/grants", {"unit": "requests", "amount": 5, "reason": "a test"}),
        ):
            answer = operator.request(method, path, params={"dry_run": "1"}, json=body)
            assert_refused_with(answer, 400, "bad_request")
        assert operator.get("/v1/admin/tenants/acme").json()["suspended_at"] is None
        assert operator.get("/v1/admin/tenants/acme/grants").json()["grants"] == []
        assert read_entries(proxy.settings.stores.database_url.reveal()) == before
    with proxy.client(proxy.token("alice", tenant="acme")) as alice:
        job = {"endpoint": NEXT, "input": asking("?")}
        answer = alice.post("/v1/jobs", params={"fal_webhook": "https://acme.example/hook"}, json=job)
        assert "'fal_webhook' is unknown" in assert_refused_with(answer, 400, "bad_request")["message"]
    assert posts(proxy.sandbox) == []


@pytest.mark.parametrize("name", ["M%FCller", "%ED%A0%80", "a%80", "%C3"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/v1/admin/tenants/acme/overrides/{}"),
        ("DELETE", "/v1/admin/tenants/acme/overrides/{}"),
        ("DELETE", "/v1/admin/tenants/acme/subjects/{}"),
        ("GET", "/v1/admin/usage?tenant=acme&subject={}"),
        ("GET", "/v1/admin/jobs?tenant=acme&subject={}"),
        ("GET", "/v1/admin/tenants/acme/grants?subject={}"),
    ],
)
def test_a_name_that_is_not_utf_8_is_refused_and_changes_nothing(
    proxy: Stack, method: str, path: str, name: str
) -> None:
    """A lenient reader would take it for another name."""
    form = {"plan": "acme", "until": "2999-01-01"} if method == "PUT" else None
    with proxy.client(ADMIN_TOKEN) as operator:
        before = read_entries(proxy.settings.stores.database_url.reveal())
        answer = operator.request(method, path.format(name), json=form)
        assert "not UTF-8" in assert_refused_with(answer, 400, "bad_request")["message"]
        assert read_entries(proxy.settings.stores.database_url.reveal()) == before
        assert operator.get("/v1/admin/tenants/acme/overrides").json()["overrides"] == []


def test_a_key_lists_jobs_only_of_a_name_in_utf_8(proxy: Stack) -> None:
    with proxy.client(proxy.tenant_key("acme")) as backend:
        assert backend.get("/v1/jobs?subject=M%C3%BCller").status_code == 200
        answer = backend.get("/v1/jobs?subject=M%FCller")
        assert "not UTF-8" in assert_refused_with(answer, 400, "bad_request")["message"]
