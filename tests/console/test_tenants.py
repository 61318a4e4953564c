"""The pages of tenants and of the audit log, and what each role can do there."""

from __future__ import annotations

import re

import httpx
import pytest

from tests.console.operators import Operator, assert_refused
from tests.support.audit_log import read_entries
from tests.support.limited import Client, assert_refused_with, operating
from tests.support.stack import Stack

ACTIONS = ["/console/tenants/acme/suspend", "/console/tenants/acme/resume", "/console/tenants/acme/keys"]


def entries(proxy: Stack) -> list[dict[str, object]]:
    return read_entries(proxy.settings.stores.database_url.reveal())


def new_key(operator: Operator, name: str = "backend", tenant: str = "acme") -> str:
    answer = operator.post(f"/console/tenants/{tenant}/keys", {"name": name})
    assert answer.status_code == 201, answer.text
    match = re.search(r"fpk_[0-9a-f]{16}_[A-Za-z0-9_-]{43}", answer.text)
    assert match, answer.text
    return match[0]


def uses(proxy: Stack, key: str) -> httpx.Response:
    with Client(proxy, key) as caller:
        return caller.run()


def test_the_list_names_each_tenant(viewer: Operator) -> None:
    page = viewer.get("/console/tenants").text
    assert all(f'href="/console/tenants/{name}"' in page for name in ("acme", "globex"))
    found = viewer.get("/console/tenants?q=GLOB").text
    assert "/console/tenants/globex" in found and "/console/tenants/acme" not in found
    assert "No tenant has such a name" in viewer.get("/console/tenants?q=nobody").text


@pytest.mark.parametrize(
    "path",
    [
        "/console/tenants?q=" + "x" * 65,
        "/console/tenants?x=1",
        "/console/tenants?q=a&q=b",
        "/console/tenants?cursor=x",
        "/console/audit?cursor=x",
        "/console/audit?tenant=NO",
    ],
)
def test_a_query_that_is_wrong_is_refused(viewer: Operator, path: str) -> None:
    assert_refused(viewer.get(path), 400, "bad_request")


@pytest.mark.parametrize("path", ["/console/tenants/nobody", "/console/tenants/acme%00"])
def test_an_unknown_tenant_is_not_found(viewer: Operator, path: str) -> None:
    assert_refused(viewer.get(path), 404, "not_found")


def test_a_tenant_has_its_quotas_as_bars(proxy: Stack, admin: Operator) -> None:
    key = new_key(admin)
    assert uses(proxy, key).status_code == 200
    page = admin.get("/console/tenants/acme").text
    meters = dict(re.findall(r'<label for="(quota-\d)">([a-z]+) per', page))
    assert sorted(meters.values()) == ["requests", "usd"]
    (of_requests,) = [id_ for id_, unit in meters.items() if unit == "requests"]
    bar = re.search(rf'<meter id="{of_requests}"[^>]* value="([0-9.]+)">([^<]+)<', page)
    assert bar and float(bar[1]) >= 1 and bar[2].endswith("of 100")


def test_a_key_is_shown_once_works_and_is_revoked(proxy: Stack, admin: Operator) -> None:
    key = new_key(admin, "of the backend")
    id_ = key.split("_")[1]
    page = admin.get("/console/tenants/acme").text
    assert key not in page and id_ in page and "of the backend" in page
    assert uses(proxy, key).status_code == 200
    # A key has to be named with its own tenant.
    foreign = admin.post(f"/console/tenants/globex/keys/{id_}/revoke")
    assert_refused(foreign, 404, "not_found")
    assert uses(proxy, key).status_code == 200
    answer = admin.post(f"/console/tenants/acme/keys/{id_}/revoke")
    assert (answer.status_code, answer.headers["location"]) == (303, "/console/tenants/acme")
    assert_refused_with(uses(proxy, key), 401, "unauthenticated")
    assert_refused(admin.post(f"/console/tenants/acme/keys/{id_}/revoke"), 404, "not_found")
    last = entries(proxy)[-2:]
    assert [(entry["by"], entry["action"], entry["target"]) for entry in last] == [
        ("console:PROXY_ADMIN_TOKEN", "key.create", id_),
        ("console:PROXY_ADMIN_TOKEN", "key.revoke", id_),
    ]
    assert key.split("_", 2)[2] not in str(entries(proxy))


