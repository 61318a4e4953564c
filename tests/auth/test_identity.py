"""Identity tokens of each provider, wherever a session can be used, and exchanged for one."""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.auth.conftest import PAGE, accepting
from tests.auth.providers import AUTH0, COGNITO, KEYCLOAK, PROVIDERS, Provider
from tests.support.images import png
from tests.support.issuer import KeyHost
from tests.support.limited import ADMIN_TOKEN, COUNTING, NEXT, asking, assert_refused_with
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack

OWN_FACTS = "/v1/session"


@pytest.fixture(params=PROVIDERS)
def provider(request: pytest.FixtureRequest) -> Provider:
    found: Provider = PROVIDERS[request.param]
    return found


def test_a_token_is_its_user_on_the_plan_that_its_claims_give(proxy: Stack, provider: Provider) -> None:
    with proxy.client(provider.token(proxy.clock.now())) as http:
        facts = http.get(OWN_FACTS).raise_for_status().json()
    assert (facts["tenant"], facts["subject"], facts["guest"]) == (provider.name, provider.subject, False)
    assert facts["endpoints"] == [NEXT, COUNTING]
    assert facts["expires_at"] is not None


def test_a_token_without_the_claim_has_the_default_plan(proxy: Stack, provider: Provider) -> None:
    claim = provider.accepts["plans"]["claim"]
    name = claim if isinstance(claim, str) else claim[0]
    with proxy.client(provider.token(proxy.clock.now(), **{name: None})) as http:
        assert http.get(OWN_FACTS).json()["endpoints"] == [NEXT]


def test_a_token_follows_the_override_of_its_user(proxy: Stack) -> None:
    token, path = AUTH0.token(proxy.clock.now()), f"/v1/admin/tenants/{AUTH0.name}/overrides/{quote(AUTH0.subject)}"
    with proxy.client(token) as http, proxy.client(ADMIN_TOKEN) as operator:
        assert http.get(OWN_FACTS).json()["endpoints"] == [NEXT, COUNTING]
        operator.put(path, json={"plan": "free", "until": "2099-01-31"}).raise_for_status()
        assert http.get(OWN_FACTS).json()["endpoints"] == [NEXT]
        operator.delete(path).raise_for_status()
        assert http.get(OWN_FACTS).json()["endpoints"] == [NEXT, COUNTING]


def test_a_token_is_exchanged_for_a_session(proxy: Stack, provider: Provider) -> None:
    with proxy.client("") as anonymous:
        answer = anonymous.post("/v1/sessions/exchange", json={"token": provider.token(proxy.clock.now())})
    minted = answer.json()
    assert answer.status_code == 201 and set(minted) == {"id", "token", "expires_at", "subject", "endpoints"}
    assert (minted["subject"], minted["endpoints"]) == (provider.subject, [NEXT, COUNTING])
    with proxy.client(minted["token"]) as session:
        facts = session.get(OWN_FACTS).raise_for_status().json()
    assert (facts["tenant"], facts["subject"], facts["endpoints"]) == (
        provider.name,
        provider.subject,
        [NEXT, COUNTING],
    )


def credentials(token: str, stack: Stack) -> dict[str, tuple[str, dict[str, str]]]:
    """Where a token can be: what stands before the path, and the headers."""
    return {
        "bearer": ("", {"authorization": f"Bearer {token}"}),
        # One space or more (RFC 9110, section 11.4).
        "spaces": ("", {"authorization": f"Bearer   {token}"}),
        "key": ("", {"authorization": f"Key {token}"}),
        "header": ("", {"x-fal-proxy-session": token}),
        "path": (f"/s/{token}", {}),
        "cookie": ("", {"cookie": stack.cookie(token), "origin": PAGE}),
    }


PLACES = ["bearer", "spaces", "key", "header", "path", "cookie"]


@pytest.mark.parametrize("place", PLACES)
def test_a_token_calls_fal_from_every_place_of_a_session(proxy: Stack, place: str) -> None:
    prefix, headers = credentials(AUTH0.token(proxy.clock.now()), proxy)[place]
    target = {"x-fal-target-url": f"https://queue.fal.run/{NEXT}"}
    with proxy.client("", headers={**headers, **target}) as http:
        answer = http.post(f"{prefix}/api/fal/proxy", json=asking("?"))
    assert answer.status_code == 200 and answer.json()["request_id"]


