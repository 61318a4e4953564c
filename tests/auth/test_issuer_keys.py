"""The keys of issuers: fetched once for all, kept through an outage, looked for again, and never from inside."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from proxy.auth.issuer_keys import FRESH_SECONDS, KEPT_SECONDS, PAUSE_SECONDS, RETRY_SECONDS, RemoteKeys
from proxy.auth.key_fetcher import KeyFetcher
from proxy.tenants.key_set import MAX_BYTES
from tests.auth.conftest import accepting
from tests.support.clock import MovableClock
from tests.support.issuer import KeyHost, PrivateKey, private_key, public_jwk, sign
from tests.support.limited import ADMIN_TOKEN, NEXT, assert_refused_with, operating, plan
from tests.support.sandbox import SandboxControl
from tests.support.servers import free_port, running
from tests.support.stack import Stack, proxy_in_front_of
from tests.support.waiting import wait_until

_numbers = itertools.count(1)
ONE, TWO = private_key("one"), private_key("two")


@pytest.fixture(scope="module")
def stack(
    shared_sandbox: SandboxControl,
    trusted_host: tuple[KeyHost, ssl.SSLContext],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Stack]:
    with accepting(shared_sandbox, tmp_path_factory.mktemp("keys"), trusted_host[1], {}) as stack:
        yield stack


@pytest.fixture
def proxy(stack: Stack, sandbox: SandboxControl) -> Stack:
    return stack


@dataclass
class Issuer:
    """An issuer of one test, whose tokens a tenant of its own accepts."""

    proxy: Stack
    host: KeyHost
    name: str

    @property
    def url(self) -> str:
        return f"https://{self.name}.example"

    @property
    def asked(self) -> int:
        return self.host.asked.get(self.name, 0)

    def publish(self, *keys: dict[str, Any]) -> None:
        self.host.publish(self.name, *(keys or (public_jwk(ONE, kid="one"),)))

    def answers(self, answer: Callable[[Request], Any]) -> None:
        self.host.answers[self.name] = answer

    def accept(self, **more: Any) -> None:
        """Let a tenant accept it."""
        entry = {"issuer": self.url, "audience": "acme", "jwks_url": f"{self.host.url}/{self.name}", **more}
        apply(self.proxy, self.name, [{name: value for name, value in entry.items() if value is not None}])

    def token(self, key: PrivateKey = ONE, kid: str | None = "one", algorithm: str = "RS256", **more: Any) -> str:
        now = int(self.proxy.clock.now())
        header = {"alg": algorithm, "typ": "JWT"} | ({} if kid is None else {"kid": kid})
        # A token that was not sent before, so that it has to be verified.
        number = {"jti": str(next(_numbers))}
        claims = {"iss": self.url, "aud": "acme", "sub": "alice", "iat": now, "exp": now + 2 * 86_400, **number, **more}
        return sign(header, claims, key)

    def call(self, token: str | None = None) -> httpx.Response:
        with self.proxy.client(token or self.token()) as http:
            return http.get("/v1/session")

    def assert_unavailable(self, retry_after: int | None = None) -> None:
        body = assert_refused_with(self.call(), 503, "identity_unavailable")
        assert retry_after is None or body["retry_after"] == retry_after

    def assert_accepts(self, token: str | None = None) -> None:
        answer = self.call(token)
        assert answer.status_code == 200, answer.text


def apply(proxy: Stack, tenant: str, identity: list[dict[str, Any]]) -> None:
    file = {
        "plans": {"free": plan(endpoints=[NEXT])},
        "tenants": [{"id": tenant, "plan": "free", "identity": identity}],
    }
    with operating(proxy) as operator:
        assert operator.put("/v1/admin/tenants", json=file).status_code == 200


@pytest.fixture
def issuer(proxy: Stack, host: KeyHost) -> Issuer:
    issuer = Issuer(proxy, host, f"issuer-{next(_numbers)}")
    issuer.publish()
    issuer.accept()
    return issuer


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What holds an answer back until the test lets it go, or ends."""
    gate = threading.Event()
    yield gate
    gate.set()


def held_by(gate: threading.Event, *keys: dict[str, Any]) -> Callable[[Request], Any]:
    async def answer(_: Request) -> Response:
        await asyncio.to_thread(gate.wait, 60)
        return Response(json.dumps({"keys": keys}))

    return answer


# --- when they are fetched


