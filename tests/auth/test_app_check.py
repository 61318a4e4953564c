"""Guests of apps that Firebase App Check knows: right tokens, wrong ones, and who may come without an Origin."""

from __future__ import annotations

import itertools
import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import Response

from proxy.auth.issuer_keys import PAUSE_SECONDS
from proxy.auth.verified import LEEWAY_SECONDS
from tests.support.issuer import KeyHost, PrivateKey, private_key, public_jwk, sign
from tests.support.limited import COUNTING, NEXT, assert_refused_with, limited_proxy, plan
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack

PAGE = "https://app.acme.example"
GUEST = "/v1/sessions/guest"
PROJECT, APP = "123456789012", "1:123456789012:android:321abc456def7890"
ISSUER = f"https://firebaseappcheck.googleapis.com/{PROJECT}"
TIER = {"proof": "app_check", "project": PROJECT, "plan": "taste"}
NONE = {"proof": "none", "plan": "crumb"}
PLANS = {"taste": plan(), "crumb": plan(endpoints=[NEXT])}
TIERS: dict[str, list[dict[str, Any]]] = {
    "app": [TIER],
    "twin": [TIER],
    "listed": [{**TIER, "apps": [APP, "1:123456789012:ios:321abc456def7890"]}],
    "both": [TIER, NONE],
    "work": [{"proof": "pow", "plan": "taste", "difficulty": 10}],
    "free": [NONE],
    "off": [TIER],
}
KEY = private_key("app check")
ADDRESSES = (f"198.18.{number // 250}.{number % 250 + 1}" for number in itertools.count())
_numbers = itertools.count(1)


def tenants() -> dict[str, dict[str, Any]]:
    return {
        name: {
            "plan": "crumb",
            "allowed_origins": [PAGE],
            "guests": {"enabled": name != "off", "per_address": None, "tiers": tiers},
        }
        for name, tiers in TIERS.items()
    }


@pytest.fixture(scope="module")
def limited(
    shared_sandbox: SandboxControl,
    trusted_host: tuple[KeyHost, ssl.SSLContext],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Stack]:
    host, trust = trusted_host
    url = host.publish("app-check", public_jwk(KEY, kid="fire", alg="RS256"))
    plans = {**PLANS, **dict.fromkeys(TIERS, PLANS["crumb"])}
    trusting = {"proxy_headers": True, "forwarded_allow_ips": ["127.0.0.0/8"]}
    with limited_proxy(
        shared_sandbox,
        tmp_path_factory.mktemp("app-check"),
        plans,
        tenants=tenants(),
        environ={"PROXY_APP_CHECK_URL": url},
        server=trusting,
        issuer_tls=trust,
    ) as stack:
        yield stack


@pytest.fixture
def proxy(limited: Stack, sandbox: SandboxControl) -> Stack:
    return limited


def claims(proxy: Stack, **more: Any) -> dict[str, Any]:
    """Those of a token as Firebase issues it; what is given as None is left out."""
    now = int(proxy.clock.now())
    said = {
        "sub": APP,
        "aud": [f"projects/{PROJECT}", "projects/acme-app"],
        "provider": "play_integrity",
        "iss": ISSUER,
        "iat": now,
        "exp": now + 300,
        "jti": f"jti-{next(_numbers)}",
        **more,
    }
    return {name: value for name, value in said.items() if value is not None}


def token(proxy: Stack, key: PrivateKey | bytes | None = KEY, header: dict[str, Any] | None = None, **more: Any) -> str:
    return sign({"alg": "RS256", "typ": "JWT", "kid": "fire", **(header or {})}, claims(proxy, **more), key)


def give(proxy: Stack, value: str, tenant: str = "app", origin: str | None = None, **more: Any) -> httpx.Response:
    return ask(proxy, {"tenant": tenant, "proof": {"kind": "app_check", "value": value}, **more}, origin)


def ask(proxy: Stack, form: dict[str, Any], origin: str | None = None) -> httpx.Response:
    headers = {"x-forwarded-for": next(ADDRESSES), **({} if origin is None else {"origin": origin})}
    return httpx.post(f"{proxy.url}{GUEST}", json=form, headers=headers, trust_env=False, timeout=60)


@pytest.mark.parametrize("tenant", ["app", "listed", "both"])
@pytest.mark.parametrize("origin", [None, PAGE])
def test_a_token_gives_the_plan_of_its_tier(proxy: Stack, tenant: str, origin: str | None) -> None:
    answer = give(proxy, token(proxy), tenant, origin)
    assert (answer.status_code, answer.json()["endpoints"]) == (201, [NEXT, COUNTING])
    with proxy.client(answer.json()["token"]) as guest:
        assert guest.get("/v1/session").json()["guest"] is True


