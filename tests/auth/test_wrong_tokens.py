"""Tokens that must not count. Each differs from a good one in one thing, and would pass if that were not checked."""

from __future__ import annotations

import json
import secrets
import ssl
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from proxy.auth.identity import MAX_TOKEN_LENGTH
from proxy.auth.verification import MAX_KID_LENGTH
from tests.auth.conftest import PAGE, accepting
from tests.auth.providers import AUTH0, SUPABASE, Provider
from tests.support.issuer import KeyHost, b64, private_key, public_jwk, respell, sign
from tests.support.limited import NEXT, asking, assert_refused_with
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack

DAY = 86_400
#: The issuer of these tests: it accepts more than one algorithm, and narrows.
IDP = replace(
    AUTH0,
    name="idp",
    issuer="https://idp.acme.example",
    claims={"sub": "alice", "aud": "acme", "tier": "pro"},
    accepts={
        "audience": "acme",
        "algorithms": ["RS256", "ES256"],
        "plans": {"claim": "tier", "map": {"pro": "paid", "2": "paid"}},
        "narrow": {
            "endpoints_claim": "models",
            "max_tokens_claim": "words",
            "max_prompt_chars_claim": ["ask", "chars"],
        },
    },
)
#: The same issuer, of two more tenants: a token for one of them is none for the others.
EAST, WEST = (replace(IDP, accepts={"audience": name}, claims={**IDP.claims, "aud": name}) for name in ("east", "west"))
CURVED = private_key("idp", "P-256")
#: Its key set does not say for which algorithm it is.
ANY = private_key("any")


@pytest.fixture(scope="module")
def stack(
    shared_sandbox: SandboxControl,
    trusted_host: tuple[KeyHost, ssl.SSLContext],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Stack]:
    host, trust = trusted_host
    tenants = {"idp": [IDP.identity(host)], "east": [EAST.identity(host)], "west": [WEST.identity(host)]}
    tenants["supabase"] = [SUPABASE.identity(host)]
    host.publish(
        "idp",
        IDP.published(),
        public_jwk(CURVED, kid="curved"),
        public_jwk(ANY, kid="any"),
        public_jwk(private_key("for encryption"), kid="enc", use="enc"),
        public_jwk(private_key("to wrap"), kid="wrap", use=None, key_ops=["wrapKey"]),
        public_jwk(private_key("of PS256"), kid="ps256", alg="PS256"),
        public_jwk(private_key("weak", "RSA-1024"), kid="weak"),
        public_jwk(private_key("P-384", "P-384"), kid="p384"),
        public_jwk(private_key("long kid"), kid="k" * (MAX_KID_LENGTH + 1)),
        public_jwk(private_key("empty kid"), kid=""),
    )
    with accepting(shared_sandbox, tmp_path_factory.mktemp("wrong"), trust, tenants) as stack:
        yield stack


@pytest.fixture
def proxy(stack: Stack, sandbox: SandboxControl) -> Stack:
    return stack


def claims(now: float, **more: Any) -> dict[str, Any]:
    said = {"iss": IDP.issuer, "iat": int(now), "exp": int(now) + 3600, **IDP.claims, **more}
    return {name: value for name, value in said.items() if value is not None}


def signed_by(key: Any, **header: Any) -> Callable[[float], str]:
    """A token whose claims are good, under another header or by another key."""
    head = {"alg": "RS256", "typ": "JWT", "kid": IDP.kid, **header}
    return lambda now: sign({name: value for name, value in head.items() if value is not None}, claims(now), key)


def saying(**more: Any) -> Callable[[float], str]:
    return lambda now: IDP.token(now, **more)


def at(**offsets: float) -> Callable[[float], str]:
    """A token whose times differ from now by so many seconds."""
    return lambda now: IDP.token(now, **{name: now + offset for name, offset in offsets.items()})


def of(provider: Provider, header: dict[str, Any] | None = None, **more: Any) -> Callable[[float], str]:
    return lambda now: provider.token(now, header, **more)


def changed(part: int, change: Callable[[str], str]) -> Callable[[float], str]:
    """A good token in which one part is another after it was signed."""

    def make(now: float) -> str:
        parts = IDP.token(now).split(".")
        return ".".join([*parts[:part], change(parts[part]), *parts[part + 1 :]])

    return make


def _public_pem() -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return IDP.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