def test_one_fetch_serves_all_waiting_callers(issuer: Issuer, gate: threading.Event) -> None:
    issuer.answers(held_by(gate, public_jwk(ONE, kid="one")))
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(issuer.call, issuer.token()) for _ in range(8)]
        wait_until(lambda: issuer.asked, "the keys were not asked for")
        gate.set()
        assert [call.result().status_code for call in calls] == [200] * 8
    issuer.assert_accepts()
    assert issuer.asked == 1


def test_calls_of_others_do_not_wait(issuer: Issuer, proxy: Stack, host: KeyHost, gate: threading.Event) -> None:
    other = Issuer(proxy, host, f"issuer-{next(_numbers)}")
    other.publish()
    other.accept()
    issuer.answers(held_by(gate, public_jwk(ONE, kid="one")))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(issuer.call)
        wait_until(lambda: issuer.asked, "the keys were not asked for")
        other.assert_accepts()
        with proxy.client(proxy.token(tenant=issuer.name)) as session:
            assert session.get("/v1/session").status_code == 200
        assert not waiting.done()
        gate.set()
        assert waiting.result().status_code == 200


def test_a_long_fetch_is_not_begun_twice(issuer: Issuer, gate: threading.Event) -> None:
    issuer.answers(held_by(gate, public_jwk(ONE, kid="one")))
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(issuer.call)]
        wait_until(lambda: issuer.asked, "the keys were not asked for")
        issuer.proxy.clock.advance(RETRY_SECONDS)
        with issuer.proxy.client(issuer.token()) as impatient, pytest.raises(httpx.ReadTimeout):
            impatient.get("/v1/session", timeout=0.5)
        calls.append(pool.submit(issuer.call))
        gate.set()
        assert [call.result().status_code for call in calls] == [200, 200]
    assert issuer.asked == 1


@pytest.mark.anyio
async def test_a_caller_who_stops_waiting_does_not_cancel_the_fetch() -> None:
    may_answer = asyncio.Event()

    async def fetch_when_it_may(_: str) -> bytes:
        await may_answer.wait()
        return json.dumps({"keys": [public_jwk(ONE, kid="one")]}).encode()

    keys = RemoteKeys("https://idp.example/keys", fetch_when_it_may, MovableClock())
    leaving, staying = asyncio.create_task(keys.get()), asyncio.create_task(keys.get())
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait({leaving})
    may_answer.set()
    assert (await staying).find("one", "RS256")


def test_a_token_is_verified_once(issuer: Issuer) -> None:
    token = issuer.token()
    issuer.assert_accepts(token)
    issuer.answers(lambda _: Response(status_code=500))
    issuer.proxy.clock.advance(KEPT_SECONDS + 1)
    issuer.assert_accepts(token)
    issuer.assert_unavailable()


def test_old_keys_are_fetched_again_while_calls_go_on(issuer: Issuer, gate: threading.Event) -> None:
    issuer.assert_accepts()
    issuer.answers(held_by(gate, public_jwk(ONE, kid="one"), public_jwk(TWO, kid="two")))
    issuer.proxy.clock.advance(FRESH_SECONDS - 1)
    issuer.assert_accepts()
    assert issuer.asked == 1
    issuer.proxy.clock.advance(1)
    issuer.assert_accepts()
    wait_until(lambda: issuer.asked == 2, "the keys were not asked for again")
    gate.set()
    wait_until(lambda: issuer.call(issuer.token(TWO, "two")).status_code == 200, "the new keys do not count")
    assert issuer.asked == 2


# --- keys that come and go


def test_a_new_key_is_found_at_once(issuer: Issuer) -> None:
    issuer.assert_accepts()
    issuer.proxy.clock.advance(PAUSE_SECONDS)
    issuer.publish(public_jwk(ONE, kid="one"), public_jwk(TWO, kid="two"))
    issuer.assert_accepts(issuer.token(TWO, "two"))
    assert issuer.asked == 2


def test_unknown_keys_cause_one_fetch_in_thirty_seconds(issuer: Issuer) -> None:
    issuer.assert_accepts()
    for pause, asked in ((0.0, 1), (PAUSE_SECONDS - 1, 1), (1.0, 2), (0.0, 2)):
        issuer.proxy.clock.advance(pause)
        for kid in ("two", "three"):
            assert_refused_with(issuer.call(issuer.token(TWO, kid)), 401, "invalid_token")
        assert issuer.asked == asked
    issuer.assert_accepts()


def test_a_clock_that_is_set_back_keeps_no_new_key_out(issuer: Issuer) -> None:
    issuer.assert_accepts()
    issuer.proxy.clock.advance(-3600)
    issuer.publish(public_jwk(ONE, kid="one"), public_jwk(TWO, kid="two"))
    issuer.assert_accepts(issuer.token(TWO, "two"))
    assert issuer.asked == 2


