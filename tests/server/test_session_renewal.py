"""`POST /v1/sessions/renew`: the same session with more time, never more than its plan lets one last."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from datetime import datetime
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.auth.sessions import Sessions
from tests.support.limited import COUNTING, NEXT, asking, assert_refused_with, limited_proxy, operating, per, plan
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack, proxy_in_front_of

RENEW, OWN_FACTS = "/v1/sessions/renew", "/v1/session"
ORIGIN = "https://app.acme.example"
TTL, MAX_AGE, GRACE = 600, 1500, 600
PLANS = {
    "acme": plan(
        session_ttl_seconds=TTL, max_session_age_seconds=MAX_AGE, quotas=[per("subject", "requests", 3, "month")]
    ),
    "long": plan(session_ttl_seconds=3600, max_session_age_seconds=600),
    "limited": plan(rate_limits={"ip": None, "session": "2/hour", "subject": None, "tenant": None}),
}
TENANTS = {"acme": {"allowed_origins": [ORIGIN], "guests": {"enabled": True, "per_address": None, "share": 1.0}}}


@pytest.fixture(scope="module")
def shared_proxy(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with limited_proxy(shared_sandbox, tmp_path_factory.mktemp("renewal"), PLANS, tenants=TENANTS) as stack:
        yield stack


@pytest.fixture
def proxy(shared_proxy: Stack, sandbox: SandboxControl) -> Stack:
    return shared_proxy


def renew(proxy: Stack, token: str) -> dict[str, Any]:
    with proxy.client(token) as client:
        answer = client.post(RENEW)
    assert answer.status_code == 201, answer.text
    body: dict[str, Any] = answer.json()
    return body


def seconds_left(proxy: Stack, session: dict[str, Any]) -> float:
    return datetime.fromisoformat(session["expires_at"]).timestamp() - proxy.clock.now()


def cookie_of(answer: httpx.Response) -> Any:
    (header,) = answer.headers.get_list("set-cookie")
    return next(iter(SimpleCookie(header).values()))


def test_a_renewed_session_lasts_longer_and_is_the_same_otherwise(proxy: Stack) -> None:
    token = proxy.token("alice", endpoints=[NEXT], ttl_seconds=TTL)
    proxy.clock.advance(400)
    session = renew(proxy, token)
    assert set(session) == {"id", "token", "expires_at", "subject", "endpoints"}
    assert (session["subject"], session["endpoints"], seconds_left(proxy, session)) == ("alice", [NEXT], TTL)
    sessions = Sessions(proxy.settings.sessions.secrets, proxy.clock)
    before, after = sessions.verify(token), sessions.verify(session["token"])
    assert (after.id, after.tenant, after.issued_at) == (session["id"], before.tenant, before.issued_at)
    assert before.id == session["id"]
    proxy.clock.advance(300)
    with proxy.client(token) as old, proxy.client(session["token"]) as new:
        assert_refused_with(old.get(OWN_FACTS), 401, "session_expired")
        facts = new.get(OWN_FACTS).json()
        assert (facts["tenant"], facts["endpoints"], facts["expires_at"]) == ("acme", [NEXT], session["expires_at"])
        assert_refused_with(new.post(f"/fal/run/{COUNTING}", json={}), 403, "endpoint_not_allowed")


def test_a_renewal_keeps_to_what_the_session_was_minted_for(proxy: Stack) -> None:
    """A backend that mints for a minute does not want what lasts for ten."""
    token = proxy.token("brief", ttl_seconds=60)
    for _ in range(3):
        proxy.clock.advance(50)
        session = renew(proxy, token)
        assert seconds_left(proxy, session) == 60
        token = session["token"]


def test_no_renewal_goes_beyond_the_age_that_the_plan_allows(proxy: Stack) -> None:
    token, began = proxy.token("old", ttl_seconds=TTL), proxy.clock.now()
    ends = []
    for _ in range(3):
        proxy.clock.advance(500)
        session = renew(proxy, token)
        token = session["token"]
        ends.append(proxy.clock.now() + seconds_left(proxy, session) - began)
        if ends[-1] == MAX_AGE:
            break
    assert ends == [1100, MAX_AGE]
    with proxy.client(token) as client:
        body = assert_refused_with(client.post(RENEW), 403, "not_allowed")
        assert f"{MAX_AGE} seconds" in body["detail"] and "new one" in body["detail"]
        assert client.get(OWN_FACTS).status_code == 200


def test_a_session_that_already_lasts_longer_cannot_be_renewed(proxy: Stack) -> None:
    with proxy.client(proxy.token("alice", tenant="long", ttl_seconds=3600)) as client:
        assert_refused_with(client.post(RENEW), 403, "not_allowed")
        assert client.get(OWN_FACTS).status_code == 200


def test_a_renewal_never_shortens_a_session(proxy: Stack) -> None:
    """Minted before the plan's own lifetime was lowered."""
    token = proxy.token("lucky", ttl_seconds=1200)
    assert seconds_left(proxy, renew(proxy, token)) == 1200
    proxy.clock.advance(900)
    assert seconds_left(proxy, renew(proxy, token)) == TTL