#: The token, and a word of why it is refused.
WRONG: dict[str, tuple[Callable[[float], str], str]] = {
    # Whose it is
    "no issuer": (saying(iss=None), "issuer"),
    "another issuer": (saying(iss="https://idp.evil.example"), "issuer"),
    "an issuer with a slash more": (saying(iss=f"{IDP.issuer}/"), "issuer"),
    "an issuer in capitals": (saying(iss=IDP.issuer.upper()), "issuer"),
    "an issuer in a list": (saying(iss=[IDP.issuer]), "issuer"),
    "no audience": (saying(aud=None), "audience"),
    "another audience": (saying(aud="another-app"), "audience"),
    "an audience that begins like ours": (saying(aud="acme-admin"), "audience"),
    "an audience that ours is in": (saying(aud="not acme"), "audience"),
    "an audience in an object": (saying(aud={"acme": True}), "audience"),
    "no audience in the list": (saying(aud=[]), "audience"),
    "another list of audiences": (saying(aud=["another-app", 7, None]), "audience"),
    "the audience as azp alone": (saying(aud=None, azp="acme"), "audience"),
    "the audiences of two tenants": (saying(aud=["east", "west"]), "more than one tenant"),
    # How it is signed
    "no signature": (signed_by(None, alg="none"), "(alg)"),
    "no signature, in other letters": (signed_by(None, alg="nOnE"), "(alg)"),
    "no algorithm": (signed_by(IDP.key, alg=None), "not a signed JWT"),
    "a number for an algorithm": (signed_by(IDP.key, alg=256), "(alg)"),
    "signed with the public key as a secret": (signed_by(_public_pem(), alg="HS256"), "(alg)"),
    "signed with an empty secret": (signed_by(b"", alg="HS256"), "(alg)"),
    "an algorithm that is not on the issuer's list": (signed_by(ANY, alg="RS512", kid="any"), "(alg)"),
    "an algorithm of another issuer": (of(SUPABASE, iss=IDP.issuer, aud="east"), "(alg)"),
    "an attacker's key under the same name": (signed_by(private_key("evil")), "signature"),
    "a key in its own header": (
        signed_by(private_key("evil"), jwk=public_jwk(private_key("evil")), kid="evil"),
        "no such key",
    ),
    "a key at an address of its own": (
        signed_by(private_key("evil"), jku="https://evil.example/jwks.json", kid="evil"),
        "no such key",
    ),
    "a key of another issuer": (signed_by(SUPABASE.key, alg="ES256", kid=SUPABASE.kid), "no such key"),
    "a key for encryption": (signed_by(private_key("for encryption"), kid="enc"), "no such key"),
    "a key to wrap others": (signed_by(private_key("to wrap"), kid="wrap"), "no such key"),
    "a key of another algorithm": (signed_by(private_key("of PS256"), kid="ps256"), "no such key"),
    "a key that is too small": (signed_by(private_key("weak", "RSA-1024"), kid="weak"), "no such key"),
    "a key of another curve": (signed_by(private_key("P-384", "P-384"), alg="ES256", kid="p384"), "no such key"),
    "a key of another type": (signed_by(IDP.key, kid="curved"), "no such key"),
    "a name of a key that is too long": (
        signed_by(private_key("long kid"), kid="k" * (MAX_KID_LENGTH + 1)),
        "kid",
    ),
    "an empty name of a key": (signed_by(private_key("empty kid"), kid=""), "kid"),
    "a number for the name of a key": (signed_by(IDP.key, kid=1), "must be a text"),
    "a signature of zeros": (changed(2, lambda text: "A" * len(text)), "signature"),
    "no signature at the end": (changed(2, lambda text: ""), "signature"),
    "a signature in another spelling": (lambda now: respell(IDP.token(now)), "signature"),
    "claims that were changed": (changed(1, lambda _: b64(json.dumps(claims(4e9, sub="bob")).encode())), "signature"),
    "a header that was changed": (changed(0, lambda _: b64(b'{"alg":"RS256","kid":"auth0-key-1"}')), "no such key"),
    "an extension that it needs": (signed_by(IDP.key, crit=["exp"], exp=4e9), "extension"),
    "an extension without a name": (signed_by(IDP.key, crit=[]), "extension"),
    "claims that are not encoded": (signed_by(IDP.key, b64=True), "extension"),
    "a token for signing out": (signed_by(IDP.key, typ="logout+jwt"), "typ"),
    "a token for proving a key": (signed_by(IDP.key, typ="dpop+jwt"), "typ"),
    "a number for a type": (signed_by(IDP.key, typ=1), "typ"),
    # When
    "expired": (at(iat=-3700, exp=-60), "expired"),
    "expired long ago": (at(iat=-30 * DAY, exp=-DAY), "expired"),
    "older than any session": (at(iat=-31 * DAY, exp=3600), "expired"),
    "no expiry": (saying(exp=None), "exp is no time"),
    "a text for an expiry": (saying(exp="4102444800"), "exp is no time"),
    "true for an expiry": (saying(exp=True), "exp is no time"),
    "an endless expiry": (lambda now: sign(*_raw(now, '"exp": 1e999')), "not a JSON object"),
    "an expiry that is no number": (lambda now: sign(*_raw(now, '"exp": NaN')), "not a JSON object"),
    "an expiry before 1970": (saying(exp=-1), "exp is no time"),
    "no time of issue": (saying(iat=None), "iat is no time"),
    "issued in the future": (at(iat=61), "not valid yet"),
    "issued in the future and valid before": (at(iat=61, nbf=-60), "not valid yet"),
    "not valid yet": (at(nbf=61), "not valid yet"),
    "a text for the beginning": (saying(nbf="soon"), "nbf is no time"),
    "true for the beginning": (saying(nbf=True), "nbf is no time"),
    "a beginning before 1970": (saying(nbf=-1), "nbf is no time"),
    # Who, and on which plan
    "no subject": (saying(sub=None), "sub"),
    "an empty subject": (saying(sub=""), "sub"),
    "a number for a subject": (saying(sub=42), "sub"),
    "a subject that is too long": (saying(sub="a" * 201), "sub"),
    "a subject with a line feed": (saying(sub="alice\nbob"), "sub"),
    "a subject with a space before it": (saying(sub=" alice"), "sub"),
    "a subject that leads to another URL": (saying(sub=".."), "sub"),
    "the name of a guest": (saying(sub="guest-0123456789abcdef"), "sub"),
    "no plan": (saying(tier=None), "no plan"),
    "an unknown plan": (saying(tier="gold"), "no plan"),
    "a plan that is half a number": (saying(tier=2.5), "no plan"),
    "a plan in an object": (saying(tier={"pro": True}), "no plan"),
    "endpoints in an object": (saying(models={NEXT: True}), "models"),
    "endpoints that are no texts": (saying(models=[7]), "models"),
    "too many endpoints": (saying(models=[NEXT] * 101), "models"),
    "an endpoint that is too long": (saying(models=["a" * 201]), "models"),
    "a text for a ceiling": (saying(words="100"), "words"),
    "true for a ceiling": (saying(words=True), "words"),
    "a ceiling of nothing": (saying(words=0), "words"),
    "half a token": (saying(words=1.5), "words"),
    "a ceiling that is too high": (saying(ask={"chars": 10**13}), "ask → chars"),
    "a ceiling that is too high and has a point": (saying(ask={"chars": 1e300}), "ask → chars"),
    # What it is
    "claims in a list": (lambda now: sign({"alg": "RS256"}, [claims(now)], IDP.key), "not a JSON object"),
    "claims that are no JSON": (lambda now: sign({"alg": "RS256"}, b"{", IDP.key), "not a JSON object"),
    "claims nested too deeply": (lambda now: sign({"alg": "RS256"}, b"[" * 5000, IDP.key), "not a JSON object"),
    "a header that is no JSON": (lambda now: sign(b"{", claims(now), IDP.key), "not a signed JWT"),
    "a header nested too deeply": (lambda now: sign(b'{"a":' + b"[" * 2000, claims(now), IDP.key), "not a signed JWT"),
    "too long": (saying(more="a" * MAX_TOKEN_LENGTH), "characters"),
    "padded": (lambda now: f"{IDP.token(now)}=", "signature"),
    "letters that are none of base64": (lambda now: IDP.token(now).replace(".", ".!", 1), "not a signed JWT"),
}


