"""Grants, overrides and users of a tenant."""

from __future__ import annotations

import html
import re
from urllib.parse import quote

import pytest

from tests.console.operators import Operator, assert_refused
from tests.console.test_tenants import entries
from tests.support.limited import Client, assert_refused_with, operating
from tests.support.stack import Stack

GRANTS, OVERRIDES = "/console/tenants/acme/grants", "/console/tenants/acme/overrides"
EVIL = "a/b?<i>&'\"#"
GRANT = {"subject": "", "unit": "requests", "amount": "12.5", "expires_at": "", "reason": "an apology"}
OVERRIDE = {"subject": "alice", "plan": "", "limits": '{"max_tokens": 64}', "until": "2999-01-01"}


def given(proxy: Stack) -> list[dict[str, object]]:
    with operating(proxy) as admin:
        listed: list[dict[str, object]] = admin.get("/v1/admin/tenants/acme/grants").raise_for_status().json()["grants"]
    return listed


def overridden(proxy: Stack) -> list[dict[str, object]]:
    with operating(proxy) as admin:
        path = "/v1/admin/tenants/acme/overrides"
        listed: list[dict[str, object]] = admin.get(path).raise_for_status().json()["overrides"]
    return listed


def once(page: str) -> str:
    match = re.search(r'name="once" value="([^"]+)"', page)
    assert match, page
    return match[1]


def test_a_grant_is_given_once_however_often_the_form_is_sent(proxy: Stack, night_shift: Operator) -> None:
    before = len(given(proxy))
    fields = {**GRANT, "subject": EVIL, "once": once(night_shift.get(GRANTS).text)}
    for _ in range(2):
        assert night_shift.post(GRANTS, fields).headers["location"] == GRANTS
    newest = given(proxy)[0]
    assert len(given(proxy)) == before + 1
    assert (newest["subject"], newest["unit"], newest["amount"]) == (EVIL, "requests", 12.5)
    page = night_shift.get(f"{GRANTS}?subject={quote(EVIL, safe='')}").text
    assert EVIL not in page and EVIL in html.unescape(page) and "12.5" in page and "an apology" in page
    last = entries(proxy)[-1]
    assert (last["by"], last["action"]) == ("console:token:night-shift", "grant.add")


@pytest.mark.parametrize(
    "wrong",
    [
        {"amount": ""},
        {"amount": "x"},
        {"amount": "-1"},
        {"amount": "true"},
        {"amount": "1e400"},
        {"amount": "[" * 10_000},
        {"unit": "dollars"},
        {"reason": ""},
        {"expires_at": "2001-01-01"},
        {"expires_at": "soon"},
        {"subject": " x"},
        {"once": "a b"},
        {"more": "x"},
    ],
    ids=lambda wrong: str(wrong)[:30],
)
def test_an_invalid_grant_is_not_given(proxy: Stack, night_shift: Operator, wrong: dict[str, str]) -> None:
    before = given(proxy)
    assert_refused(night_shift.post(GRANTS, {**GRANT, **wrong}), 400, "bad_request")
    assert given(proxy) == before


def test_an_override_is_set_holds_and_is_cleared(proxy: Stack, night_shift: Operator) -> None:
    with Client(proxy, proxy.token("alice")) as alice:
        assert alice.run(max_tokens=100).status_code == 200
        assert night_shift.post(OVERRIDES, OVERRIDE).headers["location"] == OVERRIDES
        assert_refused_with(alice.run(max_tokens=100), 422, "invalid_input")
        page = night_shift.get("/console/tenants/acme/subject?name=alice").text
        assert "&#34;max_tokens&#34;: 64" in page and "&#34;max_tokens&#34;: 64" in night_shift.get(OVERRIDES).text
        # Another one takes its place.
        night_shift.post(OVERRIDES, {"subject": "alice", "plan": "globex", "limits": "", "until": "2999-01-01"})
        assert [one["plan"] for one in overridden(proxy)] == ["globex"]
        assert "plan globex" in night_shift.get(OVERRIDES).text
        assert night_shift.post(f"{OVERRIDES}/clear", {"subject": "alice"}).headers["location"] == OVERRIDES
        assert overridden(proxy) == []
        assert alice.run(max_tokens=100).status_code == 200
    assert [entry["action"] for entry in entries(proxy)[-3:]] == ["override.set", "override.set", "override.clear"]
    assert_refused(night_shift.post(f"{OVERRIDES}/clear", {"subject": "alice"}), 404, "not_found")


