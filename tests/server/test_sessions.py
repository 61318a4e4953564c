"""Sessions over HTTP: minted by a tenant's key, given to guests, put into a cookie, looked at, revoked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from http.cookies import Morsel, SimpleCookie
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack, proxy_in_front_of

OWN_FACTS = "/v1/session"
READS = [OWN_FACTS, "/v1/usage", "/v1/endpoints", "/v1/endpoints/fal-ai/llava-next", "/v1/jobs"]
PROXIED = "/fal/queue/fal-ai/llava-next/requests/no-such-job/status"
EVERY = ["fal-ai/llava-llama3-8b-v11", "fal-ai/llava-next", "fal-ai/llavav15-13b"]


@pytest.fixture
def tenant(stack: Stack) -> Iterator[httpx.Client]:
    """acme's own backend."""
    with stack.client(stack.tenant_key()) as client:
        yield client


@pytest.fixture
def anonymous(stack: Stack) -> Iterator[httpx.Client]:
    with stack.client("") as client:
        yield client


def check_refusal(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The body of a refusal, once it has the one shape of errors."""
    body: dict[str, Any] = answer.json()
    assert (answer.status_code, body["error_type"], answer.headers["x-fal-error-type"]) == (status, code, code)
    assert answer.headers["content-type"] == "application/json"
    assert body["detail"] == body["message"] and body["request_id"] == answer.headers["x-request-id"]
    return body


def seconds_until(stack: Stack, text: str) -> float:
    return datetime.fromisoformat(text).timestamp() - stack.clock.now()


# Minting


def test_a_tenant_key_mints_a_session(stack: Stack, tenant: httpx.Client) -> None:
    answer = tenant.post("/v1/sessions", json={"subject": "alice", "ttl_seconds": 600})
    assert answer.status_code == 201 and answer.headers["cache-control"] == "no-store"
    minted = answer.json()
    assert set(minted) == {"id", "token", "expires_at", "subject", "endpoints"}
    assert (minted["subject"], minted["endpoints"]) == ("alice", EVERY)
    assert seconds_until(stack, minted["expires_at"]) == 600
    with stack.client(minted["token"]) as alice:
        facts = alice.get(OWN_FACTS).json()
    assert facts == {
        "tenant": "acme",
        "subject": "alice",
        "expires_at": minted["expires_at"],
        "guest": False,
        "endpoints": EVERY,
        "quotas": [],
        "grants": [],
        "in_flight": facts["in_flight"],
    }
    assert facts["in_flight"]["subject"]["limit"] is None


def test_a_session_can_be_narrowed(stack: Stack, tenant: httpx.Client) -> None:
    minted = tenant.post("/v1/sessions", json={"subject": "alice", "endpoints": ["fal-ai/llava-next"]}).json()
    assert minted["endpoints"] == ["fal-ai/llava-next"]
    with stack.client(minted["token"]) as alice:
        assert alice.get(OWN_FACTS).json()["endpoints"] == ["fal-ai/llava-next"]
        answer = alice.post("/fal/run/fal-ai/llavav15-13b", json={"image_url": "x", "prompt": "?"})
    check_refusal(answer, 403, "endpoint_not_allowed")
    assert stack.sandbox.requests() == []


def test_a_session_narrowed_to_nothing_may_call_nothing(tenant: httpx.Client) -> None:
    assert tenant.post("/v1/sessions", json={"subject": "alice", "endpoints": []}).json()["endpoints"] == []


@pytest.mark.parametrize("endpoint", ["fal-ai/llavav15-13b", "fal-ai/flux/dev", "FAL-AI/llava-next", ""])
def test_a_session_cannot_widen_the_plan(stack: Stack, endpoint: str) -> None:
    with stack.client(stack.tenant_key("small")) as small:
        body = {"subject": "alice", "endpoints": ["fal-ai/llava-next", endpoint]}
        check_refusal(small.post("/v1/sessions", json=body), 403, "endpoint_not_allowed")


def test_the_time_of_a_session_is_clamped_to_the_plan(stack: Stack) -> None:
    with stack.client(stack.tenant_key("small")) as small:
        long = small.post("/v1/sessions", json={"subject": "alice", "ttl_seconds": 10**9}).json()
        plain = small.post("/v1/sessions", json={"subject": "alice"}).json()
    assert seconds_until(stack, long["expires_at"]) == seconds_until(stack, plain["expires_at"]) == 900


BAD_FORMS: dict[str, tuple[object, str]] = {
    "nothing": ({}, "subject: "),
    "a-list": ([], "the body: "),
    "null": (None, "the body: "),
    "a-number": ({"subject": 7}, "subject: "),
    "empty": ({"subject": ""}, "subject: must be 1 to 200"),
    "space-at-the-end": ({"subject": "alice "}, "subject: must be 1 to 200"),
    "a-newline": ({"subject": "al\nice"}, "subject: must be 1 to 200"),
    "too-long": ({"subject": "a" * 201}, "subject: must be 1 to 200"),
    "no-time": ({"subject": "alice", "ttl_seconds": 0}, "ttl_seconds: "),
    "time-as-text": ({"subject": "alice", "ttl_seconds": "60"}, "ttl_seconds: "),
    "half-a-second": ({"subject": "alice", "ttl_seconds": 0.5}, "ttl_seconds: "),
    "endpoints-as-text": ({"subject": "alice", "endpoints": "fal-ai/llava-next"}, "endpoints: "),
    "an-endpoint-that-is-none": ({"subject": "alice", "endpoints": [7]}, "endpoints.0: "),
    "unknown-field": ({"subject": "alice", "tenant": "globex"}, "tenant: "),
}


@pytest.mark.parametrize("form", BAD_FORMS)
def test_a_bad_form_is_refused_by_its_fields(tenant: httpx.Client, form: str) -> None:
    document, problem = BAD_FORMS[form]
    answer = tenant.post("/v1/sessions", content=json.dumps(document), headers={"content-type": "application/json"})
    assert check_refusal(answer, 400, "bad_request")["detail"].startswith(problem)


def test_every_wrong_field_is_named(tenant: httpx.Client) -> None:
    detail = check_refusal(tenant.post("/v1/sessions", json={"ttl_seconds": 0, "subjct": "x"}), 400, "bad_request")[
        "detail"
    ]
    assert all(f"{name}: " in detail for name in ("subject", "ttl_seconds", "subjct"))


def test_a_form_must_be_json(tenant: httpx.Client) -> None:
    check_refusal(tenant.post("/v1/sessions", content=b"subject=alice"), 400, "bad_request")
    check_refusal(tenant.post("/v1/sessions", data={"subject": "alice"}), 415, "unsupported_media_type")


def test_only_a_tenant_key_mints(stack: Stack, anonymous: httpx.Client) -> None:
    body = {"subject": "bob"}
    with stack.client() as alice:
        check_refusal(alice.post("/v1/sessions", json=body), 403, "not_allowed")
    check_refusal(anonymous.post("/v1/sessions", json=body), 401, "unauthenticated")
    wrong = stack.tenant_key()[:-4] + "AAAA"
    check_refusal(
        anonymous.post("/v1/sessions", json=body, headers={"authorization": f"Key {wrong}"}), 401, "unauthenticated"
    )


def test_a_tenant_key_may_call_as_the_tenant(tenant: httpx.Client) -> None:
    facts = tenant.get(OWN_FACTS).json()
    assert (facts["tenant"], facts["subject"], facts["expires_at"]) == ("acme", "", None)


# Guests and the cookie


def cookie_of(answer: httpx.Response) -> Morsel[str]:
    (header,) = answer.headers.get_list("set-cookie")
    name = "fal_session" if header.startswith("fal_session=") else "__Host-fal_session"
    return SimpleCookie(header)[name]


def test_a_guest_is_let_in_by_the_origin_of_the_page(stack: Stack, anonymous: httpx.Client) -> None:
    answer = anonymous.post("/v1/sessions/guest", headers={"origin": stack.other_origin})
    minted, cookie = answer.json(), cookie_of(answer)
    assert answer.status_code == 201 and answer.headers["cache-control"] == "no-store"
    assert minted["subject"].startswith("guest-") and minted["endpoints"] == ["fal-ai/llava-next"]
    assert seconds_until(stack, minted["expires_at"]) == 900
    # The browser keeps it for the grace period too.
    assert cookie.value == minted["token"] and cookie["max-age"] == "1500"
    assert (cookie["httponly"], cookie["samesite"].lower(), cookie["path"], cookie["domain"]) == (True, "lax", "/", "")
    with stack.client(minted["token"]) as guest:
        assert guest.get(OWN_FACTS).json()["guest"] is True
    again = anonymous.post("/v1/sessions/guest", headers={"origin": stack.other_origin.upper().replace("HTTP", "http")})
    assert again.json()["subject"] != minted["subject"]


def test_the_cookie_is_secure_outside_dev(stack: Stack, tls_stack: Stack, anonymous: httpx.Client) -> None:
    """The shared plain stack runs in dev mode, where a page on http needs the cookie."""
    assert not cookie_of(anonymous.post("/v1/sessions/guest", headers={"origin": stack.other_origin}))["secure"]
    with tls_stack.client("") as secured:
        answer = secured.post("/v1/sessions/guest", headers={"origin": tls_stack.other_origin})
        assert cookie_of(answer)["secure"] and cookie_of(answer)["httponly"]
        with tls_stack.client() as alice:
            cookie = cookie_of(alice.post("/v1/sessions/cookie"))
            assert (cookie["secure"], cookie["path"], cookie["domain"]) == (True, "/", "")
            # Browsers keep a cookie of this name only as it was set here, so that no sub-domain can plant one.
            assert cookie.key == "__Host-fal_session"
            assert cookie_of(alice.delete(OWN_FACTS)).key == "__Host-fal_session"
        assert secured.get(OWN_FACTS, headers={"cookie": tls_stack.cookie()}).status_code == 200
        old = f"fal_session={tls_stack.token()}"
        check_refusal(secured.get(OWN_FACTS, headers={"cookie": old}), 401, "unauthenticated")
        # One that was planted is not looked at, and disturbs nothing.
        both = f"fal_session={tls_stack.token('mallory')}; {tls_stack.cookie()}"
        assert secured.get(OWN_FACTS, headers={"cookie": both}).json()["subject"] == "alice"


def test_two_session_cookies_are_refused(stack: Stack, anonymous: httpx.Client) -> None:
    one, two = stack.cookie(stack.token("alice")), stack.cookie(stack.token("mallory"))
    for headers in (
        [("cookie", f"{one}; {two}")],
        [("cookie", f"{one};{one}")],
        [("cookie", one), ("cookie", f"other=1; {two}")],
        [("cookie", f"{one}; fal_session=")],
    ):
        body = check_refusal(anonymous.get(OWN_FACTS, headers=headers), 401, "unauthenticated")
        assert body["detail"].startswith("The request carries two cookies named fal_session;")
    # As it was set: not in quotes, which some parsers take away.
    quoted = stack.cookie(f'"{stack.token()}"')
    check_refusal(anonymous.get(OWN_FACTS, headers={"cookie": quoted}), 401, "unauthenticated")
    beside = f"theme=dark; my_fal_session=x; {one}; fal_session_2=y"
    assert anonymous.get(OWN_FACTS, headers={"cookie": beside}).json()["subject"] == "alice"


@pytest.mark.parametrize("body", [{}, {"tenant": "acme"}, {"tenant": "globex"}, {"tenant": "nobody"}], ids=str)
@pytest.mark.parametrize(
    "origin", [None, "https://evil.example", "null", "https://app.globex.example", "http://127.0.0.1"], ids=str
)
def test_a_page_of_no_tenant_gets_no_guest_session(
    anonymous: httpx.Client, origin: str | None, body: dict[str, str]
) -> None:
    headers = {"origin": origin} if origin else {}
    answer = anonymous.post("/v1/sessions/guest", json=body, headers=headers)
    check_refusal(answer, 403, "origin_not_allowed")
    assert "set-cookie" not in answer.headers


def test_a_session_becomes_a_cookie_and_stays_the_same_session(stack: Stack, anonymous: httpx.Client) -> None:
    token = stack.token(ttl_seconds=600, endpoints=["fal-ai/llava-next"])
    answer = anonymous.post("/v1/sessions/cookie", headers={"authorization": f"Bearer {token}"})
    cookie = cookie_of(answer)
    assert answer.status_code == 201 and "token" not in answer.json()
    assert (cookie.value, cookie["max-age"], cookie["httponly"]) == (token, "1200", True)
    facts = anonymous.get(OWN_FACTS, headers={"cookie": f"fal_session={cookie.value}"}).json()
    assert answer.json().items() <= facts.items() and facts["endpoints"] == ["fal-ai/llava-next"]


def test_a_tenant_key_never_becomes_a_cookie(tenant: httpx.Client) -> None:
    answer = tenant.post("/v1/sessions/cookie")
    check_refusal(answer, 403, "not_allowed")
    assert "set-cookie" not in answer.headers


WITH_COOKIE: dict[str, tuple[dict[str, str], bool]] = {
    "own-origin": ({"origin": "{own}"}, True),
    "tenant-origin": ({"origin": "{other}"}, True),
    "same-origin-get": ({"sec-fetch-site": "same-origin"}, True),
    "same-site": ({"sec-fetch-site": "same-site"}, False),
    "typed-into-the-bar": ({"sec-fetch-site": "none"}, False),
    "foreign-page": ({"origin": "https://evil.example"}, False),
    "foreign-page-cross-site": ({"origin": "https://evil.example", "sec-fetch-site": "cross-site"}, False),
    "origin-wins": ({"origin": "https://evil.example", "sec-fetch-site": "same-origin"}, False),
    "origin-of-another-tenant": ({"origin": "https://app.globex.example"}, False),
    "sandboxed-frame": ({"origin": "null"}, False),
}


@pytest.mark.parametrize("case", WITH_COOKIE)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", PROXIED),
        ("GET", "/api/fal/proxy"),
        ("DELETE", OWN_FACTS),
        ("POST", "/v1/sessions/cookie"),
        *(("GET", path) for path in READS),
    ],
)
def test_a_cookie_counts_only_from_a_page_that_may_call(
    stack: Stack, anonymous: httpx.Client, case: str, method: str, path: str
) -> None:
    said, counts = WITH_COOKIE[case]
    headers = {name: value.format(own=stack.url, other=stack.other_origin) for name, value in said.items()}
    headers["x-fal-target-url"] = "https://queue.fal.run/fal-ai/llava-next/requests/no-such-job/status"
    answer = anonymous.request(method, path, headers={**headers, "cookie": f"fal_session={stack.token()}"})
    if counts:
        assert answer.status_code in (200, 201, 204, 404)
    else:
        check_refusal(answer, 403, "origin_not_allowed")


def test_a_browser_that_does_not_name_the_page_may_only_read(stack: Stack, anonymous: httpx.Client) -> None:
    """Safari before 16.4 sends no Sec-Fetch-Site, and nor does a page on plain http; a GET of theirs has no Origin."""
    headers = {"cookie": stack.cookie(), "x-fal-target-url": "https://fal.run/fal-ai/llava-next"}
    for path in READS:
        assert anonymous.get(path, headers=headers).status_code == 200
    assert anonymous.get(PROXIED, headers=headers).status_code == 404
    for method, path in (("DELETE", OWN_FACTS), ("POST", "/v1/sessions/cookie"), ("POST", "/api/fal/proxy")):
        check_refusal(anonymous.request(method, path, headers=headers), 403, "origin_not_allowed")
    check_refusal(anonymous.put(f"{PROXIED.removesuffix('status')}cancel", headers=headers), 403, "origin_not_allowed")
    assert stack.sandbox.requests() == []


def test_no_page_of_another_tenant_reads_own_facts(stack: Stack, anonymous: httpx.Client) -> None:
    """CORS would let it see the answer."""
    headers = {"cookie": stack.cookie(), "origin": "https://app.globex.example"}
    for path in READS:
        answer = anonymous.get(path, headers=headers)
        check_refusal(answer, 403, "origin_not_allowed")
        assert answer.headers["access-control-allow-origin"] == headers["origin"]
    two = [("cookie", stack.cookie()), ("origin", stack.other_origin), ("origin", "https://evil.example")]
    check_refusal(anonymous.get(OWN_FACTS, headers=two), 403, "origin_not_allowed")


# Where a session can be


def test_a_session_is_read_from_every_place_that_may_hold_it(stack: Stack, anonymous: httpx.Client) -> None:
    token = stack.token("alice")
    for headers in (
        {"authorization": f"Bearer {token}"},
        {"authorization": f"key {token}"},
        {"x-fal-proxy-session": token},
        {"cookie": f"other=1; fal_session={token}"},
    ):
        assert anonymous.get(OWN_FACTS, headers=headers).json()["subject"] == "alice"
    # The path is a place on the proxy's own address only.
    check_refusal(anonymous.get(f"/s/{token}/api/fal/proxy"), 400, "bad_target")
    check_refusal(anonymous.get(f"/s/{token}x/api/fal/proxy"), 401, "unauthenticated")


def test_a_wrong_credential_is_refused_even_if_another_one_is_right(stack: Stack, anonymous: httpx.Client) -> None:
    token = stack.token()
    two = (f"Bearer {token}, Key {token}", f"Bearer {token} x", f"Key {token}:{token}")
    # Only before a key, and only by this name, does something stand that is no part of the session.
    halves = (f"Bearer session:{token}", f"Key fal:{token}", f"Key session:session:{token}", "Key session:")
    for wrong in ("Bearer nonsense", "Basic YTpi", "Bearer", "", *two, *halves):
        headers = {"authorization": wrong, "x-fal-proxy-session": token, "cookie": f"fal_session={token}"}
        check_refusal(anonymous.get(OWN_FACTS, headers=headers), 401, "unauthenticated")
    twice = [("x-fal-proxy-session", token), ("x-fal-proxy-session", token)]
    check_refusal(anonymous.get(OWN_FACTS, headers=twice), 401, "unauthenticated")


# The end of a session


def test_a_session_expires(stack: Stack) -> None:
    with stack.client(stack.token(ttl_seconds=30)) as alice:
        assert alice.get(OWN_FACTS).status_code == 200
        stack.clock.advance(30)
        check_refusal(alice.get(OWN_FACTS), 401, "session_expired")


def test_a_session_revokes_itself_and_no_other(stack: Stack) -> None:
    with stack.client(stack.token("alice")) as one, stack.client(stack.token("alice")) as two:
        answer = one.delete(OWN_FACTS)
        assert answer.status_code == 204
        assert cookie_of(answer)["max-age"] == "0"
        check_refusal(one.get(OWN_FACTS), 401, "session_revoked")
        check_refusal(one.get(PROXIED), 401, "session_revoked")
        assert two.get(OWN_FACTS).status_code == 200


def test_a_tenant_key_cannot_revoke_itself_as_a_session(tenant: httpx.Client) -> None:
    check_refusal(tenant.delete(OWN_FACTS), 403, "not_allowed")
    assert tenant.get(OWN_FACTS).status_code == 200


def test_a_revocation_counts_at_every_proxy_of_the_same_database(sandbox: SandboxControl, tmp_path: Path) -> None:
    with proxy_in_front_of(sandbox, tmp_path) as first, proxy_in_front_of(sandbox, tmp_path) as second:
        token = second.token("alice")
        with first.client(token) as here, second.client(token) as there:
            assert (here.get(OWN_FACTS).status_code, there.get(OWN_FACTS).status_code) == (200, 200)
            assert here.delete(OWN_FACTS).status_code == 204
            # Five seconds later at the latest, by the other's clock.
            second.clock.advance(5)
            check_refusal(there.get(OWN_FACTS), 401, "session_revoked")


# The flood guard


def test_a_flood_of_guests_is_stopped(sandbox: SandboxControl, tmp_path: Path) -> None:
    with proxy_in_front_of(sandbox, tmp_path) as own, own.client("") as anonymous:
        answers = [anonymous.post("/v1/sessions/guest", headers={"origin": own.other_origin}) for _ in range(61)]
        assert [answer.status_code for answer in answers] == [201] * 60 + [429]
        body = check_refusal(answers[-1], 429, "rate_limited")
        assert body["scope"] == "ip" and body["retry_after"] >= 1
        assert answers[-1].headers["retry-after"] == str(body["retry_after"])
        assert answers[-1].headers["access-control-allow-origin"] == own.other_origin
        # Only this route is closed, the others still answer.
        with own.client() as alice:
            assert alice.get(OWN_FACTS).status_code == 200


_GUARDED = """
from slowapi.errors import RateLimitExceeded
from starlette.applications import Starlette
from starlette.requests import Request

from proxy.clock import SystemClock
from proxy.limits.rates import flood_guard

guard = flood_guard(SystemClock())

@guard.limit("2/hour")
def door(request: Request) -> None: ...

def visit() -> Request:
    return Request({"type": "http", "method": "GET", "path": "/", "headers": [], "client": None, "app": Starlette()})

for attempt in range(3):
    try:
        door(visit())
        print("open")
    except RateLimitExceeded:
        print("shut")
"""


def test_nothing_in_the_environment_or_the_folder_opens_the_flood_guard(tmp_path: Path) -> None:
    hostile = {
        "RATELIMIT_ENABLED": "false",
        "RATELIMIT_SWALLOW_ERRORS": "true",
        "RATELIMIT_STORAGE_URL": "redis://nowhere.invalid",
        "RATELIMIT_STORAGE_URI": "redis://nowhere.invalid",
        "RATELIMIT_DEFAULT": "9999/second",
        "RATELIMIT_STRATEGY": "fixed-window",
        "RATELIMIT_IN_MEMORY_FALLBACK_ENABLED": "true",
        "RATELIMIT_KEY_PREFIX": "x",
    }
    (tmp_path / ".env").write_text("".join(f"{name}={value}\n" for name, value in hostile.items()))
    environ = {**hostile, "PATH": os.environ["PATH"], "PYTHONWARNINGS": "ignore::DeprecationWarning"}
    done = subprocess.run([sys.executable, "-c", _GUARDED], env=environ, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == ["open", "open", "shut"], done.stderr