def test_quotas_and_rate_limits_go_on(proxy: Stack) -> None:
    token = proxy.token("spender", ttl_seconds=TTL)
    with proxy.client(token) as client:
        assert client.post(f"/fal/run/{NEXT}", json=asking("?")).status_code == 200
    with proxy.client(renew(proxy, token)["token"]) as client:
        (quota,) = client.get(OWN_FACTS).json()["quotas"]
        assert (quota["used"], quota["left"]) == (1, 2)
    hasty = proxy.token("hasty", tenant="limited", ttl_seconds=TTL)
    for _ in range(2):
        with proxy.client(hasty) as client:
            assert client.post(f"/fal/run/{NEXT}", json=asking("?")).status_code == 200
        hasty = renew(proxy, hasty)["token"]
    with proxy.client(hasty) as client:
        assert_refused_with(client.post(f"/fal/run/{NEXT}", json=asking("?")), 429, "rate_limited", "session")


# Revocation


@pytest.mark.parametrize("by", ["itself", "old-token", "operator-by-subject"])
def test_a_revocation_ends_every_renewal(proxy: Stack, by: str) -> None:
    old = proxy.token(f"mallory-{by}", ttl_seconds=TTL)
    proxy.clock.advance(300)
    new = renew(proxy, old)["token"]
    if by == "operator-by-subject":
        form = {"tenant": "acme", "subject": f"mallory-{by}"}
        with operating(proxy) as operator:
            assert operator.request("DELETE", "/v1/admin/sessions", json=form).status_code == 204
    else:
        with proxy.client(new if by == "itself" else old) as client:
            assert client.delete(OWN_FACTS).status_code == 204
    for token in (old, new):
        with proxy.client(token) as client:
            assert_refused_with(client.get(OWN_FACTS), 401, "session_revoked")
            assert_refused_with(client.post(RENEW), 401, "session_revoked")


def test_a_process_that_missed_the_revocation_renews_to_nothing(sandbox: SandboxControl, tmp_path: Path) -> None:
    """For four seconds it may not know. What it gives then is as old as the session, and so it is revoked too."""
    with proxy_in_front_of(sandbox, tmp_path) as first, proxy_in_front_of(sandbox, tmp_path) as second:
        token = first.token("alice", ttl_seconds=TTL)
        with first.client(token) as here, second.client(token) as there:
            assert there.get(OWN_FACTS).status_code == 200
            assert here.delete(OWN_FACTS).status_code == 204
            new = there.post(RENEW).json()["token"]
            second.clock.advance(5)
        with second.client(new) as client:
            assert_refused_with(client.get(OWN_FACTS), 401, "session_revoked")


def test_a_revocation_by_an_old_token_outlives_the_newest(proxy: Stack) -> None:
    """Revocations are forgotten once nothing that they concern can be alive, renewals and the grace period included."""
    old = proxy.token("eve", ttl_seconds=TTL)
    proxy.clock.advance(TTL - 1)
    renew(proxy, old)
    with proxy.client(old) as client:
        assert client.delete(OWN_FACTS).status_code == 204
    (until,) = revocations_until(proxy, old)
    assert until > proxy.clock.now() + TTL + GRACE


def revocations_until(proxy: Stack, token: str) -> list[float]:
    session = Sessions(proxy.settings.sessions.secrets, proxy.clock).verify(token)
    path = proxy.settings.stores.database_url.reveal().removeprefix("sqlite:///")
    with contextlib.closing(sqlite3.connect(path, timeout=30)) as database:
        rows = database.execute("SELECT expires_at FROM revocations WHERE session_id = ?", [session.id])
        return [until for (until,) in rows]


