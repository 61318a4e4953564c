"""Signing in at an OpenID Connect provider: only with a role, only once, only in the browser that began it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import pytest
from starlette.responses import JSONResponse, Response

from proxy.console.oidc import ATTEMPT_SECONDS
from proxy.console.sessions import IDLE_SECONDS, LONGEST_SECONDS
from proxy.limits.rates import SIGN_IN_LIMIT
from tests.console.operators import COOKIE, Operator, assert_refused, operator_of
from tests.fuzz.json import TRUSTING
from tests.support.audit_log import read_entries
from tests.support.clock import MovableClock
from tests.support.issuer import KeyHost, key_host, private_key, sign
from tests.support.limited import limited_proxy, plan
from tests.support.openid import CLIENT_ID, CLIENT_SECRET, OpenIdHost
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack

ROLES = "groups:fal-admins=admin,groups:support=viewer,https://acme.example/tier:night=operator,email:eve@acme.example=admin"
CALLBACK = "/console/oidc/callback"


def oidc_environ(issuer: str, **more: str) -> dict[str, str]:
    return {
        "PROXY_CONSOLE_OIDC_ISSUER": issuer,
        "PROXY_CONSOLE_OIDC_CLIENT_ID": CLIENT_ID,
        "PROXY_CONSOLE_OIDC_CLIENT_SECRET": CLIENT_SECRET,
        "PROXY_CONSOLE_OIDC_ROLES": ROLES,
        "PROXY_ISSUER_NETWORKS": "127.0.0.0/8,::1",
        **more,
    }


_addresses = itertools.count(1)


@contextlib.contextmanager
def proxy_with(provider: OpenIdHost, sandbox: SandboxControl, folder: Path, **more: str) -> Iterator[Stack]:
    """A proxy that is registered at the provider."""
    environ = oidc_environ(provider.issuer, **more)
    arguments: dict[str, Any] = {
        "environ": environ,
        "issuer_tls": provider.trust,
        "clock": provider.clock,
        "server": TRUSTING,
    }
    with limited_proxy(sandbox, folder, {"acme": plan()}, **arguments) as stack:
        provider.redirect_uris.add(f"{stack.url}{CALLBACK}")
        yield stack


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[KeyHost, Any, MovableClock]]:
    with key_host(tmp_path_factory.mktemp("provider")) as (host, trust):
        yield host, trust, MovableClock()


@pytest.fixture(scope="module")
def stack(
    keys: tuple[KeyHost, Any, MovableClock], shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    with proxy_with(OpenIdHost(*keys), shared_sandbox, tmp_path_factory.mktemp("oidc")) as running:
        yield running


@pytest.fixture
def provider(keys: tuple[KeyHost, Any, MovableClock], stack: Stack) -> OpenIdHost:
    """A new provider, after every interval in which the proxy does not ask it again."""
    stack.clock.advance(3600)
    return OpenIdHost(*keys, redirect_uris={f"{stack.url}{CALLBACK}"})


@pytest.fixture
def browser(stack: Stack) -> Iterator[Operator]:
    """A browser whose address no other has: the flood guard counts by the minutes of the machine's clock."""
    with operator_of(stack, None) as operator:
        operator.http.headers["x-forwarded-for"] = f"10.2.0.{next(_addresses)}"
        yield operator


def begin(browser: Operator, path: str = "/console/oidc") -> str:
    """Press the button; the provider's address."""
    answer = browser.get(path)
    assert answer.status_code == 303, answer.text
    return answer.headers["location"]


def go_to(browser: Operator, url: str, **changed: str) -> httpx.Response:
    """Come back from the provider, with a part of the query changed."""
    parts = urlsplit(url)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()} | changed
    assert parts.path == CALLBACK
    # The headers of a browser that is redirected back from another site.
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    return browser.get(f"{parts.path}?{urlencode({name: value for name, value in query.items() if value})}", **headers)


def sign_in(browser: Operator, provider: OpenIdHost, path: str = "/console/oidc") -> httpx.Response:
    return go_to(browser, provider.visit(begin(browser, path)))


def assert_nothing_signed_in(browser: Operator, answer: httpx.Response, status: int, code: str, text: str) -> None:
    assert text in assert_refused(answer, status, code)
    assert browser.cookie is None and not browser.is_signed_in()
    assert COOKIE + "=" not in " ".join(answer.headers.get_list("set-cookie"))


