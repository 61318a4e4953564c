"""Deleting a tenant and forgetting a user, which need the name typed exactly."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.console.operators import Operator, assert_refused, operator_of
from tests.console.test_tenants import entries
from tests.support.limited import Client, assert_refused_with, limited_proxy, operating, plan
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack
from tests.tenants.test_deleted import leave_behind

EVIL = "a/b?<i>&'\"#"
DELETE, FORGET = "/console/tenants/acme/delete", "/console/tenants/acme/subject/forget"


@pytest.fixture
def own(sandbox: SandboxControl, tmp_path: Path) -> Iterator[Stack]:
    """A proxy whose tenants a test may delete."""
    with limited_proxy(sandbox, tmp_path, {"acme": plan(), "globex": plan()}) as stack:
        yield stack


@pytest.fixture
def boss(own: Stack) -> Iterator[Operator]:
    with operator_of(own) as operator:
        yield operator


def test_a_tenant_is_deleted_and_its_records_stay(own: Stack, boss: Operator) -> None:
    with Client(own, own.token()) as caller:
        assert caller.run().status_code == 200
        assert f'href="{DELETE}"' in boss.get("/console/tenants/acme").text
        assert "Type acme to confirm" in boss.get(DELETE).text
        answer = boss.post(DELETE, {"confirm": "acme"})
        assert answer.status_code == 303, answer.text
        assert_refused_with(caller.http.get("/v1/session"), 401, "unauthenticated")
    path = answer.headers["location"]
    page, records = boss.get(path).text, path.rpartition("/")[2]
    assert records.startswith("acme~") and ">deleted<" in page and "cleared; the name can be given again" in page
    for link in re.findall(rf'href="([^"]+{quote(records)}[^"]*)"', page):
        assert boss.get(html.unescape(link)).status_code == 200
    assert ": 1 calls" in boss.get(f"/console/usage?tenant={records}").text
    statement = boss.get(f"{path}/statement").text
    assert "fal-ai/llava-next</th>" in statement and f'href="{path}"' in statement
    assert f'href="{path}"' in boss.get("/console/tenants").text
    assert f'href="{path}"' in boss.get("/console/tenants?q=acm").text
    assert records not in boss.get("/console/tenants?q=globex").text
    assert_refused(boss.get("/console/tenants/acme"), 404, "not_found")
    last = entries(own)[-1]
    assert (last["by"], last["action"]) == ("console:PROXY_ADMIN_TOKEN", "tenant.delete")
    # It is gone already.
    assert_refused(boss.get(DELETE), 404, "not_found")
    assert_refused(boss.post(DELETE, {"confirm": "acme"}), 404, "not_found")


def test_a_deletion_that_was_interrupted_is_finished(own: Stack, boss: Operator) -> None:
    leave_behind(own, "globex")
    assert "not cleared" in boss.get("/console/tenants").text
    page = boss.get("/console/tenants/globex~0123456789abcdef").text
    assert 'href="/console/tenants/globex/delete"' in page
    assert "Finish the deletion of globex" in boss.get("/console/tenants/globex/delete").text
    assert_refused(boss.post("/console/tenants/globex/delete", {"confirm": ""}), 400, "bad_request")
    answer = boss.post("/console/tenants/globex/delete", {"confirm": "globex"})
    assert answer.headers["location"] == "/console/tenants/globex~0123456789abcdef"
    assert "not cleared" not in boss.get("/console/tenants").text


def test_a_user_is_forgotten(own: Stack, boss: Operator) -> None:
    with Client(own, own.token(EVIL)) as caller:
        assert caller.run().status_code == 200
        user = f"/console/tenants/acme/subject?name={quote(EVIL, safe='/')}"
        link = re.search(rf'href="({FORGET}[^"]+)"', boss.get(user).text)
        assert link
        page = boss.get(html.unescape(link[1])).text
        assert EVIL not in page and f"Type {EVIL} to confirm" in html.unescape(page)
        answer = boss.post(FORGET, {"subject": EVIL, "confirm": EVIL})
        assert answer.headers["location"] == "/console/tenants/acme/subjects", answer.text
        assert_refused_with(caller.http.get("/v1/session"), 401, "session_revoked")
    page = html.unescape(boss.get("/console/tenants/acme/subjects").text)
    assert EVIL not in page and " forgotten " in page
    assert entries(own)[-1]["by"] == "console:PROXY_ADMIN_TOKEN" and EVIL not in str(entries(own))


@pytest.mark.parametrize("typed", ["", "ACME", "acme ", "globex", "<b>acme</b>"])
def test_a_name_that_is_not_typed_exactly_deletes_nothing(proxy: Stack, admin: Operator, typed: str) -> None:
    before = entries(proxy)
    text = assert_refused(admin.post(DELETE, {"confirm": typed}), 400, "bad_request")
    assert "nothing has changed" in text and "<b>" not in text
    assert_refused(admin.post(FORGET, {"subject": "acme", "confirm": typed}), 400, "bad_request")
    assert_refused(admin.post(FORGET, {"subject": "acme"}), 400, "bad_request")
    assert entries(proxy) == before
    with operating(proxy) as operator:
        assert operator.get("/v1/admin/tenants/acme").status_code == 200


@pytest.mark.parametrize("name", ["", " x", "x" * 201, "a\nb"])
def test_an_unknown_user_is_not_forgotten(proxy: Stack, admin: Operator, name: str) -> None:
    before = entries(proxy)
    assert_refused(admin.get(f"{FORGET}?name={quote(name)}"), 404, "not_found")
    assert_refused(admin.post(FORGET, {"subject": name, "confirm": name}), 404, "not_found")
    assert entries(proxy) == before


@pytest.mark.parametrize("path", ["nobody/delete", "nobody/subject/forget?name=a", "acme~0123456789abcdef"])
def test_an_unknown_tenant_is_not_found(admin: Operator, path: str) -> None:
    assert_refused(admin.get(f"/console/tenants/{path}"), 404, "not_found")
    assert_refused(admin.post("/console/tenants/nobody/delete", {"confirm": "nobody"}), 404, "not_found")