# Refusals


def test_an_expired_session_is_not_renewed(proxy: Stack) -> None:
    """Nor in the grace period, in which it reads its jobs."""
    token = proxy.token("alice", ttl_seconds=60)
    proxy.clock.advance(60)
    with proxy.client(token) as client:
        assert_refused_with(client.post(RENEW), 401, "session_expired")


def test_a_credential_that_is_no_session_is_not_renewed(proxy: Stack) -> None:
    with proxy.client(proxy.tenant_key()) as backend, proxy.client("") as stranger:
        assert "POST /v1/sessions" in assert_refused_with(backend.post(RENEW), 403, "not_allowed")["detail"]
        assert_refused_with(stranger.post(RENEW), 401, "unauthenticated")
        assert_refused_with(stranger.post(RENEW, headers={"authorization": "Bearer nonsense"}), 401, "unauthenticated")


def test_a_renewal_accepts_no_fields(proxy: Stack) -> None:
    with proxy.client(proxy.token("alice", ttl_seconds=TTL)) as client:
        assert client.post(RENEW, json={}).status_code == 201
        for wish in ({"ttl_seconds": 9000}, {"subject": "bob"}, {"endpoints": []}):
            assert assert_refused_with(client.post(RENEW, json=wish), 400, "bad_request")["detail"].startswith(
                next(iter(wish))
            )
        assert_refused_with(
            client.post(RENEW, content=b"{", headers={"content-type": "application/json"}), 400, "bad_request"
        )


def test_renewals_of_an_address_have_the_limit_of_minting(sandbox: SandboxControl, tmp_path: Path) -> None:
    with limited_proxy(sandbox, tmp_path, {"acme": plan()}) as own, own.client(own.token(ttl_seconds=TTL)) as client:
        answers = [client.post(RENEW) for _ in range(1201)]
        assert [answer.status_code for answer in answers] == [201] * 1200 + [429]
        assert_refused_with(answers[-1], 429, "rate_limited", "ip")


# The cookie, and guests


def test_a_session_in_the_cookie_is_renewed_there_and_not_shown_to_the_page(proxy: Stack) -> None:
    token = proxy.token("alice", ttl_seconds=TTL)
    proxy.clock.advance(500)
    with proxy.client("") as page:
        headers = {"cookie": proxy.cookie(token), "origin": ORIGIN}
        answer = page.post(RENEW, headers=headers)
        cookie = cookie_of(answer)
        assert answer.status_code == 201 and "token" not in answer.json()
        assert (answer.json()["subject"], seconds_left(proxy, answer.json())) == ("alice", TTL)
        assert (cookie.key, cookie["httponly"], cookie["max-age"]) == (proxy.cookie_name, True, str(TTL + GRACE))
        proxy.clock.advance(300)
        facts = page.get(OWN_FACTS, headers={"cookie": f"{cookie.key}={cookie.value}", "origin": ORIGIN})
        assert facts.json()["expires_at"] == answer.json()["expires_at"]


def test_a_session_in_a_header_is_given_back_and_sets_no_cookie(proxy: Stack) -> None:
    token = proxy.token("alice", ttl_seconds=TTL)
    with proxy.client("") as client:
        answer = client.post(RENEW, headers={"x-fal-proxy-session": token})
    assert answer.status_code == 201 and answer.json()["token"]
    assert "set-cookie" not in answer.headers


def test_a_foreign_page_renews_no_cookie(proxy: Stack) -> None:
    with proxy.client("") as page:
        for headers in ({"origin": "https://evil.example"}, {}):
            answer = page.post(RENEW, headers={"cookie": proxy.cookie(proxy.token(ttl_seconds=TTL)), **headers})
            assert_refused_with(answer, 403, "origin_not_allowed")
            assert "set-cookie" not in answer.headers


def test_a_guest_stays_the_same_guest(proxy: Stack) -> None:
    with proxy.client("") as page:
        guest = page.post("/v1/sessions/guest", headers={"origin": ORIGIN}).json()
    proxy.clock.advance(300)
    session = renew(proxy, guest["token"])
    assert session["subject"] == guest["subject"] and seconds_left(proxy, session) == TTL
    with proxy.client(session["token"]) as client:
        assert client.get(OWN_FACTS).json()["guest"] is True
