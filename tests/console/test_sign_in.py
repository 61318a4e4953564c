"""Signing in and out: a session differs from the token, is new each time, and ends with its token."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from proxy.clock import to_iso
from proxy.console.cookies import FORM, SESSION
from proxy.console.sessions import FORM_SECONDS, IDLE_SECONDS, LONGEST_SECONDS
from proxy.limits.rates import ADMIN_LIMIT, FILE_LIMIT, SIGN_IN_LIMIT, parse_rate
from tests.console.operators import COOKIE, FORM_COOKIE, Operator, assert_refused, new_token, operator_of, revoke_token
from tests.support.audit_log import read_entries
from tests.support.limited import ADMIN_TOKEN, assert_refused_with, limited_proxy, plan
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack

MOST_ATTEMPTS = int(SIGN_IN_LIMIT.partition("/")[0])


def cookie_header(answer_headers: list[str], name: str) -> str:
    (found,) = [header for header in answer_headers if header.startswith(f"{name}=")]
    return found


def assert_asked_to_sign_in(operator: Operator, path: str = "/console/tenants") -> None:
    answer = operator.get(path)
    assert (answer.status_code, answer.headers["location"]) == (303, f"/console/sign-in?next={path}")


def test_the_cookie_is_for_this_site_and_no_script_and_has_no_token(stranger: Operator) -> None:
    answer = stranger.sign_in()
    assert (answer.status_code, answer.headers["location"]) == (303, "/console")
    header = cookie_header(answer.headers.get_list("set-cookie"), COOKIE)
    attributes = {part.strip().lower() for part in header.split(";")[1:]}
    assert {"httponly", "samesite=strict", "path=/", f"max-age={int(IDLE_SECONDS)}"} <= attributes
    assert "secure" not in attributes and ADMIN_TOKEN not in header and "fpa_" not in header
    assert stranger.is_signed_in()


def test_over_https_the_cookie_needs_https_and_this_host(shared_sandbox: SandboxControl, tmp_path: Path) -> None:
    trusting = {"proxy_headers": True, "forwarded_allow_ips": ["127.0.0.0/8"]}
    with limited_proxy(shared_sandbox, tmp_path, {"acme": plan()}, server=trusting) as stack:
        with operator_of(stack, None) as operator:
            page = operator.get("/console/sign-in", **{"x-forwarded-proto": "https"})
        header = cookie_header(page.headers.get_list("set-cookie"), f"__Host-{FORM}")
        assert {"Secure", "HttpOnly", "Path=/"} <= {part.strip() for part in header.split(";")}
        assert "domain" not in header.lower()


@pytest.mark.parametrize(
    "token", ["", "wrong", f"{ADMIN_TOKEN}x", ADMIN_TOKEN[:-1], "fpa_0123456789abcdef_" + "x" * 43]
)
def test_a_wrong_token_opens_nothing(stranger: Operator, token: str) -> None:
    text = assert_refused(stranger.sign_in(token), 401, "unauthenticated")
    assert "This is no admin token" in text and (not token or token not in text)
    assert stranger.cookie is None
    assert_asked_to_sign_in(stranger)


def test_each_sign_in_makes_a_new_session(stranger: Operator) -> None:
    """A cookie that an attacker planted before the sign-in does not become the session."""
    stranger.get("/console/sign-in")
    planted = stranger.http.cookies[FORM_COOKIE]
    stranger.sign_in()
    first = stranger.cookie
    stranger.sign_in()
    assert len({planted, first, stranger.cookie}) == 3 and first is not None
    with operator_of(stranger.stack, None) as attacker:
        attacker.http.cookies.set(COOKIE, planted)
        assert_asked_to_sign_in(attacker)


def test_the_form_to_sign_in_belongs_to_its_browser(stranger: Operator) -> None:
    with operator_of(stranger.stack, None) as attacker:
        csrf = attacker.csrf("/console/sign-in")
    fields = {"token": ADMIN_TOKEN, "csrf": csrf}
    assert_refused(stranger.send("/console/sign-in", fields), 403, "not_allowed")
    stranger.get("/console/sign-in")
    assert_refused(stranger.send("/console/sign-in", fields), 403, "not_allowed")
    assert_refused(stranger.send("/console/sign-in", {"token": ADMIN_TOKEN}), 403, "not_allowed")
    assert stranger.cookie is None


def test_a_form_to_sign_in_expires(stranger: Operator) -> None:
    csrf = stranger.csrf("/console/sign-in")
    stranger.stack.clock.advance(FORM_SECONDS + 1)
    answer = stranger.send("/console/sign-in", {"token": ADMIN_TOKEN, "csrf": csrf})
    assert_refused(answer, 401, "session_expired")


@pytest.mark.parametrize("change", ["x", "", "."])
def test_a_changed_cookie_is_refused(admin: Operator, change: str) -> None:
    assert admin.cookie
    head, _, signature = admin.cookie.partition(".")
    for text in (f"{head}{change}.{signature}x", f"x{head}.{signature}", change, admin.stack.token(), "x" * 5000):
        with operator_of(admin.stack, None) as other:
            other.http.cookies.set(COOKIE, text)
            assert_asked_to_sign_in(other)


def test_a_session_of_the_console_opens_no_other_route_and_no_other_opens_it(admin: Operator) -> None:
    assert admin.cookie
    with admin.stack.client(admin.cookie) as caller:
        assert_refused_with(caller.get("/v1/session"), 401, "unauthenticated")
        assert_refused_with(caller.get("/v1/admin/tenants"), 401, "unauthenticated")
    assert_refused_with(admin.get("/v1/admin/tenants"), 401, "unauthenticated")
    with operator_of(admin.stack, None) as caller_with_header:
        answer = caller_with_header.get("/console/tenants", authorization=f"Bearer {ADMIN_TOKEN}")
        assert answer.status_code == 303


def test_a_session_ends_when_it_is_idle(admin: Operator) -> None:
    admin.stack.clock.advance(IDLE_SECONDS - 1)
    assert admin.is_signed_in()
    # That request has extended the session.
    admin.stack.clock.advance(IDLE_SECONDS - 1)
    assert admin.is_signed_in()
    admin.stack.clock.advance(IDLE_SECONDS)
    assert_asked_to_sign_in(admin)


def test_a_session_ends_after_a_day_of_work_however_busy(admin: Operator) -> None:
    begun = admin.stack.clock.now()
    while admin.stack.clock.now() - begun < LONGEST_SECONDS - 600:
        admin.stack.clock.advance(600)
        assert admin.is_signed_in()
    admin.stack.clock.advance(600)
    assert_asked_to_sign_in(admin)


def test_a_session_ends_with_its_named_token(proxy: Stack) -> None:
    with operator_of(proxy, new_token(proxy, "leaver", "viewer")) as leaver:
        assert leaver.is_signed_in()
        revoke_token(proxy, "leaver")
        assert_asked_to_sign_in(leaver)
        # Another token of the same name is another token.
        new_token(proxy, "leaver", "admin")
        assert_asked_to_sign_in(leaver)
        revoke_token(proxy, "leaver")


def test_a_session_ends_when_its_token_expires(proxy: Stack) -> None:
    with operator_of(proxy, new_token(proxy, "guest", "viewer", expires_at=to_iso(proxy.clock.now() + 60))) as guest:
        assert guest.is_signed_in()
        proxy.clock.advance(60)
        assert_asked_to_sign_in(guest)
    revoke_token(proxy, "guest")


def test_a_session_ends_when_the_token_of_the_settings_is_replaced(
    shared_sandbox: SandboxControl, tmp_path: Path
) -> None:
    with limited_proxy(shared_sandbox, tmp_path, {"acme": plan()}) as stack, operator_of(stack) as operator:
        assert operator.is_signed_in() and operator.cookie
        cookie = operator.cookie
    other = {"PROXY_ADMIN_TOKEN": "another-admin-token-of-the-tests-with-32-bytes"}
    changed = limited_proxy(shared_sandbox, tmp_path, {"acme": plan()}, environ=other)
    with changed as stack, operator_of(stack, None) as operator:
        operator.http.cookies.set(COOKIE, cookie)
        assert_asked_to_sign_in(operator)
    with limited_proxy(shared_sandbox, tmp_path, {"acme": plan()}) as stack, operator_of(stack, None) as operator:
        operator.http.cookies.set(COOKIE, cookie)
        assert operator.is_signed_in()


def test_after_a_sign_out_no_copy_of_the_cookie_is_valid(admin: Operator) -> None:
    copy = admin.cookie
    assert copy and admin.post("/console/sign-out").headers["location"] == "/console/sign-in"
    assert admin.cookie is None
    with operator_of(admin.stack, None) as thief:
        thief.http.cookies.set(COOKIE, copy)
        assert_asked_to_sign_in(thief)
    last = read_entries(admin.stack.settings.stores.database_url.reveal())[-2:]
    assert [(entry["by"], entry["action"]) for entry in last] == [
        ("console:PROXY_ADMIN_TOKEN", "console.sign_in"),
        ("console:PROXY_ADMIN_TOKEN", "console.sign_out"),
    ]


def test_wrong_tokens_are_limited_per_address_and_a_right_one_still_signs_in(stranger: Operator) -> None:
    csrf = stranger.csrf("/console/sign-in")
    for _ in range(MOST_ATTEMPTS):
        answer = stranger.send("/console/sign-in", {"csrf": csrf, "token": "wrong"})
        csrf = stranger.csrf("/console/sign-in")
        assert answer.status_code == 401
    answer = stranger.send("/console/sign-in", {"csrf": csrf, "token": "wrong"})
    assert_refused(answer, 429, "rate_limited")
    assert 0 < int(answer.headers["retry-after"]) <= 60 and stranger.cookie is None
    with operator_of(stranger.stack) as operator:
        assert operator.is_signed_in()
    stranger.stack.clock.advance(61)
    assert stranger.sign_in("wrong").status_code == 401


@pytest.mark.slow
def test_files_of_the_pages_are_limited_per_address_but_not_before_the_pages(proxy: Stack) -> None:
    """Every view of a page asks for its files, and a whole company of operators may have one address."""
    views, files = (parse_rate(rate)[0] for rate in (ADMIN_LIMIT, FILE_LIMIT))
    with proxy.client("", headers={"x-forwarded-for": "192.0.2.77"}) as browsers:
        ask = partial(browsers.get, "/console/static/console.css")
        assert {ask().status_code for _ in range(2 * views)} == {200}
        # The window slides: on a slow machine its oldest requests leave it meanwhile.
        answers = (ask() for _ in range(5 * files))
        refusal = next(answer for answer in answers if answer.status_code != 200)
    assert_refused_with(refusal, 429, "rate_limited", "ip")


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("/console/audit", "/console/audit"),
        ("/console/tenants/acme", "/console/tenants/acme"),
        ("/console/tenants/acme/keys/0123abcd/revoke", "/console/tenants/acme/keys/0123abcd/revoke"),
        ("//evil.example", "/console"),
        ("https://evil.example/console", "/console"),
        ("/console//evil.example", "/console"),
        ("/console/../v1/admin", "/console"),
        ("/console\\evil", "/console"),
        ("/console/sign-out", "/console"),
        ("/consolex", "/console"),
        ("", "/console"),
    ],
)
def test_a_sign_in_leads_only_to_pages_of_the_console(stranger: Operator, given: str, shown: str) -> None:
    assert stranger.sign_in(next=given).headers["location"] == shown


def test_two_cookies_are_refused(admin: Operator) -> None:
    with operator_of(admin.stack, None) as other:
        answer = other.get("/console/tenants", cookie=f"{SESSION}={admin.cookie}; {SESSION}=x")
    assert answer.status_code == 303


@pytest.mark.parametrize(
    ("environ", "is_there"), [({"PROXY_CONSOLE": "off"}, False), ({"PROXY_ADMIN_TOKEN": ""}, False)]
)
def test_there_is_no_console_unless_it_is_on(
    shared_sandbox: SandboxControl, tmp_path: Path, environ: dict[str, str], is_there: bool
) -> None:
    with (
        limited_proxy(shared_sandbox, tmp_path, {"acme": plan()}, environ=environ) as stack,
        stack.client("") as caller,
    ):
        for path in ("/console", "/console/sign-in", "/console/static/console.css"):
            assert_refused_with(caller.get(path), 404, "not_found")


def test_the_console_works_with_named_tokens_alone_if_it_is_on(shared_sandbox: SandboxControl, tmp_path: Path) -> None:
    with limited_proxy(shared_sandbox, tmp_path, {"acme": plan()}) as stack:
        token = new_token(stack, "only", "viewer")
    environ = {"PROXY_ADMIN_TOKEN": "", "PROXY_CONSOLE": "on"}
    again = limited_proxy(shared_sandbox, tmp_path, {"acme": plan()}, environ=environ)
    with again as stack, operator_of(stack, token) as operator:
        assert operator.is_signed_in()