def test_the_page_to_sign_in_leads_to_the_provider_and_back_to_the_page(
    browser: Operator, provider: OpenIdHost
) -> None:
    page = browser.get("/console/sign-in?next=/console/audit").text
    assert 'href="/console/oidc?next=/console/audit"' in page and urlsplit(provider.issuer).netloc in page
    provider.person |= {"email": "ada@acme.example", "email_verified": True}
    answer = sign_in(browser, provider, "/console/oidc?next=/console/audit")
    assert (answer.status_code, answer.headers["location"]) == (303, "/console/audit")
    page = browser.get("/console/audit").text
    assert "oidc:ada@acme.example" in page and ">admin<" in page
    last = read_entries(browser.stack.settings.stores.database_url.reveal())[-1]
    assert (last["by"], last["action"]) == ("console:oidc:ada@acme.example", "console.sign_in")
    assert browser.post("/console/tenants/acme/suspend").status_code == 303
    assert browser.post("/console/tenants/acme/resume").status_code == 303


def test_the_request_has_pkce_a_state_and_a_nonce_and_comes_back_to_the_public_address(
    browser: Operator, provider: OpenIdHost
) -> None:
    answer = browser.get("/console/oidc", host="evil.example")
    query = {name: values[0] for name, values in parse_qs(urlsplit(answer.headers["location"]).query).items()}
    assert query["redirect_uri"] == f"{browser.stack.url}{CALLBACK}"
    assert (query["scope"], query["code_challenge_method"]) == ("openid email profile", "S256")
    other = begin(browser)
    for name in ("state", "nonce", "code_challenge"):
        assert len(query[name]) == 43 and query[name] not in other
    (cookie,) = [one for one in answer.headers.get_list("set-cookie") if one.startswith("fal_console_oidc=")]
    attributes = {part.strip().lower() for part in cookie.split(";")[1:]}
    assert {"httponly", "samesite=lax", "path=/", f"max-age={ATTEMPT_SECONDS}"} <= attributes


def test_the_request_comes_back_to_the_address_of_the_console_if_it_has_one(
    provider: OpenIdHost, shared_sandbox: SandboxControl, tmp_path: Path
) -> None:
    ops = "https://ops.example.com"
    with (
        proxy_with(provider, shared_sandbox, tmp_path, PROXY_CONSOLE_URL=ops) as stack,
        operator_of(stack, None) as browser,
    ):
        answer = browser.get("/console/oidc")
    query = parse_qs(urlsplit(answer.headers["location"]).query)
    assert query["redirect_uri"] == [f"{ops}{CALLBACK}"]
    # Operators come there by https, whatever arrives here.
    (cookie,) = answer.headers.get_list("set-cookie")
    assert cookie.startswith("__Host-fal_console_oidc=") and "Secure" in cookie


@pytest.mark.parametrize(
    ("claims", "role"),
    [
        ({"groups": ["support"]}, "viewer"),
        ({"groups": "fal-admins"}, "admin"),
        ({"groups": ["support", "other", "fal-admins", 7, None]}, "admin"),
        ({"groups": [], "https://acme.example/tier": "night"}, "operator"),
        ({"groups": [], "email": "eve@acme.example", "email_verified": True}, "admin"),
    ],
)
def test_a_claim_gives_the_role(browser: Operator, provider: OpenIdHost, claims: dict[str, Any], role: str) -> None:
    provider.person |= claims
    assert sign_in(browser, provider).status_code == 303
    assert f">{role}<" in browser.get("/console/tenants").text
    assert (browser.post("/console/tenants/acme/suspend").status_code == 303) is (role != "viewer")
    if role != "viewer":
        browser.post("/console/tenants/acme/resume")


@pytest.mark.parametrize(
    "claims",
    [
        {"groups": None},
        {"groups": []},
        {"groups": ["fal-admin", "FAL-ADMINS", ["fal-admins"], {"fal-admins": 1}]},
        {"groups": None, "email": "eve@acme.example"},
        {"groups": None, "email": "eve@acme.example", "email_verified": False},
    ],
)
def test_a_user_without_a_role_is_not_signed_in(
    browser: Operator, provider: OpenIdHost, claims: dict[str, Any]
) -> None:
    provider.person |= claims
    answer = sign_in(browser, provider)
    assert_nothing_signed_in(browser, answer, 403, "not_allowed", "Your account has no role here")