def test_a_clock_that_is_set_back_keeps_no_withdrawn_key(issuer: Issuer) -> None:
    issuer.publish(public_jwk(ONE, kid="one"), public_jwk(TWO, kid="two"))
    issuer.assert_accepts()
    issuer.publish(public_jwk(TWO, kid="two"))
    issuer.proxy.clock.advance(-3600)
    wait_until(lambda: issuer.call(issuer.token()).status_code == 401, "the key still counts")


def test_a_clock_that_is_set_back_ends_no_outage_later(issuer: Issuer) -> None:
    issuer.answers(lambda _: Response(status_code=500))
    issuer.assert_unavailable()
    issuer.proxy.clock.advance(-3600)
    issuer.publish()
    issuer.assert_accepts()


def test_tokens_of_a_withdrawn_key_are_refused(issuer: Issuer) -> None:
    issuer.publish(public_jwk(ONE, kid="one"), public_jwk(TWO, kid="two"))
    stolen, good = issuer.token(), issuer.token(TWO, "two")
    issuer.assert_accepts(stolen)
    issuer.assert_accepts(good)
    issuer.publish(public_jwk(TWO, kid="two"))
    issuer.proxy.clock.advance(FRESH_SECONDS)
    issuer.assert_accepts(issuer.token(TWO, "two"))
    wait_until(lambda: issuer.call(stolen).status_code == 401, "the key still counts")
    issuer.assert_accepts(good)


def test_two_keys_of_one_name_both_count(issuer: Issuer) -> None:
    issuer.publish(public_jwk(ONE, kid="same"), public_jwk(TWO, kid="same"))
    for key in (ONE, TWO):
        issuer.assert_accepts(issuer.token(key, "same"))
    body = assert_refused_with(issuer.call(issuer.token(private_key("evil"), "same")), 401, "invalid_token")
    assert "signature" in body["detail"]


def test_a_token_without_a_name_for_its_key_has_few_keys_tried(issuer: Issuer) -> None:
    four = [public_jwk(private_key(name), kid=name) for name in ("one", "two", "three", "four")]
    issuer.publish(*four, public_jwk(private_key("curve", "P-256"), kid="curve"))
    issuer.assert_accepts(issuer.token(private_key("four"), None))
    issuer.publish(*four, public_jwk(private_key("five"), kid="five"))
    issuer.proxy.clock.advance(FRESH_SECONDS)
    issuer.call()
    wait_until(lambda: issuer.call(issuer.token(kid="five")).status_code == 401, "the new keys do not count")
    assert "kid" in assert_refused_with(issuer.call(issuer.token(kid=None)), 401, "invalid_token")["detail"]
    issuer.assert_accepts(issuer.token(private_key("five"), "five"))


ALGORITHMS = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), "RSA"),
    "ES256": "P-256",
    "ES384": "P-384",
    "ES512": "P-521",
    "EdDSA": "Ed25519",
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_counts_by_keys_in_the_tenant_itself(issuer: Issuer, algorithm: str) -> None:
    key = private_key("algorithms", ALGORITHMS[algorithm])
    local = {"keys": [public_jwk(key, kid="local", alg=algorithm)]}
    issuer.accept(jwks_url=None, jwks=local, algorithms=[algorithm])
    issuer.assert_accepts(issuer.token(key, "local", algorithm))
    assert_refused_with(
        issuer.call(issuer.token(private_key("evil", ALGORITHMS[algorithm]), "local", algorithm)), 401, "invalid_token"
    )
    assert_refused_with(issuer.call(issuer.token(key, "other", algorithm)), 401, "invalid_token")
    assert issuer.asked == 0


def test_the_admin_api_reads_no_files(proxy: Stack) -> None:
    entry = {"issuer": "https://a.example", "audience": "a", "jwks_file": "/etc/passwd"}
    file = {"plans": {"free": plan()}, "tenants": [{"id": "files", "plan": "free", "identity": [entry]}]}
    with operating(proxy) as operator:
        assert (
            "jwks_file"
            in assert_refused_with(operator.put("/v1/admin/tenants", json=file), 400, "bad_request")["detail"]
        )


# --- what goes wrong


def compress(_: Request) -> Response:
    body = gzip.compress(json.dumps({"keys": [public_jwk(ONE, kid="one")]}).encode())
    return Response(body, headers={"content-encoding": "gzip"})


def of_keys(*keys: Any) -> Callable[[Request], Response]:
    return lambda _: Response(json.dumps({"keys": keys}))