def test_a_token_counts_once_for_all_tenants(proxy: Stack) -> None:
    value = token(proxy)
    with ThreadPoolExecutor(8) as pool:
        tried = [(value, "app"), (value, "twin"), (value, "both"), (value, "listed")] * 2
        answers = list(pool.map(lambda one: give(proxy, *one), tried))
    assert sorted(answer.status_code for answer in answers) == [201] + [401] * 7
    used = next(answer for answer in answers if answer.status_code == 401)
    assert "used before" in assert_refused_with(used, 401, "proof_invalid")["detail"]


def test_a_name_of_a_token_counts_once(proxy: Stack) -> None:
    assert give(proxy, token(proxy, jti="twice")).status_code == 201
    assert_refused_with(give(proxy, token(proxy, jti="twice", exp=int(proxy.clock.now()) + 301)), 401, "proof_invalid")


def test_a_token_without_a_name_counts_once(proxy: Stack) -> None:
    value = token(proxy, jti=None)
    assert [give(proxy, value).status_code for _ in range(2)] == [201, 401]


def test_a_token_that_holds_for_days_counts_once_in_all_of_them(proxy: Stack) -> None:
    value = token(proxy, exp=int(proxy.clock.now()) + 7 * 86_400)
    assert give(proxy, value).status_code == 201
    proxy.clock.advance(7 * 86_400 + LEEWAY_SECONDS - 1)
    assert "used before" in assert_refused_with(give(proxy, value), 401, "proof_invalid")["detail"]
    proxy.clock.advance(1)
    assert "expired" in assert_refused_with(give(proxy, value), 401, "proof_invalid")["detail"]


def test_a_token_expires(proxy: Stack) -> None:
    first, second = token(proxy), token(proxy)
    proxy.clock.advance(300 + LEEWAY_SECONDS - 1)
    assert give(proxy, first).status_code == 201
    proxy.clock.advance(1)
    assert "expired" in assert_refused_with(give(proxy, second), 401, "proof_invalid")["detail"]