@pytest.mark.parametrize(
    "email",
    [
        {"email": "boss@acme.example"},
        {"email": "boss@acme.example", "email_verified": False},
        {"email": "a b@x", "email_verified": True},
        {"email": 7, "email_verified": True},
    ],
)
def test_an_email_that_is_not_verified_names_no_one(
    browser: Operator, provider: OpenIdHost, email: dict[str, Any]
) -> None:
    provider.person |= email
    assert sign_in(browser, provider).status_code == 303
    last = read_entries(browser.stack.settings.stores.database_url.reveal())[-1]
    assert last["by"] == "console:oidc:u-1"


@pytest.mark.parametrize("state", ["", "wrong", "é"])
def test_a_wrong_state_signs_no_one_in(browser: Operator, provider: OpenIdHost, state: str) -> None:
    back = provider.visit(begin(browser))
    answer = go_to(browser, back, state=state)
    assert_nothing_signed_in(browser, answer, 403, "not_allowed", "belongs to another sign-in (state)")
    # The right state is still valid.
    assert go_to(browser, back).status_code == 303


def test_a_sign_in_of_another_browser_signs_no_one_in(browser: Operator, provider: OpenIdHost) -> None:
    """An attacker cannot make a browser sign in as the attacker."""
    with operator_of(browser.stack, None) as attacker:
        back = provider.visit(begin(attacker))
    answer = go_to(browser, back)
    assert_nothing_signed_in(browser, answer, 403, "not_allowed", "has begun no sign-in")
    begin(browser)
    answer = go_to(browser, back)
    assert_nothing_signed_in(browser, answer, 403, "not_allowed", "belongs to another sign-in (state)")


def test_a_sign_in_can_be_completed_only_once(browser: Operator, provider: OpenIdHost) -> None:
    back = provider.visit(begin(browser))
    copy = browser.http.cookies["fal_console_oidc"]
    assert go_to(browser, back).status_code == 303
    with operator_of(browser.stack, None) as thief:
        thief.http.cookies.set("fal_console_oidc", copy)
        answer = go_to(thief, back)
        assert_nothing_signed_in(thief, answer, 403, "not_allowed", "was used before")
    assert_refused(go_to(browser, back), 403, "not_allowed")


def test_a_code_is_accepted_only_once(browser: Operator, provider: OpenIdHost) -> None:
    back = provider.visit(begin(browser))
    (code,) = parse_qs(urlsplit(back).query)["code"]
    assert go_to(browser, back).status_code == 303
    with operator_of(browser.stack, None) as thief:
        answer = go_to(thief, provider.visit(begin(thief)), code=code)
        assert_nothing_signed_in(thief, answer, 403, "not_allowed", "invalid_grant")


def test_a_code_of_another_sign_in_is_refused(browser: Operator, provider: OpenIdHost) -> None:
    """PKCE: a code that another browser got is useless without its verifier."""
    with operator_of(browser.stack, None) as victim:
        (code,) = parse_qs(urlsplit(provider.visit(begin(victim))).query)["code"]
    answer = go_to(browser, provider.visit(begin(browser)), code=code)
    assert_nothing_signed_in(browser, answer, 403, "not_allowed", "invalid_grant")


def test_a_sign_in_that_takes_too_long_is_over(browser: Operator, provider: OpenIdHost) -> None:
    back = provider.visit(begin(browser))
    browser.stack.clock.advance(ATTEMPT_SECONDS)
    assert_nothing_signed_in(browser, go_to(browser, back), 403, "not_allowed", "took too long")