WRONG: dict[str, tuple[Callable[[Request], Any], str]] = {
    "a failure": (lambda _: Response(status_code=500), "the answer is 500"),
    "nothing there": (lambda _: Response(status_code=404), "the answer is 404"),
    "a page": (lambda _: Response("<html>", media_type="text/html"), ""),
    "another document": (lambda _: Response("[]"), "is not a JWK Set"),
    "no list": (lambda _: Response('{"keys": {}}'), "is not a JWK Set"),
    "no key": (of_keys(), "no key that verifies"),
    "keys of others": (of_keys(public_jwk(ONE, kid="one", use="enc")), "no key that verifies"),
    "a private key": (of_keys(public_jwk(ONE, kid="one"), {"kty": "RSA", "d": "AQAB"}), "private key"),
    "a key without a list of uses": (
        of_keys({**public_jwk(ONE, kid="one"), "key_ops": None}),
        "no key that verifies",
    ),
    "too many keys": (of_keys(*[public_jwk(ONE, kid="one")] * 101), "at most 100"),
    "too large": (of_keys(public_jwk(ONE, kid="one"), "a" * MAX_BYTES), f"more than {MAX_BYTES} bytes"),
    "compressed": (compress, "compressed"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_answer_is_refused_and_a_later_right_one_is_used(
    issuer: Issuer, caplog: pytest.LogCaptureFixture, wrong: str
) -> None:
    answer, problem = WRONG[wrong]
    issuer.answers(answer)
    issuer.assert_unavailable(int(RETRY_SECONDS))
    (record,) = [one for one in caplog.records if one.message == "key set not fetched"]
    fields = record.log_fields  # type: ignore[attr-defined]
    assert fields["host"] == "localhost" and problem in fields["problem"]
    issuer.publish()
    issuer.assert_unavailable()
    assert issuer.asked == 1, "it was asked again within a moment"
    issuer.proxy.clock.advance(RETRY_SECONDS)
    issuer.assert_accepts()
    assert issuer.asked == 2


def test_a_malformed_key_does_not_shut_out_the_others(issuer: Issuer) -> None:
    strange = [{**public_jwk(TWO, kid="two"), "key_ops": uses} for uses in (7, None, {"verify": True}, "verify")]
    issuer.answers(of_keys(*strange, 7, {"kty": ["RSA"]}, public_jwk(ONE, kid="one")))
    issuer.assert_accepts()
    assert_refused_with(issuer.call(issuer.token(TWO, "two")), 401, "invalid_token")


def test_a_server_that_is_down_is_asked_again(issuer: Issuer) -> None:
    issuer.accept(jwks_url=f"https://localhost:{free_port()}/{issuer.name}")
    issuer.assert_unavailable(int(RETRY_SECONDS))
    issuer.accept()
    issuer.assert_accepts()


def test_a_redirect_is_not_followed(issuer: Issuer) -> None:
    elsewhere = f"{issuer.name}-elsewhere"
    issuer.host.publish(elsewhere, public_jwk(ONE, kid="one"))
    issuer.answers(lambda _: RedirectResponse(f"/{elsewhere}"))
    issuer.assert_unavailable()
    assert elsewhere not in issuer.host.asked


def test_keys_count_for_a_day_of_an_outage(issuer: Issuer) -> None:
    issuer.assert_accepts()
    issuer.answers(lambda _: Response(status_code=500))
    for seconds in (FRESH_SECONDS, PAUSE_SECONDS - 1, 1.0, KEPT_SECONDS - FRESH_SECONDS - PAUSE_SECONDS - 1):
        issuer.proxy.clock.advance(seconds)
        issuer.assert_accepts()
        settle(issuer)
    issuer.proxy.clock.advance(1)
    issuer.assert_unavailable()
    issuer.publish()
    issuer.proxy.clock.advance(RETRY_SECONDS)
    issuer.assert_accepts()


def settle(issuer: Issuer) -> None:
    """Wait for what was begun in the background: nothing asks again before the clock is moved."""
    before = -1
    while before != issuer.asked:
        before = issuer.asked
        issuer.assert_accepts()


def test_an_unknown_key_during_an_outage_is_no_fault_of_the_token(issuer: Issuer) -> None:
    issuer.assert_accepts()
    issuer.answers(lambda _: Response(status_code=500))
    issuer.proxy.clock.advance(PAUSE_SECONDS)
    for seconds in (0, 10):
        issuer.proxy.clock.advance(seconds)
        body = assert_refused_with(issuer.call(issuer.token(TWO, "two")), 503, "identity_unavailable")
        assert body["retry_after"] == PAUSE_SECONDS - seconds
    assert issuer.asked == 2
    issuer.assert_accepts()


# --- where they may be


#: One loop for all fetches: connections that were given up end in it, some of them after the fetch.
_runner = asyncio.Runner()


@pytest.fixture(scope="module", autouse=True)
def close_runner() -> Iterator[None]:
    yield
    _runner.run(asyncio.sleep(0.2))
    _runner.close()


def fetch(url: str, trust: ssl.SSLContext | None, *networks: str, **more: Any) -> bytes:
    return _runner.run(KeyFetcher(networks, trust, **more).fetch(url))


def test_a_slow_answer_is_given_up(trusted_host: tuple[KeyHost, ssl.SSLContext], gate: threading.Event) -> None:
    host, trust = trusted_host
    host.answers["slow"] = held_by(gate)
    with pytest.raises(OSError, match=r"no whole answer within 0\.3 seconds"):
        fetch(f"{host.url}/slow", trust, "127.0.0.0/8", "::1", seconds=0.3)


INSIDE = ["localhost", "127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "127.1"]


@pytest.mark.parametrize("name", INSIDE)
def test_an_address_inside_is_never_asked(trusted_host: tuple[KeyHost, ssl.SSLContext], name: str) -> None:
    host, trust = trusted_host
    path = f"inside-{next(_numbers)}"
    host.publish(path, public_jwk(ONE, kid="one"))
    port = httpx.URL(host.url).port
    with pytest.raises((OSError, ValueError)) as refused:
        fetch(f"https://{name}:{port}/{path}", trust, "10.0.0.0/8")
    assert name in ("2130706433", "127.1") or "internal address" in str(refused.value)
    assert path not in host.asked
    assert b'"one"' in fetch(f"https://localhost:{port}/{path}", trust, "127.0.0.0/8", "::1")


@pytest.mark.parametrize("name", ["127。0。0。1", "127．0．0．1", "localhoſt"])
def test_a_host_that_is_mapped_to_an_address_inside_is_never_asked(
    trusted_host: tuple[KeyHost, ssl.SSLContext], name: str
) -> None:
    host, trust = trusted_host
    path = f"mapped-{next(_numbers)}"
    host.publish(path, public_jwk(ONE, kid="one"))
    with pytest.raises(ValueError, match="not in ASCII"):
        fetch(f"https://{name}:{httpx.URL(host.url).port}/{path}", trust, "10.0.0.0/8")
    assert path not in host.asked


def test_a_server_without_a_certificate_is_not_asked(trusted_host: tuple[KeyHost, ssl.SSLContext]) -> None:
    host, _ = trusted_host
    host.publish("untrusted", public_jwk(ONE, kid="one"))
    with pytest.raises(OSError, match="SSLCertVerificationError"):
        fetch(f"{host.url}/untrusted", None, "127.0.0.0/8", "::1")
    assert "untrusted" not in host.asked


def test_keys_are_never_fetched_with_plain_http() -> None:
    """Not in the networks that the settings name either: who changes the keys on their way could sign as any user."""
    asked = []

    async def note(request: Request) -> Response:
        asked.append(request.url.path)
        return JSONResponse({"keys": [public_jwk(ONE, kid="one")]})

    app, port = Starlette(routes=[Route("/keys", note)]), free_port()
    with running(app, port=port):
        url, inside = f"http://127.0.0.1:{port}/keys", ("127.0.0.0/8", "::1")
        with pytest.raises(ValueError, match="plain http; use https"):
            fetch(url, None, *inside)
        assert asked == []
        # The operator's own URL of App Check may be, such as that of the sandbox.
        assert b'"one"' in fetch(url, None, *inside, allows_http=True)
        with pytest.raises(ValueError, match="plain http is only for hosts that PROXY_ISSUER_NETWORKS names"):
            fetch(url, None, "10.0.0.0/8", allows_http=True)


def test_a_proxy_asks_no_address_inside_unless_a_setting_allows_it(
    sandbox: SandboxControl, trusted_host: tuple[KeyHost, ssl.SSLContext], tmp_path: Path
) -> None:
    host, trust = trusted_host
    environ = {"PROXY_ADMIN_TOKEN": ADMIN_TOKEN}
    with proxy_in_front_of(sandbox, tmp_path, environ=environ, issuer_tls=trust) as stack:
        closed = Issuer(stack, host, f"issuer-{next(_numbers)}")
        closed.publish()
        closed.accept()
        closed.assert_unavailable()
        assert closed.asked == 0
