"""The page of named admin tokens."""

from __future__ import annotations

import re

import pytest

from proxy.auth.admin_tokens import DEFAULT_DAYS
from proxy.clock import to_iso
from tests.console.operators import Operator, assert_refused, new_token, operator_of, revoke_token
from tests.console.test_tenants import entries
from tests.support.limited import operating
from tests.support.stack import Stack

PAGE = "/console/tokens"
FORM = {"name": "day-shift", "role": "operator", "expires_at": ""}
DAY = 86_400


def made(page: str) -> str:
    match = re.search(r'id="new-token">(fpa_[0-9a-f]{16}_[A-Za-z0-9_-]{43})<', page)
    assert match, page
    return match[1]


def known(proxy: Stack) -> dict[str, dict[str, str]]:
    with operating(proxy) as admin:
        return {one["name"]: one for one in admin.get("/v1/admin/tokens").raise_for_status().json()["tokens"]}


def test_a_token_is_shown_once_opens_the_console_and_is_revoked(proxy: Stack, admin: Operator) -> None:
    answer = admin.post(PAGE, FORM)
    token = made(answer.text)
    assert answer.status_code == 201 and answer.headers["cache-control"] == "no-store"
    assert token not in admin.get(PAGE).text and ">day-shift</th>" in admin.get(PAGE).text
    shown = known(proxy)["day-shift"]
    assert shown["role"] == "operator"
    assert shown["expires_at"] == to_iso(int(proxy.clock.now()) + DEFAULT_DAYS * DAY)
    with operator_of(proxy, token) as holder:
        assert holder.is_signed_in()
        assert admin.post(f"{PAGE}/day-shift/revoke").headers["location"] == PAGE
        assert not holder.is_signed_in()
    assert "day-shift" not in known(proxy) and "day-shift" not in admin.get(PAGE).text
    assert_refused(admin.post(f"{PAGE}/day-shift/revoke"), 404, "not_found")
    assert [(one["by"], one["action"]) for one in entries(proxy)[-3:]] == [
        ("console:PROXY_ADMIN_TOKEN", "admin_token.create"),
        ("console:token:day-shift", "console.sign_in"),
        ("console:PROXY_ADMIN_TOKEN", "admin_token.revoke"),
    ]
    assert token.split("_", 2)[2] not in str(entries(proxy))


def test_a_token_ends_when_the_form_says(proxy: Stack, admin: Operator) -> None:
    day = to_iso(proxy.clock.now() + 2 * DAY)[:10]
    admin.post(PAGE, {**FORM, "expires_at": day})
    assert known(proxy)["day-shift"]["expires_at"] == f"{day}T00:00:00+00:00"
    assert "expired" not in admin.get(PAGE).text
    proxy.clock.advance(2 * DAY)
    with operator_of(proxy) as later:
        assert later.get(PAGE).text.count("expired") == 1
        later.post(f"{PAGE}/day-shift/revoke")


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"name": "Day"},
        {"name": "x" * 64},
        {"name": "<b>"},
        {"role": ""},
        {"role": "root"},
        {"role": "ADMIN"},
        {"expires_at": "soon"},
        {"expires_at": "2001-01-01"},
        {"expires_at": "2999-01-01"},
        {"expires_at": "1" * 41},
        {"more": "x"},
    ],
    ids=str,
)
def test_an_invalid_form_makes_no_token(proxy: Stack, admin: Operator, wrong: dict[str, str]) -> None:
    before = known(proxy)
    assert_refused(admin.post(PAGE, {**FORM, **wrong}), 400, "bad_request")
    assert known(proxy) == before


def test_a_name_is_used_for_one_token_only(proxy: Stack, admin: Operator) -> None:
    new_token(proxy, "day-shift", "viewer")
    text = assert_refused(admin.post(PAGE, FORM), 400, "bad_request")
    assert "There is a token day-shift already" in text and known(proxy)["day-shift"]["role"] == "viewer"
    revoke_token(proxy, "day-shift")


def test_the_list_has_pages(proxy: Stack, viewer: Operator) -> None:
    names = [f"robot-{number:02}" for number in range(60)]
    for name in names:
        new_token(proxy, name, "viewer")
    page = viewer.get(PAGE).text
    more = re.search(r'rel="next" href="([^"]+)"', page)
    assert more
    rest = viewer.get(more[1].replace("&amp;", "&")).text
    found = [re.findall(r'<th scope="row">(robot-\d\d)<', text) for text in (page, rest)]
    assert found[0] + found[1] == names and all(found) and 'rel="next"' not in rest
    for name in names:
        revoke_token(proxy, name)


@pytest.mark.parametrize("path", [f"{PAGE}?cursor=x", f"{PAGE}?x=1", f"{PAGE}?limit=5"])
def test_a_query_that_is_wrong_is_refused(viewer: Operator, path: str) -> None:
    assert_refused(viewer.get(path), 400, "bad_request")
