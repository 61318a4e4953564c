"""Each action of the console needs a role: without it, pages do not show the action and the proxy refuses it."""

from __future__ import annotations

import re

import pytest
from starlette.routing import Route

from proxy.app import create_app
from proxy.auth.admin_tokens import Role
from proxy.settings import read
from tests.console.operators import Operator, assert_refused
from tests.console.test_tenants import entries
from tests.support.stack import Stack

TENANT = "/tenants/{tenant}"
#: The lowest role of each form's target. The paths name things that do not exist.
LEAST = {
    "/sign-out": Role.VIEWER,
    "/configuration/compare": Role.ADMIN,
    "/configuration/apply": Role.ADMIN,
    "/alerts/{alert}/resend": Role.OPERATOR,
    "/jobs/{job}/cancel": Role.OPERATOR,
    "/tokens": Role.ADMIN,
    "/tokens/{token}/revoke": Role.ADMIN,
    f"{TENANT}/suspend": Role.OPERATOR,
    f"{TENANT}/resume": Role.OPERATOR,
    f"{TENANT}/keys": Role.ADMIN,
    f"{TENANT}/keys/{{key}}/revoke": Role.ADMIN,
    f"{TENANT}/grants": Role.OPERATOR,
    f"{TENANT}/overrides": Role.OPERATOR,
    f"{TENANT}/overrides/clear": Role.OPERATOR,
    f"{TENANT}/subject/sign-out": Role.OPERATOR,
    f"{TENANT}/subject/forget": Role.ADMIN,
    f"{TENANT}/delete": Role.ADMIN,
}
PAGES = [
    "",
    "/tenants",
    "/tenants/acme",
    "/tenants/acme/subjects",
    "/tenants/acme/subject?name=alice",
    "/tenants/acme/grants",
    "/tenants/acme/overrides",
    "/jobs?tenant=acme",
    "/tenants/acme/statement",
    "/usage",
    "/usage/reconciliation",
    "/upstreams",
    "/alerts",
    "/audit",
    "/configuration",
    "/tokens",
]
#: The actions about which a page of the same path asks first.
QUESTIONS = {
    "/jobs/{job}/cancel",
    "/tokens/{token}/revoke",
    f"{TENANT}/suspend",
    f"{TENANT}/keys/{{key}}/revoke",
    f"{TENANT}/overrides/clear",
    f"{TENANT}/subject/sign-out",
    f"{TENANT}/subject/forget",
    f"{TENANT}/delete",
}
#: Pages with a list and, for some roles, a form that adds to it.
LISTS = {"/tokens", f"{TENANT}/grants", f"{TENANT}/overrides"}
_FORM = re.compile(r'<form[^>]* method="post" action="/console([^"]+)"')
_LINK = re.compile(r'href="/console(/[^"?]+)')


def paths_of(method: str) -> set[str]:
    environ = {"FAL_KEY": "id:secret", "PROXY_SESSION_SECRETS": "x" * 32, "PROXY_ADMIN_TOKEN": "x" * 32}
    routes = [route for route in create_app(read(environ)).routes if isinstance(route, Route)]
    found = {route.path for route in routes if method in (route.methods or ()) and route.path.startswith("/console")}
    return {path.removeprefix("/console") for path in found}


def is_of(path: str, target: str) -> bool:
    """Whether a target has the path of a route."""
    return re.fullmatch(re.sub(r"{\w+}", "[^/]+", path), target) is not None


def role_of(target: str) -> Role:
    """The lowest role that may send a form to this path."""
    (least,) = [role for path, role in LEAST.items() if is_of(path, target)]
    return least


def targets_of(page: str) -> list[str]:
    """Where the forms of a page go, and its links to pages that ask."""
    links = [link for link in _LINK.findall(page) if any(is_of(path, link) for path in QUESTIONS)]
    return [*_FORM.findall(page), *links]


def test_the_table_lists_every_action() -> None:
    assert paths_of("POST") == {*LEAST, "/sign-in"}
    assert paths_of("GET") & set(LEAST) == QUESTIONS | LISTS


@pytest.mark.parametrize("path", sorted(QUESTIONS))
def test_a_page_that_asks_about_an_action_needs_its_role(viewer: Operator, night_shift: Operator, path: str) -> None:
    for role, operator in ((Role.VIEWER, viewer), (Role.OPERATOR, night_shift)):
        answer = operator.get(f"/console{path.replace('{tenant}', 'acme')}")
        if role < LEAST[path]:
            assert_refused(answer, 403, "not_allowed")
        else:
            assert answer.status_code != 403


@pytest.mark.parametrize("role", [Role.VIEWER, Role.OPERATOR], ids=str)
def test_an_action_above_the_role_is_refused(proxy: Stack, viewer: Operator, night_shift: Operator, role: Role) -> None:
    operator, before = (viewer if role is Role.VIEWER else night_shift), entries(proxy)
    csrf = operator.csrf()
    for path, least in LEAST.items():
        if least > role:
            answer = operator.send(f"/console{re.sub(r'{tenant}', 'acme', path)}", {"csrf": csrf})
            text = assert_refused(answer, 403, "not_allowed")
            assert f"the role {least}" in text and f"the role {role}" in text, path
    assert entries(proxy) == before


def test_no_page_shows_an_action_above_the_role(viewer: Operator, night_shift: Operator, admin: Operator) -> None:
    seen = {}
    for role, operator in ((Role.VIEWER, viewer), (Role.OPERATOR, night_shift), (Role.ADMIN, admin)):
        targets = {path: targets_of(operator.get(f"/console{path}").text) for path in PAGES}
        assert all(targets.values())
        above = {(path, one) for path, found in targets.items() for one in found if role_of(one) > role}
        assert above == set()
        seen[role] = sum(map(len, targets.values()))
    assert seen[Role.VIEWER] == len(PAGES) < seen[Role.OPERATOR] < seen[Role.ADMIN]


def test_each_action_needs_the_token_of_its_session(proxy: Stack, admin: Operator) -> None:
    before = entries(proxy)
    for path in LEAST:
        answer = admin.send(f"/console{re.sub(r'{tenant}', 'acme', path)}", {"csrf": "0" * 64})
        assert_refused(answer, 403, "not_allowed")
    assert entries(proxy) == before and admin.is_signed_in()