@pytest.mark.parametrize("cookie", ["x", "x.y", "session"])
def test_a_forged_cookie_is_refused(browser: Operator, provider: OpenIdHost, cookie: str) -> None:
    back = provider.visit(begin(browser))
    browser.get("/console/sign-in")
    given = browser.http.cookies["fal_console_form"] if cookie == "session" else cookie
    browser.http.cookies.delete("fal_console_oidc")
    browser.http.cookies.set("fal_console_oidc", given)
    assert_nothing_signed_in(browser, go_to(browser, back), 403, "not_allowed", "has begun no sign-in")


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"nonce": "wrong"}, "(nonce)"),
        ({"nonce": None}, "(nonce)"),
        ({"aud": "another"}, "another client (aud)"),
        ({"aud": None}, "another client (aud)"),
        ({"aud": ["another"]}, "another client (aud)"),
        ({"aud": [CLIENT_ID, "another"]}, "another client (azp)"),
        ({"azp": "another"}, "another client (azp)"),
        ({"iss": "https://evil.example"}, "another issuer (iss)"),
        ({"exp": 1}, "has expired"),
        ({"exp": None}, "exp is no time"),
        ({"iat": 2**40}, "not valid yet"),
        ({"sub": None}, "sub cannot name its user"),
        ({"sub": "x" * 5000}, "sub cannot name its user"),
    ],
    ids=str,
)
def test_a_token_with_a_wrong_claim_signs_no_one_in(
    browser: Operator, provider: OpenIdHost, changed: dict[str, Any], text: str
) -> None:
    provider.changed = changed
    answer = sign_in(browser, provider)
    assert_nothing_signed_in(browser, answer, 403, "not_allowed", text)
    assert provider.given[-1] not in answer.text


def test_two_audiences_are_accepted_if_this_proxy_is_the_authorized_party(
    browser: Operator, provider: OpenIdHost
) -> None:
    provider.changed = {"aud": [CLIENT_ID, "another"], "azp": CLIENT_ID}
    assert sign_in(browser, provider).status_code == 303 and browser.is_signed_in()


@pytest.mark.parametrize(
    ("header", "text"),
    [
        ({"alg": "HS256"}, "algorithm (alg)"),
        ({"alg": "none"}, "algorithm (alg)"),
        ({"alg": "RS512"}, "algorithm (alg)"),
        ({"kid": "unknown"}, "no such key (kid)"),
    ],
)
def test_a_token_with_a_wrong_header_signs_no_one_in(
    browser: Operator, provider: OpenIdHost, header: dict[str, Any], text: str
) -> None:
    provider.header = header
    answer = sign_in(browser, provider)
    assert_nothing_signed_in(browser, answer, 403, "not_allowed", text)


def test_a_token_that_another_key_signed_signs_no_one_in(browser: Operator, provider: OpenIdHost) -> None:
    provider.key = private_key("of an attacker")
    answer = sign_in(browser, provider)
    assert_nothing_signed_in(browser, answer, 403, "not_allowed", "signature is wrong")


@pytest.mark.parametrize("metadata", [{"authorization_response_iss_parameter_supported": True}, {}])
def test_an_answer_that_names_another_provider_signs_no_one_in(
    browser: Operator, provider: OpenIdHost, metadata: dict[str, Any]
) -> None:
    provider.metadata = metadata
    back = provider.visit(begin(browser))
    answer = go_to(browser, back, **({} if metadata else {"iss": "https://evil.example"}))
    assert_nothing_signed_in(browser, answer, 403, "not_allowed", "another provider (iss)")
    assert go_to(browser, provider.visit(begin(browser)), iss=provider.issuer).status_code == 303


def test_the_secret_goes_into_the_form_if_the_provider_wants_it_there(browser: Operator, provider: OpenIdHost) -> None:
    provider.metadata = {"token_endpoint_auth_methods_supported": ["client_secret_post"]}
    assert sign_in(browser, provider).status_code == 303 and browser.is_signed_in()


@pytest.mark.parametrize(("refusal", "shown"), [("access_denied", "access_denied"), ("<b>x", "no error code")])
def test_a_refusal_of_the_provider_is_shown(browser: Operator, provider: OpenIdHost, refusal: str, shown: str) -> None:
    provider.refusal = refusal
    answer = sign_in(browser, provider)
    assert_nothing_signed_in(browser, answer, 403, "not_allowed", f"has not signed you in ({shown})")
    assert "<b>" not in answer.text


def test_an_answer_without_a_code_or_with_two_is_refused(browser: Operator, provider: OpenIdHost) -> None:
    back = provider.visit(begin(browser))
    for wrong in ("&code=1", "&x=" + "y" * 3000):
        answer = browser.get(f"{CALLBACK}?{urlsplit(back).query}{wrong}")
        assert_nothing_signed_in(browser, answer, 400, "bad_request", "stands twice, or is longer")
    assert_nothing_signed_in(browser, go_to(browser, back, code=""), 400, "bad_request", "has no code")