@pytest.mark.parametrize(
    "wrong",
    [
        {"limits": ""},
        {"plan": "globex"},
        {"limits": "{"},
        {"limits": "[]"},
        {"limits": "{}"},
        {"limits": '{"max_tokens": -1}'},
        {"limits": '{"unknown": 1}'},
        {"limits": '{"max_tokens": 64, "max_tokens": 900}'},
        {"limits": "[" * 2000},
        {"limits": "", "plan": "nobodys"},
        {"subject": ""},
        {"subject": "x" * 201},
        {"until": "2001-01-01"},
        {"until": ""},
    ],
    ids=lambda wrong: str(wrong)[:30],
)
def test_an_invalid_override_is_not_set(proxy: Stack, night_shift: Operator, wrong: dict[str, str]) -> None:
    assert_refused(night_shift.post(OVERRIDES, {**OVERRIDE, **wrong}), 400, "bad_request")
    assert overridden(proxy) == []


def test_users_are_listed_by_what_they_used_and_signed_out(
    proxy: Stack, viewer: Operator, night_shift: Operator
) -> None:
    with Client(proxy, proxy.token(EVIL)) as caller:
        assert caller.run().status_code == 200
        page = viewer.get("/console/tenants/acme/subjects").text
        link = f"/console/tenants/acme/subject?name={quote(EVIL, safe='/')}"
        assert EVIL not in page and f'href="{link}"' in page
        page = viewer.get(link).text
        assert EVIL not in page and EVIL in html.unescape(page)
        assert re.search(r"1 of 9 used", page) and "fal-ai/llava-next" in page
        assert "sign-out" not in page.replace("/console/sign-out", "")
        # The second in which a session begins is that in which it is not yet revoked.
        proxy.clock.advance(1)
        sign_out = "/console/tenants/acme/subject/sign-out"
        assert_refused(viewer.post(sign_out, {"subject": EVIL}), 403, "not_allowed")
        assert caller.run().status_code == 200
        answer = night_shift.post(sign_out, {"subject": EVIL})
        assert answer.status_code == 303 and viewer.get(answer.headers["location"]).status_code == 200
        assert_refused_with(caller.run(), 401, "session_revoked")
    assert (entries(proxy)[-1]["by"], entries(proxy)[-1]["action"]) == ("console:token:night-shift", "session.revoke")
    assert EVIL not in str(entries(proxy)[-1])


@pytest.mark.parametrize("path", ["grants", "overrides", "subjects", "subject?name=a"])
def test_an_unknown_tenant_is_not_found(viewer: Operator, path: str) -> None:
    assert_refused(viewer.get(f"/console/tenants/nobody/{path}"), 404, "not_found")


@pytest.mark.parametrize("path", ["subject", "subject?name=", "subject?name=%20x", "subject?name=%00"])
def test_an_invalid_user_is_not_found(viewer: Operator, path: str) -> None:
    assert_refused(viewer.get(f"/console/tenants/acme/{path}"), 404, "not_found")


def test_a_viewer_gives_and_sets_nothing(proxy: Stack, viewer: Operator) -> None:
    before = len(entries(proxy))
    for path in (GRANTS, OVERRIDES):
        assert re.findall(r'<form[^>]* method="post" action="([^"]+)"', viewer.get(path).text) == ["/console/sign-out"]
    for path, fields in ((GRANTS, GRANT), (OVERRIDES, OVERRIDE), (f"{OVERRIDES}/clear", {"subject": "alice"})):
        assert_refused(viewer.post(path, fields), 403, "not_allowed")
    assert len(entries(proxy)) == before
