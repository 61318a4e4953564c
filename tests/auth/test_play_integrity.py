"""Guests of Android apps: tokens of Play Integrity, here sealed with the sandbox's keys, and challenges for apps."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from joserfc import jwe, jws
from joserfc.jwk import ECKey, OctKey

from proxy.auth.app_challenges import AppChallenges
from proxy.auth.proof_of_work import EXPIRY_SECONDS
from proxy.auth.sessions import Sessions
from proxy.auth.verified import LEEWAY_SECONDS
from proxy.errors import ProofInvalid
from proxy.sandbox.play_integrity import DECRYPTION_KEY, VERIFICATION_KEY, seal
from proxy.settings import Secret
from tests.auth.app_guests import AppGuest
from tests.support.clock import MovableClock
from tests.support.issuer import private_key, sign
from tests.support.limited import COUNTING, NEXT, assert_refused_with, limited_proxy, plan
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack

KIND = "play_integrity"
PAGE = "https://app.acme.example"
PACKAGE = "com.acme.app"
TIER = {
    "proof": KIND,
    "package": PACKAGE,
    "verification_key": VERIFICATION_KEY,
    "secret_env": "PLAY_SECRET",
    "plan": "taste",
}
PLANS = {"taste": plan(), "crumb": plan(endpoints=[NEXT])}
Verdict = dict[str, Any]


def tenants(folder: Path) -> dict[str, dict[str, Any]]:
    (folder / "key").write_text(f"{DECRYPTION_KEY}\n")
    tiers: dict[str, list[dict[str, Any]]] = {
        "app": [TIER],
        "twin": [TIER],
        "file": [{**TIER, "secret_env": None, "secret_file": str(folder / "key")}],
        "lax": [{**TIER, "app_verdicts": ["UNRECOGNIZED_VERSION"], "device_verdict": "MEETS_BASIC_INTEGRITY"}],
        "unset": [{**TIER, "secret_env": "UNSET_SECRET"}],
        "short": [{**TIER, "secret_env": "SHORT_SECRET"}],
        "pow": [{"proof": "pow", "plan": "taste", "difficulty": 10}],
        "check": [{"proof": "app_check", "project": "7", "plan": "taste"}],
    }
    return {
        name: {
            "plan": "crumb",
            "allowed_origins": [PAGE],
            "guests": {"enabled": True, "per_address": None, "tiers": listed},
        }
        for name, listed in tiers.items()
    }


@pytest.fixture(scope="module")
def limited(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("play")
    listed = tenants(folder)
    environ = {"PLAY_SECRET": DECRYPTION_KEY, "SHORT_SECRET": base64.b64encode(b"x" * 16).decode()}
    plans = {**PLANS, **dict.fromkeys(listed, PLANS["crumb"])}
    trusting = {"proxy_headers": True, "forwarded_allow_ips": ["127.0.0.0/8"]}
    with limited_proxy(shared_sandbox, folder, plans, tenants=listed, environ=environ, server=trusting) as stack:
        yield stack


@pytest.fixture
def proxy(limited: Stack, sandbox: SandboxControl) -> Stack:
    return limited


def challenge(proxy: Stack, tenant: str = "app", origin: str = "") -> str:
    return AppGuest(proxy, KIND).challenge(tenant, origin)


def verdict(proxy: Stack, nonce: str, **more: Any) -> Verdict:
    """What Google says of the app on a phone that has nothing wrong."""
    return {
        "requestDetails": {
            "requestPackageName": PACKAGE,
            "nonce": nonce,
            "timestampMillis": str(int(proxy.clock.now() * 1000)),
        },
        "appIntegrity": {
            "appRecognitionVerdict": "PLAY_RECOGNIZED",
            "packageName": PACKAGE,
            "certificateSha256Digest": ["6a6a1474b5cbbb2b1aa57e0bc3"],
            "versionCode": "42",
        },
        "deviceIntegrity": {"deviceRecognitionVerdict": ["MEETS_BASIC_INTEGRITY", "MEETS_DEVICE_INTEGRITY"]},
        "accountDetails": {"appLicensingVerdict": "LICENSED"},
        **more,
    }


def give(proxy: Stack, value: str, tenant: str = "app", origin: str = "") -> httpx.Response:
    return AppGuest(proxy, KIND).give(value, tenant, origin)


@pytest.mark.parametrize("tenant", ["app", "file"])
def test_a_token_gives_the_plan_of_its_tier_and_counts_once(proxy: Stack, tenant: str) -> None:
    said = verdict(proxy, challenge(proxy, tenant))
    answer = give(proxy, seal(said), tenant)
    assert (answer.status_code, answer.json()["endpoints"]) == (201, [NEXT, COUNTING])
    # Encrypted and signed again, it is another text with the same challenge.
    with ThreadPoolExecutor(4) as pool:
        again = list(pool.map(lambda _: give(proxy, seal(said), tenant), range(4)))
    for one in again:
        assert "used before" in assert_refused_with(one, 401, "proof_invalid")["detail"]


def test_a_page_of_the_tenant_can_give_a_token(proxy: Stack) -> None:
    assert give(proxy, seal(verdict(proxy, challenge(proxy, origin=PAGE))), origin=PAGE).status_code == 201


# --- challenges


def test_a_challenge_is_a_nonce_as_google_play_takes_it(proxy: Stack) -> None:
    answer = AppGuest(proxy, KIND).ask("GET", "/v1/sessions/challenge", params={"tenant": "app", "kind": KIND})
    assert answer.headers["cache-control"] == "no-store"
    text = answer.json()["challenge"]
    assert 16 <= len(text) <= 500 and base64.urlsafe_b64encode(base64.urlsafe_b64decode(text)).decode() == text
    assert set(answer.json()) == {"challenge", "expires_at"}
    assert challenge(proxy) != text


def test_only_a_tier_that_needs_a_challenge_gives_one(proxy: Stack) -> None:
    for tenant, kind in [("app", "pow"), ("check", "app_check"), ("app", "luck")]:
        params, origin = {"tenant": tenant, "kind": kind}, PAGE
        assert_refused_with(
            AppGuest(proxy, KIND).ask("GET", "/v1/sessions/challenge", origin, params=params), 404, "not_found"
        )
    for tenant in ("pow", "nowhere"):
        params = {"tenant": tenant, "kind": KIND}
        assert_refused_with(
            AppGuest(proxy, KIND).ask("GET", "/v1/sessions/challenge", params=params), 403, "origin_not_allowed"
        )


def other_tenant(proxy: Stack) -> str:
    return challenge(proxy, "twin")


def other_origin(proxy: Stack) -> str:
    return challenge(proxy, origin=PAGE)


def made_up(proxy: Stack) -> str:
    return base64.urlsafe_b64encode(b"\xff" * 60).decode()


def later(proxy: Stack) -> str:
    data = bytearray(base64.urlsafe_b64decode(challenge(proxy)))
    data[6] ^= 1
    return base64.urlsafe_b64encode(data).decode()


def respelled(proxy: Stack) -> str:
    text = challenge(proxy)
    # What is no base64 is skipped by a lax reader.
    return f"{text}!!!!"


def with_other_letters(proxy: Stack) -> str:
    while True:
        text = challenge(proxy)
        if "-" in text or "_" in text:
            return text.replace("-", "+").replace("_", "/")


NONCES = [other_tenant, other_origin, made_up, later, respelled, with_other_letters]


@pytest.mark.parametrize("make", NONCES, ids=lambda make: make.__name__)
def test_a_token_for_another_challenge_is_refused(proxy: Stack, make: Callable[[Stack], str]) -> None:
    body = assert_refused_with(give(proxy, seal(verdict(proxy, make(proxy)))), 401, "proof_invalid")
    assert "not one of this proxy's" in body["detail"]


@pytest.mark.parametrize("nonce", ["", "wörd", "x" * 80, None, 7, ["x"]])
def test_a_nonce_that_is_no_challenge_is_refused(proxy: Stack, nonce: Any) -> None:
    body = assert_refused_with(give(proxy, seal(verdict(proxy, nonce))), 401, "proof_invalid")
    assert "not one of this proxy's" in body["detail"]


def test_a_challenge_expires(proxy: Stack) -> None:
    first, second = challenge(proxy), challenge(proxy)
    proxy.clock.advance(EXPIRY_SECONDS - 1)
    assert give(proxy, seal(verdict(proxy, first))).status_code == 201
    proxy.clock.advance(1)
    assert (
        "challenge has expired"
        in assert_refused_with(give(proxy, seal(verdict(proxy, second))), 401, "proof_invalid")["detail"]
    )


def test_a_challenge_is_for_one_kind_of_proof_and_outlives_a_rotation_of_secrets() -> None:
    old, new = (Secret(name * 32) for name in ("o", "n"))
    sessions, clock = Sessions([old], MovableClock()), MovableClock()
    challenges = AppChallenges(sessions, clock)
    text, _ = challenges.make(KIND, "app", "")
    with pytest.raises(ProofInvalid, match="not one of this proxy's"):
        challenges.check(text, "app_attest", "app", "")
    sessions.replace_secrets([new, old])
    challenges.check(text, KIND, "app", "")
    sessions.replace_secrets([new])
    with pytest.raises(ProofInvalid, match="not one of this proxy's"):
        challenges.check(text, KIND, "app", "")


# --- wrong tokens


def with_part(part: str, **changes: Any) -> Callable[[Stack, str], str]:
    """The right verdict but for some fields of one part; what is given as None is left out."""

    def make(proxy: Stack, nonce: str) -> str:
        said = verdict(proxy, nonce)
        changed = {**said[part], **changes}
        return seal({**said, part: {name: value for name, value in changed.items() if value is not None}})

    return make


def at(seconds: float) -> Callable[[Stack, str], str]:
    def make(proxy: Stack, nonce: str) -> str:
        moment = str(int((proxy.clock.now() + seconds) * 1000))
        return with_part("requestDetails", timestampMillis=moment)(proxy, nonce)

    return make


def without(part: str) -> Callable[[Stack, str], str]:
    return lambda proxy, nonce: seal({name: said for name, said in verdict(proxy, nonce).items() if name != part})


def by_another_key(proxy: Stack, nonce: str) -> str:
    stranger = private_key("stranger", "P-256")
    assert isinstance(stranger, ec.EllipticCurvePrivateKey)
    return seal(verdict(proxy, nonce), private=stranger)


def for_another_key(proxy: Stack, nonce: str) -> str:
    return seal(verdict(proxy, nonce), key=b"x" * 32)


def sealed(signed: str, header: dict[str, Any], key: bytes) -> str:
    return jwe.encrypt_compact(header, signed, OctKey.import_key(key), algorithms=list(header.values()))


OWN_KEY = base64.b64decode(DECRYPTION_KEY)


def unsigned(proxy: Stack, nonce: str) -> str:
    return sealed(json.dumps(verdict(proxy, nonce)), {"alg": "A256KW", "enc": "A256GCM"}, OWN_KEY)


def by_the_public_key(proxy: Stack, nonce: str) -> str:
    """Signed with what is public, as if it were a shared secret."""
    signed = sign({"alg": "HS256"}, verdict(proxy, nonce), base64.b64decode(VERIFICATION_KEY))
    return sealed(signed, {"alg": "A256KW", "enc": "A256GCM"}, OWN_KEY)


def compressed(proxy: Stack, nonce: str) -> str:
    stranger = ECKey.import_key(private_key("stranger", "P-256"))
    signed = jws.serialize_compact({"alg": "ES256"}, json.dumps(verdict(proxy, nonce)), stranger)
    return sealed(signed, {"alg": "A256KW", "enc": "A256GCM", "zip": "DEF"}, OWN_KEY)


def without_wrapping(proxy: Stack, nonce: str) -> str:
    return sealed(json.dumps(verdict(proxy, nonce)), {"alg": "dir", "enc": "A256GCM"}, OWN_KEY)


REQUEST, APP, DEVICE = "requestDetails", "appIntegrity", "deviceIntegrity"
WRONG: dict[str, tuple[Callable[[Stack, str], str], str]] = {
    "by another key": (by_another_key, "signature is wrong"),
    "for another key": (for_another_key, "no token of Play Integrity"),
    "unsigned": (unsigned, "contains no token"),
    "by the public key": (by_the_public_key, "signature is wrong"),
    "compressed": (compressed, "no token of Play Integrity for this app"),
    "without wrapping": (without_wrapping, "no token of Play Integrity for this app"),
    "of another app": (with_part(REQUEST, requestPackageName="com.evil.app"), "another app"),
    "of no app": (with_part(REQUEST, requestPackageName=None), "another app"),
    "with another app inside": (with_part(APP, packageName="com.evil.app"), "another app"),
    "of a changed app": (with_part(APP, appRecognitionVerdict="UNRECOGNIZED_VERSION"), "does not recognize"),
    "of an app that was not looked at": (with_part(APP, appRecognitionVerdict="UNEVALUATED"), "does not recognize"),
    "without a verdict": (with_part(APP, appRecognitionVerdict=None), "does not recognize"),
    "with a list of verdicts": (with_part(APP, appRecognitionVerdict=["PLAY_RECOGNIZED"]), "does not recognize"),
    "without the app": (without(APP), "does not recognize"),
    "of a basic device": (with_part(DEVICE, deviceRecognitionVerdict=["MEETS_BASIC_INTEGRITY"]), "device lacks"),
    "of an emulator": (with_part(DEVICE, deviceRecognitionVerdict=[]), "device lacks"),
    "of a text for a device": (with_part(DEVICE, deviceRecognitionVerdict="MEETS_DEVICE_INTEGRITY"), "device lacks"),
    "without the device": (without(DEVICE), "device lacks"),
    "too old": (at(-EXPIRY_SECONDS - 1), "not made just now"),
    "from later": (at(LEEWAY_SECONDS + 1), "not made just now"),
    "of no time": (with_part(REQUEST, timestampMillis=None), "when it was made"),
    "of a strange time": (with_part(REQUEST, timestampMillis="-1"), "when it was made"),
    "of a long time": (with_part(REQUEST, timestampMillis="9" * 16), "when it was made"),
    "without the request": (without(REQUEST), "not one of this proxy's"),
    "no token": (lambda *_: "a.b.c.d.e", "no token of Play Integrity for this app"),
    "no ASCII": (lambda *_: "wörd", "no token of Play Integrity for this app"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_token_is_refused_and_the_right_one_still_counts(proxy: Stack, case: str) -> None:
    make, says = WRONG[case]
    nonce = challenge(proxy)
    value = make(proxy, nonce)
    body = assert_refused_with(give(proxy, value), 401, "proof_invalid")
    assert says in body["detail"] and value not in body["detail"]
    assert give(proxy, seal(verdict(proxy, nonce))).status_code == 201


def test_a_tier_names_the_verdicts_that_count(proxy: Stack) -> None:
    def try_with(app_verdict: str, device_verdict: str) -> httpx.Response:
        wanted = {
            "kind": KIND,
            "package": PACKAGE,
            "nonce": challenge(proxy, "lax"),
            "app_verdict": app_verdict,
            "device_verdict": device_verdict,
        }
        given = httpx.post(f"{proxy.sandbox.url}/_sandbox/proofs", json=wanted, trust_env=False, timeout=60).json()[
            "token"
        ]
        return give(proxy, given, "lax")

    assert try_with("UNRECOGNIZED_VERSION", "MEETS_BASIC_INTEGRITY").status_code == 201
    assert_refused_with(try_with("PLAY_RECOGNIZED", "MEETS_BASIC_INTEGRITY"), 401, "proof_invalid")
    assert_refused_with(try_with("UNRECOGNIZED_VERSION", "MEETS_VIRTUAL_INTEGRITY"), 401, "proof_invalid")


@pytest.mark.parametrize("tenant", ["unset", "short"])
def test_without_the_app_s_key_no_guest_is_let_in(proxy: Stack, tenant: str, caplog: Any) -> None:
    value = seal(verdict(proxy, challenge(proxy, tenant)))
    body = assert_refused_with(give(proxy, value, tenant), 503, "proof_unavailable")
    assert "lacks the app's key" in body["detail"]
    (record,) = [record for record in caplog.records if record.message == "proof not verified"]
    says = {"unset": "there is no secret in UNSET_SECRET", "short": "not base64 of 32 bytes"}
    assert says[tenant] in record.log_fields["problem"]