def _raw(now: float, member: str) -> tuple[dict[str, Any], bytes, Any]:
    text = json.dumps(claims(now, exp=None))
    return {"alg": "RS256", "typ": "JWT", "kid": IDP.kid}, f"{text[:-1]}, {member}}}".encode(), IDP.key


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_token_is_refused(proxy: Stack, wrong: str) -> None:
    make, reason = WRONG[wrong]
    token = make(proxy.clock.now())
    with proxy.client(token) as http:
        body = assert_refused_with(http.get("/v1/session"), 401, "invalid_token")
    assert reason in body["detail"] and token not in body["detail"]


@pytest.mark.parametrize(
    "wrong", ["another issuer", "no signature", "expired", "no subject", "an extension that it needs"]
)
def test_a_wrong_token_is_not_exchanged(proxy: Stack, wrong: str) -> None:
    with proxy.client("") as anonymous:
        answer = anonymous.post("/v1/sessions/exchange", json={"token": WRONG[wrong][0](proxy.clock.now())})
    assert_refused_with(answer, 401, "invalid_token")


RIGHT: dict[str, Callable[[float], str]] = {
    "as it is": saying(),
    "in a list of audiences": saying(aud=["another-app", "acme"]),
    "at the end of the leeway": at(iat=-3600, exp=-59),
    "at the beginning of the leeway": at(iat=60, nbf=60),
    "no type": of(IDP, {"typ": None}),
    "a type in other letters": of(IDP, {"typ": "at+JWT"}),
    "a type in full": of(IDP, {"typ": "application/at+jwt"}),
    "of the other algorithm": signed_by(CURVED, alg="ES256", kid="curved"),
    "the longest subject": saying(sub="é" * 200),
    "a plan in a list": saying(tier=["beta", "pro"]),
    "a plan that is a number": saying(tier=2),
    "a plan that is a number with a point": saying(tier=2.0),
    "a number with a point in a list of plans": saying(tier=["beta", 2.0]),
    "for another tenant": of(EAST),
    "unknown headers": of(IDP, {"cat": "cl_B7d4PD111AAA", "x5t": "abc"}),
}