@pytest.mark.parametrize("place", [place for place in PLACES if place != "path"])
def test_a_token_uses_every_surface(proxy: Stack, place: str) -> None:
    _, headers = credentials(COGNITO.token(proxy.clock.now()), proxy)[place]
    with proxy.client("", headers=headers) as http:
        assert http.post(f"/fal/run/{NEXT}", json=asking("?")).status_code == 200
        job = http.post("/v1/jobs", json={"endpoint": NEXT, "input": asking("?")}).json()["id"]
        assert "event: result" in http.get(f"/v1/jobs/{job}/events").text
        assert http.get(f"/v1/jobs/{job}/result").status_code == 200
        assert [one["id"] for one in http.get("/v1/jobs").json()["jobs"]].count(job) == 1
        picture = http.post("/v1/uploads", content=png(100), headers={"content-type": "image/png"})
        assert picture.status_code == 201
        assert http.get("/v1/usage").status_code == http.get("/v1/endpoints").status_code == 200


def test_an_upload_token_is_made_from_a_token(proxy: Stack) -> None:
    with proxy.client(AUTH0.token(proxy.clock.now())) as http:
        given = http.post("/fal/rest/storage/auth/token?storage_type=fal-cdn-v3", json={}).raise_for_status().json()
    with proxy.client(given["token"]) as uploader:
        target = f"{given['base_url']}/files/upload"
        answer = uploader.post(target, content=png(100), headers={"content-type": "image/png"})
    assert answer.status_code == 200 and answer.json()["access_url"]


def test_a_page_of_the_tenant_may_send_a_token(proxy: Stack) -> None:
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    with proxy.client("") as page:
        for path in ("/v1/jobs", "/v1/sessions/exchange"):
            assert page.options(path, headers={"origin": PAGE, **asked}).headers["access-control-allow-origin"] == PAGE
            foreign = page.options(path, headers={"origin": "https://evil.example", **asked})
            assert_refused_with(foreign, 403, "origin_not_allowed")
        token = AUTH0.token(proxy.clock.now())
        answer = page.get(OWN_FACTS, headers={"origin": PAGE, "authorization": f"Bearer {token}"})
    assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == PAGE


def test_a_token_in_the_cookie_counts_for_allowed_pages_only(proxy: Stack) -> None:
    cookie = {"cookie": proxy.cookie(AUTH0.token(proxy.clock.now()))}
    with proxy.client("", headers=cookie) as browser:
        assert browser.get(OWN_FACTS, headers={"origin": PAGE}).status_code == 200
        assert_refused_with(
            browser.get(OWN_FACTS, headers={"origin": "https://evil.example"}), 403, "origin_not_allowed"
        )


def test_a_user_has_the_same_jobs_by_token_and_by_session(proxy: Stack) -> None:
    now = proxy.clock.now()
    with proxy.client(proxy.token(AUTH0.subject, tenant="auth0")) as session, proxy.client(AUTH0.token(now)) as token:
        job = session.post("/v1/jobs", json={"endpoint": NEXT, "input": asking("?")}).json()["id"]
        assert token.get(f"/v1/jobs/{job}").status_code == 200
    with proxy.client(AUTH0.token(now, sub="auth0|another")) as another:
        assert_refused_with(another.get(f"/v1/jobs/{job}"), 404, "not_found")
    with proxy.client(KEYCLOAK.token(now, sub=AUTH0.subject)) as neighbour:
        assert_refused_with(neighbour.get(f"/v1/jobs/{job}"), 404, "not_found")


def test_a_token_becomes_the_cookie(proxy: Stack) -> None:
    with proxy.client(AUTH0.token(proxy.clock.now())) as http:
        answer = http.post("/v1/sessions/cookie")
        cookie = answer.headers["set-cookie"].partition(";")[0]
    with proxy.client("", headers={"cookie": cookie, "origin": PAGE}) as browser:
        facts = browser.get(OWN_FACTS).json()
    assert (facts["subject"], facts["endpoints"]) == (AUTH0.subject, [NEXT, COUNTING])


def test_the_cookie_of_a_token_lasts_as_long_as_a_session(proxy: Stack) -> None:
    """Not as long as the token: the cookie counts on after the issuer is removed, or has withdrawn the key."""
    now = proxy.clock.now()
    token = AUTH0.token(now, exp=int(now) + 20 * 86_400)
    session = exchange(proxy, {"token": token}).json()
    with proxy.client(token) as http:
        answer = http.post("/v1/sessions/cookie")
    assert answer.json()["expires_at"] == session["expires_at"]
    kept = int(re.search(r"Max-Age=(\d+)", answer.headers["set-cookie"])[1])  # type: ignore[index]
    assert kept < 86_400


def test_a_token_cannot_be_renewed_here(proxy: Stack) -> None:
    with proxy.client(AUTH0.token(proxy.clock.now())) as http:
        assert "exchanged" in assert_refused_with(http.post("/v1/sessions/renew"), 403, "not_allowed")["detail"]