def test_a_clock_that_is_set_back_keeps_no_outage(browser: Operator, provider: OpenIdHost) -> None:
    provider.metadata = {"issuer": None}
    assert browser.get("/console/oidc").status_code == 503
    provider.metadata = {}
    browser.stack.clock.advance(-600)
    assert browser.get("/console/oidc").status_code == 303


def test_a_clock_that_is_set_back_keeps_no_old_description(browser: Operator, provider: OpenIdHost) -> None:
    assert browser.get("/console/oidc").status_code == 303
    asked = provider.host.asked["idp/.well-known/openid-configuration"]
    browser.stack.clock.advance(-1800)
    assert browser.get("/console/oidc").status_code == 303
    assert provider.host.asked["idp/.well-known/openid-configuration"] == asked + 1


@pytest.mark.parametrize(
    "metadata",
    [
        {"issuer": "https://evil.example"},
        {"issuer": None},
        {"token_endpoint": None},
        {"token_endpoint": "http://localhost/token"},
        {"authorization_endpoint": "javascript:alert(1)"},
        {"jwks_uri": "http://localhost/jwks"},
    ],
    ids=str,
)
def test_a_provider_that_describes_another_or_a_plain_address_is_not_used(
    browser: Operator, provider: OpenIdHost, metadata: dict[str, Any]
) -> None:
    provider.metadata = metadata
    answer = browser.get("/console/oidc")
    assert_nothing_signed_in(browser, answer, 503, "identity_unavailable", "cannot be asked now")
    assert answer.headers["retry-after"] == "5"
    # The next sign-in does not wait for the provider; a moment later the proxy asks it again.
    asked = provider.host.asked["idp/.well-known/openid-configuration"]
    assert browser.get("/console/oidc").status_code == 503
    assert provider.host.asked["idp/.well-known/openid-configuration"] == asked
    provider.metadata = {}
    browser.stack.clock.advance(5)
    assert sign_in(browser, provider).status_code == 303


async def _hang(_request: object) -> Response:
    await asyncio.sleep(30)
    return Response()