@pytest.mark.parametrize("fields", [{"name": "x" * 201}, {"name": " x"}, {"name": "a", "tenant": "globex"}])
def test_a_key_with_a_wrong_name_is_not_made(proxy: Stack, admin: Operator, fields: dict[str, str]) -> None:
    before = len(entries(proxy))
    assert_refused(admin.post("/console/tenants/acme/keys", fields), 400, "bad_request")
    assert len(entries(proxy)) == before


def test_an_operator_suspends_and_resumes(proxy: Stack, admin: Operator, night_shift: Operator) -> None:
    key = new_key(admin)
    assert night_shift.post("/console/tenants/acme/suspend").headers["location"] == "/console/tenants/acme"
    assert "suspended" in night_shift.get("/console/tenants/acme").text
    assert_refused_with(uses(proxy, key), 403, "tenant_suspended")
    night_shift.post("/console/tenants/acme/resume")
    assert uses(proxy, key).status_code == 200
    last = entries(proxy)[-2:]
    assert [(entry["by"], entry["action"]) for entry in last] == [
        ("console:token:night-shift", "tenant.suspend"),
        ("console:token:night-shift", "tenant.resume"),
    ]


def test_a_viewer_sees_no_action_and_each_is_refused(proxy: Stack, viewer: Operator) -> None:
    page = viewer.get("/console/tenants/acme").text
    assert re.findall(r'<form[^>]* method="post" action="([^"]+)"', page) == ["/console/sign-out"]
    before = len(entries(proxy))
    for path in [*ACTIONS, "/console/tenants/acme/keys/0123456789abcdef/revoke"]:
        text = assert_refused(viewer.post(path), 403, "not_allowed")
        assert "this one has the role viewer" in text
    assert len(entries(proxy)) == before
    with operating(proxy) as admin:
        assert admin.get("/v1/admin/tenants/acme").json()["suspended_at"] is None


def test_an_operator_makes_and_revokes_no_key(proxy: Stack, admin: Operator, night_shift: Operator) -> None:
    key = new_key(admin)
    page = night_shift.get("/console/tenants/acme").text
    posts = re.findall(r'<form[^>]* method="post" action="([^"]+)"', page)
    assert posts == ["/console/sign-out"] and "/revoke" not in page
    assert_refused(night_shift.post("/console/tenants/acme/keys"), 403, "not_allowed")
    revoke = f"/console/tenants/acme/keys/{key.split('_')[1]}/revoke"
    assert_refused(night_shift.post(revoke), 403, "not_allowed")
    assert uses(proxy, key).status_code == 200


def test_the_audit_log_has_pages(proxy: Stack, admin: Operator) -> None:
    for _ in range(30):
        admin.post("/console/tenants/globex/suspend")
        admin.post("/console/tenants/globex/resume")
        proxy.clock.advance(30)
    seen, path = [], "/console/audit?tenant=globex"
    while path:
        page = admin.get(path).text
        numbers = [int(number) for number in re.findall(r'<th scope="row">(\d+)</th>', page)]
        assert 0 < len(numbers) <= 50
        seen += numbers
        match = re.search(r'rel="next" href="([^"]+)"', page)
        path = match[1].replace("&amp;", "&") if match else ""
    assert seen == [entry["number"] for entry in reversed(entries(proxy)) if entry["tenant"] == "globex"]
    assert "console:PROXY_ADMIN_TOKEN" in admin.get("/console/audit").text