def test_a_proxy_without_issuers_accepts_no_token(stack: Stack) -> None:
    with stack.client(AUTH0.token(stack.clock.now())) as http:
        assert (
            assert_refused_with(http.get(OWN_FACTS), 401, "invalid_token")["detail"]
            == "No tenant accepts identity tokens."
        )


# --- exchange


def exchange(proxy: Stack, body: Any = None, **headers: str) -> httpx.Response:
    with proxy.client("", headers=headers) as anonymous:
        return anonymous.post("/v1/sessions/exchange", json=body)


def test_the_credential_can_be_the_token_to_exchange(proxy: Stack) -> None:
    token = AUTH0.token(proxy.clock.now())
    assert exchange(proxy, {}, authorization=f"Bearer {token}").json()["subject"] == AUTH0.subject
    answer = exchange(proxy, {"token": token}, authorization=f"Bearer {token}")
    assert "once" in assert_refused_with(answer, 400, "bad_request")["detail"]


def test_an_exchanged_session_is_renewed_and_outlives_the_token(proxy: Stack) -> None:
    minted = exchange(proxy, {"token": AUTH0.token(proxy.clock.now(), exp=int(proxy.clock.now()) + 30)}).json()
    proxy.clock.advance(120)
    with proxy.client(minted["token"]) as session:
        renewed = session.post("/v1/sessions/renew").json()
    assert renewed["expires_at"] > minted["expires_at"]
    assert (renewed["subject"], renewed["endpoints"]) == (AUTH0.subject, [NEXT, COUNTING])


@pytest.mark.parametrize("kind", ["session", "key"])
def test_only_an_identity_token_is_exchanged(proxy: Stack, kind: str) -> None:
    text = proxy.token(tenant="auth0") if kind == "session" else proxy.tenant_key("auth0")
    assert_refused_with(exchange(proxy, {}, authorization=f"Bearer {text}"), 403, "not_allowed")
    assert_refused_with(exchange(proxy, {"token": text}), 401, "invalid_token")


BAD_FORMS: dict[str, tuple[Any, str]] = {
    "a number": ({"token": 7}, "token: "),
    "nothing in it": ({"token": ""}, "token: "),
    "too long": ({"token": "a" * 8193}, "token: "),
    "more": ({"token": "a.b.c", "subject": "alice"}, "subject: "),
    "a list": ([], "the body: "),
}


@pytest.mark.parametrize("form", BAD_FORMS)
def test_a_bad_form_is_refused(proxy: Stack, form: str) -> None:
    body, problem = BAD_FORMS[form]
    assert assert_refused_with(exchange(proxy, body), 400, "bad_request")["detail"].startswith(problem)


def test_an_exchange_without_a_token_is_refused(proxy: Stack) -> None:
    assert_refused_with(exchange(proxy, {}), 401, "unauthenticated")
    large = {"token": "a.b.c", "more": "x" * 70_000}
    assert_refused_with(exchange(proxy, large), 413, "body_too_large")


# --- where others at the same address were refused


def test_a_token_that_is_new_here_is_heard_where_bad_ones_have_used_up_the_refusals(
    shared_sandbox: SandboxControl, trusted_host: tuple[KeyHost, ssl.SSLContext], tmp_path: Path
) -> None:
    host, trust = trusted_host
    tenants, few = {AUTH0.name: [AUTH0.identity(host)]}, {"PROXY_REFUSALS_PER_ADDRESS": "5/minute"}
    with accepting(shared_sandbox, tmp_path, trust, tenants, few) as own, own.client("") as abuser:
        for _ in range(5):
            assert abuser.get("/nowhere").status_code == 404
        token = AUTH0.token(own.clock.now())
        for wrong in (f"{token[:-4]}AAAA", AUTH0.token(own.clock.now() - 7200)):
            assert_refused_with(
                abuser.get(OWN_FACTS, headers={"authorization": f"Bearer {wrong}"}), 429, "rate_limited", "ip"
            )
        with own.client(token) as user:
            assert user.get(OWN_FACTS).json()["subject"] == AUTH0.subject


def test_bad_tokens_shut_the_exchange_to_no_good_one(
    shared_sandbox: SandboxControl, trusted_host: tuple[KeyHost, ssl.SSLContext], tmp_path: Path
) -> None:
    host, trust = trusted_host
    with accepting(shared_sandbox, tmp_path, trust, {AUTH0.name: [AUTH0.identity(host)]}) as own:
        statuses = [exchange(own, {"token": "e30.e30.x"}).status_code for _ in range(61)]
        assert statuses == [*[401] * 60, 429]
        token = AUTH0.token(own.clock.now())
        assert exchange(own, {}, authorization=f"Bearer {token}").status_code == 201