@pytest.mark.parametrize(
    "answer",
    [
        lambda _: Response(status_code=500),
        lambda _: Response("no JSON"),
        lambda _: JSONResponse([]),
        lambda _: JSONResponse({"access_token": "x"}),
        lambda _: JSONResponse({"id_token": 7}),
        lambda _: JSONResponse({"error": "invalid_client"}, 401),
        lambda _: Response(status_code=302, headers={"location": "https://evil.example"}),
        lambda _: Response("x" * 100_000),
        _hang,
    ],
    ids=["500", "text", "list", "none", "number", "client", "redirect", "large", "slow"],
)
def test_a_provider_that_gives_no_token_signs_no_one_in(
    browser: Operator, provider: OpenIdHost, answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    back = provider.visit(begin(browser))
    provider.host.answers["idp/token"] = answer
    page = go_to(browser, back)
    assert_nothing_signed_in(browser, page, 503, "identity_unavailable", "The identity provider")
    (code,) = parse_qs(urlsplit(back).query)["code"]
    for secret in (CLIENT_SECRET, code):
        assert secret not in page.text and secret not in caplog.text


def test_a_provider_without_keys_signs_no_one_in(browser: Operator, provider: OpenIdHost) -> None:
    provider.jwks_uri = f"{provider.issuer}/nothing"
    answer = sign_in(browser, provider)
    assert_nothing_signed_in(browser, answer, 503, "identity_unavailable", "cannot be fetched")


@pytest.mark.parametrize(
    "answer",
    [lambda _: Response(status_code=500), _hang],
    ids=["500", "slow"],
)
def test_a_provider_that_is_down_leaves_the_token_to_sign_in_with(
    browser: Operator, provider: OpenIdHost, answer: Any
) -> None:
    provider.host.answers["idp/.well-known/openid-configuration"] = answer
    page = browser.get("/console/oidc")
    assert_nothing_signed_in(browser, page, 503, "identity_unavailable", "sign in with an admin token")
    assert browser.sign_in().status_code == 303


def test_a_provider_at_an_internal_address_is_not_asked(
    provider: OpenIdHost, shared_sandbox: SandboxControl, tmp_path: Path
) -> None:
    asked = provider.host.asked.get("idp/.well-known/openid-configuration", 0)
    closed = proxy_with(provider, shared_sandbox, tmp_path, PROXY_ISSUER_NETWORKS="")
    with closed as stack, operator_of(stack, None) as browser:
        assert_refused(browser.get("/console/oidc"), 503, "identity_unavailable")
    assert provider.host.asked.get("idp/.well-known/openid-configuration", 0) == asked


def test_attempts_are_limited_per_address(browser: Operator, provider: OpenIdHost) -> None:
    for _ in range(int(SIGN_IN_LIMIT.partition("/")[0])):
        begin(browser)
        go_to(browser, provider.visit(begin(browser)), code="wrong")
    answer = sign_in(browser, provider)
    assert_nothing_signed_in(browser, answer, 429, "rate_limited", "")


def test_the_session_lasts_no_longer_than_one_of_a_token(browser: Operator, provider: OpenIdHost) -> None:
    clock = browser.stack.clock
    assert sign_in(browser, provider).status_code == 303
    begun = clock.now()
    while clock.now() - begun < LONGEST_SECONDS - 600:
        clock.advance(600)
        assert browser.is_signed_in()
    clock.advance(600)
    assert not browser.is_signed_in()
    sign_in(browser, provider)
    clock.advance(IDLE_SECONDS)
    assert not browser.is_signed_in()


def test_after_a_sign_out_no_copy_of_the_cookie_is_valid(browser: Operator, provider: OpenIdHost) -> None:
    sign_in(browser, provider)
    copy = browser.cookie
    assert copy and browser.post("/console/sign-out").status_code == 303
    with operator_of(browser.stack, None) as thief:
        thief.http.cookies.set(COOKIE, copy)
        assert not thief.is_signed_in()


@pytest.mark.parametrize(
    "environ",
    [
        {"PROXY_CONSOLE_OIDC_ROLES": "groups:fal-admins=viewer"},
        {"PROXY_CONSOLE_OIDC_CLIENT_ID": "another"},
        dict.fromkeys([f"PROXY_CONSOLE_OIDC_{name}" for name in ("ISSUER", "CLIENT_ID", "CLIENT_SECRET", "ROLES")], ""),
    ],
    ids=["roles", "client", "none"],
)
def test_a_session_ends_when_the_provider_or_its_roles_change(
    provider: OpenIdHost, shared_sandbox: SandboxControl, tmp_path: Path, environ: dict[str, str]
) -> None:
    with proxy_with(provider, shared_sandbox, tmp_path) as stack, operator_of(stack, None) as browser:
        assert sign_in(browser, provider).status_code == 303 and browser.is_signed_in()
        cookie = browser.cookie
    assert cookie
    with (
        proxy_with(provider, shared_sandbox, tmp_path, **environ) as stack,
        operator_of(stack, None) as browser,
    ):
        browser.http.cookies.set(COOKIE, cookie)
        assert not browser.is_signed_in()
    with proxy_with(provider, shared_sandbox, tmp_path) as stack, operator_of(stack, None) as browser:
        browser.http.cookies.set(COOKIE, cookie)
        assert browser.is_signed_in()


def test_without_a_provider_there_is_no_button_and_no_route(stranger: Operator) -> None:
    assert "oidc" not in stranger.get("/console/sign-in").text
    for path in ("/console/oidc", CALLBACK):
        assert stranger.get(path).status_code == 404


def test_no_token_and_no_secret_is_logged(
    browser: Operator, provider: OpenIdHost, caplog: pytest.LogCaptureFixture
) -> None:
    sign_in(browser, provider)
    provider.changed = {"aud": "another"}
    sign_in(browser, provider)
    assert "ID token refused" in caplog.text
    for text in (*provider.given, CLIENT_SECRET):
        assert text not in caplog.text and repr(browser.stack.settings.oidc).count(text) == 0


def test_a_token_is_not_taken_for_an_admin_token(browser: Operator, provider: OpenIdHost) -> None:
    """The ID token is for this sign-in only and opens nothing else."""
    sign_in(browser, provider)
    with browser.stack.client(provider.given[-1]) as caller:
        assert caller.get("/v1/admin/tenants").status_code == 401
        assert caller.get("/v1/session").status_code == 401
    forged = sign({"alg": "RS256", "kid": "one"}, {"iss": provider.issuer}, provider.key)
    with browser.stack.client(forged) as client:
        assert client.get("/console/tenants").status_code == 303
