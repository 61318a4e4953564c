"""How identity tokens end: they expire, are revoked, or their issuer is accepted no longer; as sessions do."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.auth.sessions import Sessions
from proxy.settings import Secret
from proxy.tenants.caller import Session
from proxy.tenants.identity import Identity
from tests.auth.conftest import accepting
from tests.auth.providers import AUTH0, KEYCLOAK
from tests.security.test_clock_steps import revoke_elsewhere
from tests.security.test_open_streams import events, model_stream
from tests.support.clock import MovableClock
from tests.support.issuer import KeyHost
from tests.support.limited import NEXT, asking, assert_refused_with, operating, plan
from tests.support.sandbox import SandboxControl
from tests.support.secrets import SECRET
from tests.support.stack import Stack

OWN_FACTS = "/v1/session"
HOUR = 3600


@pytest.fixture(scope="module")
def stack(
    shared_sandbox: SandboxControl,
    trusted_host: tuple[KeyHost, ssl.SSLContext],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Stack]:
    host, trust = trusted_host
    tenants = {"auth0": [AUTH0.identity(host)], "keycloak": [KEYCLOAK.identity(host)]}
    with accepting(shared_sandbox, tmp_path_factory.mktemp("ends"), trust, tenants) as stack:
        yield stack


@pytest.fixture
def proxy(stack: Stack, sandbox: SandboxControl) -> Stack:
    return stack


def status_of(proxy: Stack, token: str) -> int:
    with proxy.client(token) as http:
        return http.get(OWN_FACTS).status_code


def assert_refused(proxy: Stack, token: str, code: str) -> None:
    with proxy.client(token) as http:
        assert_refused_with(http.get(OWN_FACTS), 401, code)


def test_a_known_token_expires_after_the_leeway(proxy: Stack) -> None:
    token = AUTH0.token(proxy.clock.now())
    assert status_of(proxy, token) == 200
    proxy.clock.advance(HOUR + 59)
    assert status_of(proxy, token) == 200
    proxy.clock.advance(1)
    assert_refused(proxy, token, "invalid_token")


def test_an_open_stream_ends_when_its_token_expires(proxy: Stack) -> None:
    with proxy.client(AUTH0.token(proxy.clock.now())) as alice:
        of_model, of_job = model_stream(alice), events(alice)
        proxy.clock.advance(HOUR)
        of_model.assert_ended("session_expired")
        assert "error" not in of_job.names, "it reads a job, for which there is a grace period"
        proxy.clock.advance(600)
        of_job.assert_ended("session_expired")


def test_an_expired_token_reads_its_jobs_for_the_grace_period(proxy: Stack) -> None:
    now = proxy.clock.now()
    with proxy.client(AUTH0.token(now)) as alice, proxy.client(AUTH0.token(now, jti="never used before")) as again:
        job = alice.post("/v1/jobs", json={"endpoint": NEXT, "input": asking("?")}).json()["id"]
        assert "event: result" in alice.get(f"/v1/jobs/{job}/events").text
        proxy.clock.advance(HOUR + 599)
        for late in (alice, again):
            assert late.get(f"/v1/jobs/{job}/result").status_code == 200
            assert_refused_with(late.delete(f"/v1/jobs/{job}"), 401, "invalid_token")
            assert_refused_with(late.get("/v1/jobs"), 401, "invalid_token")
        proxy.clock.advance(1)
        for late in (alice, again):
            assert_refused_with(late.get(f"/v1/jobs/{job}/result"), 401, "invalid_token")


def test_a_token_lasts_no_longer_than_any_session(proxy: Stack) -> None:
    token = AUTH0.token(proxy.clock.now(), exp=int(proxy.clock.now()) + 365 * 86_400)
    assert status_of(proxy, token) == 200
    proxy.clock.advance(30 * 86_400 + 60)
    assert_refused(proxy, token, "invalid_token")


def test_a_revoked_token_is_that_token_alone(proxy: Stack) -> None:
    now = proxy.clock.now()
    lost, kept = AUTH0.token(now, jti="lost"), AUTH0.token(now, jti="kept")
    with proxy.client(lost) as http:
        stream = model_stream(http)
        assert http.delete(OWN_FACTS).status_code == 204
        stream.assert_ended("session_revoked")
    assert_refused(proxy, lost, "session_revoked")
    # The same claims under another header: what is signed of a user did not change.
    assert_refused(proxy, AUTH0.token(now, {"typ": None}, jti="lost"), "session_revoked")
    assert status_of(proxy, kept) == 200


def test_a_token_of_a_suspended_tenant_counts_again_when_it_is_resumed(proxy: Stack) -> None:
    token = AUTH0.token(proxy.clock.now())
    assert status_of(proxy, token) == 200
    with operating(proxy) as operator, proxy.client("") as app, proxy.client(token) as http:
        assert operator.post("/v1/admin/tenants/auth0/suspend").status_code == 200
        assert_refused_with(http.get(OWN_FACTS), 403, "tenant_suspended")
        assert_refused_with(app.post("/v1/sessions/exchange", json={"token": token}), 403, "tenant_suspended")
        assert operator.post("/v1/admin/tenants/auth0/resume").status_code == 200
        assert app.post("/v1/sessions/exchange", json={"token": token}).status_code == 201
    assert status_of(proxy, token) == 200


def test_a_token_does_not_count_for_a_tenant_that_gets_the_name(
    sandbox: SandboxControl, trusted_host: tuple[KeyHost, ssl.SSLContext], tmp_path: Path
) -> None:
    host, trust = trusted_host
    identity = [AUTH0.identity(host)]
    with accepting(sandbox, tmp_path, trust, {"auth0": identity}) as proxy, operating(proxy) as operator:
        old = AUTH0.token(proxy.clock.now())
        assert status_of(proxy, old) == 200
        assert operator.delete("/v1/admin/tenants/auth0").status_code == 200
        assert_refused(proxy, old, "invalid_token")
        again = {
            "plans": {"free": plan(), "paid": plan()},
            "tenants": [{"id": "auth0", "plan": "free", "identity": identity}],
        }
        assert operator.put("/v1/admin/tenants", json=again).status_code == 200
        assert_refused(proxy, old, "session_revoked")
        proxy.clock.advance(1)
        assert status_of(proxy, AUTH0.token(proxy.clock.now())) == 200


def test_a_user_who_was_signed_out_needs_a_newer_token(proxy: Stack) -> None:
    old, skewed = AUTH0.token(proxy.clock.now()), AUTH0.token(proxy.clock.now() + 30)
    assert status_of(proxy, old) == status_of(proxy, skewed) == 200
    with operating(proxy) as operator:
        form = {"tenant": "auth0", "subject": AUTH0.subject}
        assert operator.request("DELETE", "/v1/admin/sessions", json=form).status_code == 204
    assert_refused(proxy, old, "session_revoked")
    assert_refused(proxy, skewed, "session_revoked")
    proxy.clock.advance(60)
    assert status_of(proxy, AUTH0.token(proxy.clock.now())) == 200


def test_a_token_that_another_process_has_revoked_is_not_exchanged(proxy: Stack) -> None:
    """A session that was minted after the revocation would outlive it."""
    proxy.clock.advance(60)
    token = AUTH0.token(proxy.clock.now())
    assert status_of(proxy, token) == 200
    asyncio.run(revoke_elsewhere(proxy, "auth0", AUTH0.subject))
    with proxy.client("") as anonymous:
        answer = anonymous.post("/v1/sessions/exchange", json={"token": token})
        assert_refused_with(answer, 401, "session_revoked")


def apply(proxy: Stack, tenant: str, identity: list[dict[str, Any]]) -> None:
    plans = {"free": plan(endpoints=[NEXT]), "paid": plan(session_ttl_seconds=900)}
    file = {"plans": plans, "tenants": [{"id": tenant, "plan": "free", "identity": identity}]}
    with operating(proxy) as operator:
        assert operator.put("/v1/admin/tenants", json=file).status_code == 200


def test_the_tokens_of_an_issuer_end_with_its_entry(proxy: Stack, host: KeyHost) -> None:
    token = KEYCLOAK.token(proxy.clock.now())
    with proxy.client(token) as alice, proxy.client("") as anonymous:
        stream = model_stream(alice)
        session = anonymous.post("/v1/sessions/exchange", json={"token": token}).json()["token"]
        apply(proxy, "keycloak", [])
        stream.assert_ended("invalid_token")
    assert_refused(proxy, token, "invalid_token")
    assert status_of(proxy, session) == 200
    apply(proxy, "keycloak", [KEYCLOAK.identity(host)])
    assert status_of(proxy, token) == 200


def test_a_changed_entry_counts_for_known_tokens(proxy: Stack, host: KeyHost) -> None:
    token = KEYCLOAK.token(proxy.clock.now())
    with proxy.client(token) as alice:
        assert len(alice.get(OWN_FACTS).json()["endpoints"]) == 2
        changed = {**KEYCLOAK.identity(host), "plans": {"claim": "azp", "map": {"web": "free"}}}
        apply(proxy, "keycloak", [changed])
        assert alice.get(OWN_FACTS).json()["endpoints"] == [NEXT]
        apply(proxy, "keycloak", [KEYCLOAK.identity(host)])


def test_a_right_token_is_accepted_from_an_address_with_too_many_refusals(
    sandbox: SandboxControl, trusted_host: tuple[KeyHost, ssl.SSLContext], tmp_path: Path
) -> None:
    host, trust = trusted_host
    few = {"PROXY_REFUSALS_PER_ADDRESS": "3/minute"}
    with accepting(sandbox, tmp_path, trust, {"auth0": [AUTH0.identity(host)]}, few) as proxy:
        known, unknown = AUTH0.token(proxy.clock.now(), jti="1"), AUTH0.token(proxy.clock.now(), jti="2")
        forged = f"{unknown.rpartition('.')[0]}.{known.rpartition('.')[2]}"
        assert status_of(proxy, known) == 200
        use_up_refusals(proxy)
        assert [status_of(proxy, token) for token in (known, unknown, forged)] == [200, 200, 429]
        proxy.clock.advance(HOUR + 60)
        use_up_refusals(proxy)
        assert [status_of(proxy, token) for token in (known, unknown)] == [429, 429]


def use_up_refusals(proxy: Stack) -> None:
    with proxy.client("") as anonymous:
        for _ in range(3):
            assert_refused_with(anonymous.get(OWN_FACTS), 401, "unauthenticated")
        assert_refused_with(anonymous.get(OWN_FACTS), 429, "rate_limited", "ip")


def test_new_secrets_for_sessions_leave_tokens_alone() -> None:
    """Streams end whose session is no longer signed; the issuer has signed a token."""
    sessions = Sessions((Secret(SECRET),), MovableClock())
    identity = Identity(issuer=AUTH0.issuer, audience="acme", jwks_url="https://idp.example/keys")  # type: ignore[arg-type]
    assert sessions.is_signed(Session("jwt_1", "auth0", "alice", 0.0, 9e9, identity=identity))
    assert not sessions.is_signed(Session("s-1", "auth0", "alice", 0.0, 9e9, signed_with="a secret that was"))