OTHER = "https://firebaseappcheck.googleapis.com/7"
#: How each differs from a right token, and what its refusal says.
WRONG: dict[str, tuple[Callable[[Stack], str], str]] = {
    "of another project": (lambda proxy: token(proxy, iss=OTHER, aud=["projects/7"]), "issuer (iss)"),
    "of another issuer": (lambda proxy: token(proxy, iss=f"https://evil.example/{PROJECT}"), "issuer (iss)"),
    "for another project": (lambda proxy: token(proxy, aud=["projects/7"]), "audience (aud)"),
    "for no project": (lambda proxy: token(proxy, aud=None), "audience (aud)"),
    "by another key": (lambda proxy: token(proxy, private_key("evil")), "signature is wrong"),
    "by an unknown key": (lambda proxy: token(proxy, header={"kid": "other"}), "no such key"),
    "unsigned": (lambda proxy: token(proxy, None, {"alg": "none"}), "algorithm"),
    "by the public key": (lambda proxy: token(proxy, b"public", {"alg": "HS256"}), "algorithm"),
    "by another algorithm": (lambda proxy: token(proxy, header={"alg": "RS512"}), "algorithm"),
    "without an end": (lambda proxy: token(proxy, exp=None), "exp"),
    "from later": (lambda proxy: token(proxy, iat=int(proxy.clock.now()) + 120), "not valid yet"),
    "for no app": (lambda proxy: token(proxy, sub=None), "sub"),
    "no token": (lambda _: "made.up.entirely", "not a signed JWT"),
    "no ASCII": (lambda _: "wörd", "not a signed JWT"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_token_is_refused(proxy: Stack, case: str) -> None:
    make, says = WRONG[case]
    value = make(proxy)
    body = assert_refused_with(give(proxy, value), 401, "proof_invalid")
    assert says in body["detail"] and value not in body["detail"]


def test_a_list_of_apps_is_all_that_count(proxy: Stack) -> None:
    other = f"1:{PROJECT}:web:321abc456def7890"
    assert (
        "another app"
        in assert_refused_with(give(proxy, token(proxy, sub=other), "listed"), 401, "proof_invalid")["detail"]
    )
    assert give(proxy, token(proxy, sub=other)).status_code == 201


# --- without an Origin


def test_only_an_app_that_proves_what_it_is_comes_without_an_origin(proxy: Stack) -> None:
    for tenant in ("app", "both"):
        answer = ask(proxy, {"tenant": tenant})
        assert "of the kind app_check." in assert_refused_with(answer, 401, "proof_required")["detail"]
    assert ask(proxy, {"tenant": "both"}, PAGE).json()["endpoints"] == [NEXT]
    for tenant in ("work", "free", "nowhere"):
        assert_refused_with(ask(proxy, {"tenant": tenant}), 403, "origin_not_allowed")
        assert_refused_with(give(proxy, token(proxy), tenant), 403, "origin_not_allowed")
    assert_refused_with(ask(proxy, {}), 403, "origin_not_allowed")
    assert_refused_with(give(proxy, token(proxy), "off"), 403, "origin_not_allowed")


@pytest.mark.parametrize("origin", ["https://evil.example", "null"])
def test_a_page_of_another_origin_is_refused_with_any_token(proxy: Stack, origin: str) -> None:
    value = token(proxy)
    assert_refused_with(give(proxy, value, origin=origin), 403, "origin_not_allowed")
    assert give(proxy, value).status_code == 201


def test_without_a_tier_for_apps_every_guest_needs_an_origin(sandbox: SandboxControl, tmp_path: Path) -> None:
    listed = {"work": tenants()["work"]}
    with limited_proxy(sandbox, tmp_path, {**PLANS, "work": PLANS["crumb"]}, tenants=listed) as proxy:
        assert_refused_with(ask(proxy, {"tenant": "work"}), 403, "origin_not_allowed")
        # Before the body is read.
        answer = httpx.post(f"{proxy.url}{GUEST}", content=b"{", trust_env=False, timeout=60)
        assert_refused_with(answer, 403, "origin_not_allowed")


# --- the keys


def test_without_firebase_s_keys_no_guest_is_let_in(
    sandbox: SandboxControl, trusted_host: tuple[KeyHost, ssl.SSLContext], tmp_path: Path
) -> None:
    host, trust = trusted_host
    host.answers["broken"] = lambda _: Response(status_code=500)
    environ = {"PROXY_APP_CHECK_URL": f"{host.url}/broken"}
    named = {"app": tenants()["app"]}
    plans = {**PLANS, "app": PLANS["crumb"]}
    with limited_proxy(sandbox, tmp_path, plans, tenants=named, environ=environ, issuer_tls=trust) as proxy:
        value = token(proxy)
        assert "App Check" in assert_refused_with(give(proxy, value), 503, "proof_unavailable")["detail"]
        host.publish("broken", public_jwk(KEY, kid="fire"))
        proxy.clock.advance(PAUSE_SECONDS)
        assert give(proxy, value).status_code == 201


# --- the sandbox


def test_the_sandbox_stands_in_for_firebase(sandbox: SandboxControl, tmp_path: Path) -> None:
    environ = {"PROXY_APP_CHECK_URL": f"{sandbox.url}/_sandbox/app-check/jwks"}
    named = {"listed": tenants()["listed"]}
    plans = {**PLANS, "listed": PLANS["crumb"]}
    with limited_proxy(sandbox, tmp_path, plans, tenants=named, environ=environ) as proxy:
        answers = [give(proxy, given_by(sandbox, app), "listed") for app in (APP, "1:2:web:3")]
    assert [answer.status_code for answer in answers] == [201, 401]


def given_by(sandbox: SandboxControl, app: str) -> str:
    wanted = {"kind": "app_check", "project": PROJECT, "app": app}
    given: str = httpx.post(f"{sandbox.url}/_sandbox/proofs", json=wanted, trust_env=False, timeout=60).json()["token"]
    return given


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"kind": "luck"}, "name a kind: turnstile, hcaptcha, recaptcha, app_check"),
        ({"kind": "turnstile"}, "name the hostname"),
        ({"kind": "app_check", "project": 7, "app": APP}, "name the number of a project"),
        ({"kind": "app_check", "project": PROJECT}, "name the number of a project"),
    ],
)
def test_the_sandbox_says_what_a_wish_lacks(sandbox: SandboxControl, wanted: dict[str, Any], says: str) -> None:
    answer = httpx.post(f"{sandbox.url}/_sandbox/proofs", json=wanted, trust_env=False, timeout=60)
    assert answer.status_code == 422 and says in answer.json()["detail"]