@pytest.mark.parametrize("right", RIGHT)
def test_a_right_token_that_resembles_a_wrong_one_passes(proxy: Stack, right: str) -> None:
    with proxy.client(RIGHT[right](proxy.clock.now())) as http:
        assert http.get("/v1/session").status_code == 200, http.get("/v1/session").text


@pytest.mark.parametrize("given", [[NEXT], NEXT, f"{NEXT} fal-ai/flux/dev"])
def test_a_claim_narrows_the_endpoints_and_never_widens_them(proxy: Stack, given: Any) -> None:
    token = IDP.token(proxy.clock.now(), models=given)
    with proxy.client(token) as http, proxy.client("") as anonymous:
        assert http.get("/v1/session").json()["endpoints"] == [NEXT]
        minted = anonymous.post("/v1/sessions/exchange", json={"token": token}).json()
    assert minted["endpoints"] == [NEXT]
    with proxy.client(minted["token"]) as session:
        assert session.get("/v1/session").json()["endpoints"] == [NEXT]


def test_a_token_that_lists_many_endpoints_becomes_a_cookie_that_counts(proxy: Stack) -> None:
    """It may be twice as long as a session, and what it lists beyond the plan is nothing to a session."""
    listed = [NEXT, *(f"fal-ai/{secrets.token_urlsafe(40)}" for _ in range(80))]
    with proxy.client(IDP.token(proxy.clock.now(), models=listed)) as http:
        answer = http.post("/v1/sessions/cookie")
    assert answer.status_code == 201, answer.text
    cookie = {"cookie": answer.headers["set-cookie"].partition(";")[0], "origin": PAGE}
    with proxy.client("", headers=cookie) as browser:
        assert browser.get("/v1/session").json()["endpoints"] == [NEXT]


@pytest.mark.parametrize(("words", "chars"), [(50, 10), (50.0, 1e1)])
def test_a_claim_lowers_a_ceiling_of_the_plan(proxy: Stack, words: float, chars: float) -> None:
    token = IDP.token(proxy.clock.now(), words=words, ask={"chars": chars})
    with proxy.client("") as anonymous:
        session = anonymous.post("/v1/sessions/exchange", json={"token": token}).json()["token"]
    for credential in (token, session):
        with proxy.client(credential) as http:
            assert http.post(f"/fal/run/{NEXT}", json=asking("0123456789", max_tokens=50)).status_code == 200
            for body in (asking("0123456789a"), asking("?", max_tokens=51)):
                assert_refused_with(http.post(f"/fal/run/{NEXT}", json=body), 422, "invalid_input")


def test_a_refusal_and_the_log_never_quote_a_token(proxy: Stack, caplog: pytest.LogCaptureFixture) -> None:
    token = signed_by(private_key("evil"))(proxy.clock.now())
    with proxy.client("") as http:
        answer = http.post(f"/s/{token}/api/fal/proxy", json={})
    assert_refused_with(answer, 401, "invalid_token")
    assert not any(part in answer.text + caplog.text for part in token.split("."))
