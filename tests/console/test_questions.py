"""Before an action that stops something, a page asks; only the button of that page does it."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import quote

import pytest

from tests.clients.expectations import HELD
from tests.console.operators import Operator, assert_refused, new_token, revoke_token
from tests.console.test_forgery import assert_no_markup
from tests.console.test_roles import PAGES
from tests.console.test_tenants import entries, new_key
from tests.support.limited import Client, operating
from tests.support.stack import Stack

EVIL = "a/b?<img src=x onerror=alert(1)>&'\"#{{7*7}}{subject}"
ACME = "/console/tenants/acme"
_CHOICE = re.compile(r'<form class="choice" method="post" action="([^"]+)">(.*?)</form>', re.DOTALL)
_FIELD = re.compile(r'<input type="hidden" name="([^"]+)" value="([^"]*)">')
_LINK = re.compile(r'<a class="button danger" href="([^"]+)">')
#: Pages with figures that change by themselves, and with charts.
PAGES_WITH_SCRIPTS = ["", "/usage"]


@dataclass
class Question:
    """An action about which a page asks.

    Attributes:
        page: has the link to the question.
        path: of the question.
        texts: what the question says.
        entry: the action in the audit log.
        after: where the answer leads.
    """

    page: str
    path: str
    texts: list[str]
    entry: str
    after: str


def suspend_tenant(proxy: Stack, admin: Operator) -> Question:
    return Question(ACME, f"{ACME}/suspend", ["Suspend acme?"], "tenant.suspend", ACME)


def revoke_key(proxy: Stack, admin: Operator) -> Question:
    id_ = new_key(admin, EVIL).split("_")[1]
    texts = [f"Revoke the key {id_} of acme?", f"Its name is {EVIL}."]
    return Question(ACME, f"{ACME}/keys/{id_}/revoke", texts, "key.revoke", ACME)


def revoke_nameless_key(proxy: Stack, admin: Operator) -> Question:
    id_ = new_key(admin, "").split("_")[1]
    texts = [f"Revoke the key {id_} of acme?", "<p>Servers that use it"]
    return Question(ACME, f"{ACME}/keys/{id_}/revoke", texts, "key.revoke", ACME)


def revoke_admin_token(proxy: Stack, admin: Operator) -> Question:
    new_token(proxy, "doomed", "operator")
    path, texts = "/console/tokens/doomed/revoke", ["Revoke the token doomed?", "Its role is operator."]
    return Question("/console/tokens", path, texts, "admin_token.revoke", "/console/tokens")


def cancel_job(proxy: Stack, admin: Operator) -> Question:
    with Client(proxy, proxy.token(EVIL)) as caller:
        caller.submitted(HELD)
    with operating(proxy) as operator:
        listed = operator.get("/v1/admin/jobs", params={"tenant": "acme", "subject": EVIL, "status": "open"})
    page = f"/console/jobs/{listed.json()['jobs'][0]['id']}"
    texts = [f"Cancel the job {page.rpartition('/')[2]} at fal?", f"It is a job of {EVIL} of acme at"]
    return Question(page, f"{page}/cancel", texts, "job.cancel", page)


def end_sessions(proxy: Stack, admin: Operator) -> Question:
    page = f"{ACME}/subject?name={quote(EVIL, safe='')}"
    path = f"{ACME}/subject/sign-out?subject={quote(EVIL, safe='/')}"
    return Question(page, path, [f"End all sessions of {EVIL}?"], "session.revoke", page)


def clear_override(proxy: Stack, admin: Operator) -> Question:
    page, path = f"{ACME}/overrides", f"{ACME}/overrides/clear?subject={quote(EVIL, safe='/')}"
    admin.post(page, {"subject": EVIL, "plan": "globex", "limits": "", "until": "2999-01-01"})
    return Question(page, path, [f"Clear the override of {EVIL}?"], "override.clear", page)


ACTIONS = [
    suspend_tenant,
    revoke_key,
    revoke_nameless_key,
    revoke_admin_token,
    cancel_job,
    end_sessions,
    clear_override,
]


def read_choice(page: str) -> tuple[str, dict[str, str]]:
    """Where the form of a page goes that asks, and its fields."""
    match = _CHOICE.search(page)
    assert match, page
    return match[1], {name: html.unescape(value) for name, value in _FIELD.findall(match[2])}


@pytest.mark.parametrize("begin", ACTIONS)
def test_a_page_asks_and_only_its_button_acts(
    proxy: Stack, admin: Operator, begin: Callable[[Stack, Operator], Question]
) -> None:
    question = begin(proxy, admin)
    before = entries(proxy)
    linking = admin.get(question.page).text
    assert question.path in map(html.unescape, _LINK.findall(linking))
    answer = admin.get(question.path)
    assert answer.status_code == 200, answer.text
    for page in (linking, answer.text):
        assert EVIL not in page
        assert_no_markup(page)
    assert all(text in html.unescape(answer.text) for text in question.texts)
    assert f'<a href="{question.after}">' in answer.text and entries(proxy) == before
    path, fields = read_choice(answer.text)
    assert path == question.path.partition("?")[0]
    assert fields.keys() == ({"csrf", "subject"} if "?" in question.path else {"csrf"})
    done = admin.send(path, fields)
    assert (done.status_code, done.headers["location"]) == (303, question.after), done.text
    (entry,) = entries(proxy)[len(before) :]
    assert (entry["by"], entry["action"], entry["tenant"]) == (
        "console:PROXY_ADMIN_TOKEN",
        question.entry,
        "" if question.entry.startswith("admin_token") else "acme",
    )
    admin.post(f"{ACME}/resume")


@pytest.mark.parametrize(
    "path",
    [
        "tenants/missing/suspend",
        "tenants/missing/keys/0123456789abcdef/revoke",
        "tenants/acme/keys/0123456789abcdef/revoke",
        "tokens/missing/revoke",
        "tokens/NO%20BODY/revoke",
        "jobs/missing/cancel",
        "tenants/missing/subject/sign-out?subject=alice",
        "tenants/acme/subject/sign-out",
        "tenants/acme/subject/sign-out?subject=",
        "tenants/acme/subject/sign-out?subject=%20x",
        "tenants/acme/subject/sign-out?subject=%00",
        f"tenants/acme/subject/sign-out?subject={'x' * 201}",
        "tenants/missing/overrides/clear?subject=alice",
        "tenants/acme/overrides/clear",
        "tenants/acme/overrides/clear?subject=missing",
        f"tenants/acme/overrides/clear?subject={'x' * 201}",
    ],
)
def test_no_page_asks_about_what_does_not_exist(admin: Operator, path: str) -> None:
    assert "choice" not in assert_refused(admin.get(f"/console/{path}"), 404, "not_found")


def test_no_page_asks_about_a_key_of_another_tenant(admin: Operator) -> None:
    id_ = new_key(admin, "of globex", "globex").split("_")[1]
    assert_refused(admin.get(f"{ACME}/keys/{id_}/revoke"), 404, "not_found")
    assert admin.get(f"/console/tenants/globex/keys/{id_}/revoke").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "tenants/acme/suspend?x=1",
        "tenants/acme/suspend?subject=alice",
        "tenants/acme/subject/sign-out?name=alice",
        "tenants/acme/subject/sign-out?subject=alice&subject=bob",
        "tenants/acme/overrides/clear?subject=alice&csrf=x",
        "tokens/missing/revoke?cursor=x",
        "jobs/missing/cancel?x=1",
    ],
)
def test_a_query_that_is_wrong_is_refused(admin: Operator, path: str) -> None:
    assert_refused(admin.get(f"/console/{path}"), 400, "bad_request")


def test_a_question_is_asked_after_the_sign_in_only(proxy: Stack, stranger: Operator) -> None:
    path = f"{ACME}/suspend"
    assert stranger.get(path).headers["location"] == f"/console/sign-in?next={path}"
    assert stranger.sign_in(next=path).headers["location"] == path
    assert "Suspend acme?" in stranger.get(path).text


def test_what_ends_while_a_page_asks_is_refused_then(proxy: Stack, admin: Operator) -> None:
    new_token(proxy, "fleeting", "viewer")
    path, fields = read_choice(admin.get("/console/tokens/fleeting/revoke").text)
    revoke_token(proxy, "fleeting")
    assert_refused(admin.send(path, fields), 404, "not_found")


def test_pages_ask_without_scripts(admin: Operator) -> None:
    pages = {path: admin.get(f"/console{path}").text for path in PAGES}
    assert [path for path, page in pages.items() if "<script" in page] == PAGES_WITH_SCRIPTS
    assert "<script" not in admin.get(f"{ACME}/suspend").text
