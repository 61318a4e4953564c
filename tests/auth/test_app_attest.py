"""Guests of apps for iOS: attestations of App Attest, here of the sandbox's authority instead of Apple's."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from proxy.auth.app_attest import APPLE_ROOT
from proxy.auth.proof_of_work import EXPIRY_SECONDS
from proxy.sandbox.app_attest import AppAttest, Attestation
from tests.auth.app_guests import AppGuest
from tests.support.issuer import private_key
from tests.support.limited import COUNTING, NEXT, assert_refused_with, limited_proxy, plan
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack

KIND = "app_attest"
PAGE = "https://app.acme.example"
APP = "A1B2C3D4E5.com.acme.app"
PLANS = {"taste": plan(), "crumb": plan(endpoints=[NEXT])}
AUTHORITY, STRANGER = AppAttest(), AppAttest("stranger")
DAY = 86_400


def tenants(folder: Path) -> dict[str, dict[str, Any]]:
    (folder / "root.pem").write_bytes(AUTHORITY.root_pem)
    (folder / "text.pem").write_text("no certificate")
    tier = {"proof": KIND, "app": APP, "root_file": str(folder / "root.pem"), "plan": "taste"}
    tiers: dict[str, dict[str, Any]] = {
        "app": tier,
        "twin": tier,
        "test": {**tier, "environment": "development"},
        "apple": {**tier, "root_file": None},
        "missing": {**tier, "root_file": str(folder / "missing.pem")},
        "text": {**tier, "root_file": str(folder / "text.pem")},
    }
    return {
        name: {
            "plan": "crumb",
            "allowed_origins": [PAGE],
            "guests": {"enabled": True, "per_address": None, "tiers": [tier]},
        }
        for name, tier in tiers.items()
    }


@pytest.fixture(scope="module")
def limited(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("attest")
    listed = tenants(folder)
    plans = {**PLANS, **dict.fromkeys(listed, PLANS["crumb"])}
    trusting = {"proxy_headers": True, "forwarded_allow_ips": ["127.0.0.0/8"]}
    with limited_proxy(shared_sandbox, folder, plans, tenants=listed, server=trusting) as stack:
        yield stack


@pytest.fixture
def proxy(limited: Stack, sandbox: SandboxControl) -> Stack:
    return limited


def challenge(proxy: Stack, tenant: str = "app", origin: str = "") -> str:
    return AppGuest(proxy, KIND).challenge(tenant, origin)


def give(proxy: Stack, value: str, tenant: str = "app", origin: str = "") -> httpx.Response:
    return AppGuest(proxy, KIND).give(value, tenant, origin)


def attest(text: str, **more: Any) -> str:
    return AUTHORITY.attest(APP, text, **more).encode(text)


def test_an_attestation_gives_the_plan_of_its_tier(proxy: Stack) -> None:
    answer = give(proxy, attest(challenge(proxy)))
    assert (answer.status_code, answer.json()["endpoints"]) == (201, [NEXT, COUNTING])


def test_a_challenge_counts_once_for_all_keys(proxy: Stack) -> None:
    text = challenge(proxy)
    values = [attest(text) for _ in range(2)] * 4
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda value: give(proxy, value), values))
    assert sorted(answer.status_code for answer in answers) == [201] + [401] * 7
    used = next(answer for answer in answers if answer.status_code == 401)
    assert "used before" in assert_refused_with(used, 401, "proof_invalid")["detail"]


def test_a_challenge_is_for_its_tenant_and_origin_and_expires(proxy: Stack) -> None:
    for text in (challenge(proxy, "twin"), challenge(proxy, origin=PAGE), base64.b64encode(b"\xff" * 60).decode()):
        assert (
            "not one of this proxy's" in assert_refused_with(give(proxy, attest(text)), 401, "proof_invalid")["detail"]
        )
    text = challenge(proxy)
    proxy.clock.advance(EXPIRY_SECONDS)
    assert "has expired" in assert_refused_with(give(proxy, attest(text)), 401, "proof_invalid")["detail"]


def test_the_environment_is_that_of_the_tier(proxy: Stack) -> None:
    wanted = {"kind": KIND, "app": APP, "challenge": challenge(proxy, "test"), "environment": "development"}
    given = httpx.post(f"{proxy.sandbox.url}/_sandbox/proofs", json=wanted, trust_env=False, timeout=60).json()["token"]
    assert give(proxy, given, "test").status_code == 201
    assert_refused_with(give(proxy, attest(challenge(proxy, "test")), "test"), 401, "proof_invalid")


def test_the_sandbox_says_what_a_wish_lacks(proxy: Stack) -> None:
    for wanted in ({"app": APP}, {"app": APP, "challenge": "x", "environment": "moon"}):
        form = {"kind": KIND, **wanted}
        answer = httpx.post(f"{proxy.sandbox.url}/_sandbox/proofs", json=form, trust_env=False, timeout=60)
        assert answer.status_code == 422
    root = httpx.get(f"{proxy.sandbox.url}/_sandbox/app-attest/root", trust_env=False, timeout=60).content
    assert x509.load_pem_x509_certificate(root).subject == AUTHORITY.root.subject


# --- wrong attestations


def with_data(start: int, part: bytes) -> Callable[[str], str]:
    """An attestation whose data differ from the right ones in one part, with the nonce that belongs to that."""

    def make(text: str) -> str:
        key = ec.generate_private_key(ec.SECP256R1()).public_key()
        right = AUTHORITY.attest(APP, text)
        data = right.data[:start] + part + right.data[start + len(part) :]
        return signed(text, replace(right, data=data), key).encode(text)

    return make


def signed(text: str, right: Attestation, key: Any) -> Attestation:
    """The same, certified for another key with the right nonce; its id is that of the key, wherever it stands."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key_id = hashlib.sha256(key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)).digest()
    data = right.data[:55] + key_id + right.data[87:]
    nonce = hashlib.sha256(data + hashlib.sha256(text.encode()).digest()).digest()
    return replace(
        right, certificates=(AUTHORITY.certify(key, nonce), AUTHORITY.intermediate), data=data, key_id=key_id
    )


def by_a_stranger(text: str) -> str:
    return STRANGER.attest(APP, text).encode(text)


def with_a_strangers_intermediate(text: str) -> str:
    right = AUTHORITY.attest(APP, text)
    return replace(right, certificates=(right.certificates[0], STRANGER.intermediate)).encode(text)


def by_a_key_that_is_no_authority(text: str) -> str:
    """Certified by the certificate of another attested key, which any user of an app can get."""
    right = AUTHORITY.attest(APP, text)
    other = AUTHORITY.attest(APP, text)
    return replace(right, certificates=(right.certificates[0], other.certificates[0])).encode(text)


def for_another_challenge(text: str) -> str:
    return AUTHORITY.attest(APP, "another challenge").encode(text)


def with_changed_data(text: str) -> str:
    right = AUTHORITY.attest(APP, text)
    return replace(right, data=right.data + b"more").encode(text)


def without_a_nonce(text: str) -> str:
    return replace(AUTHORITY.attest(APP, text), certificates=(AUTHORITY.root, AUTHORITY.intermediate)).encode(text)


def with_another_key_id(text: str) -> str:
    return replace(AUTHORITY.attest(APP, text), key_id=b"x" * 32).encode(text)


def for_another_key(text: str) -> str:
    """The certificate is for one key, and the data name another."""
    right, key = AUTHORITY.attest(APP, text), ec.generate_private_key(ec.SECP256R1()).public_key()
    nonce = hashlib.sha256(right.data + hashlib.sha256(text.encode()).digest()).digest()
    return replace(right, certificates=(AUTHORITY.certify(key, nonce), AUTHORITY.intermediate)).encode(text)


def with_another_key_in_the_data(text: str) -> str:
    right = AUTHORITY.attest(APP, text)
    data = right.data[:55] + b"x" * 32 + right.data[87:]
    nonce = hashlib.sha256(data + hashlib.sha256(text.encode()).digest()).digest()
    key = right.certificates[0].public_key()
    leaf = AUTHORITY.certify(key, nonce)  # type: ignore[arg-type]
    return replace(right, certificates=(leaf, AUTHORITY.intermediate), data=data).encode(text)


def for_a_key_of_rsa(text: str) -> str:
    right, key = AUTHORITY.attest(APP, text), private_key("rsa").public_key()
    nonce = hashlib.sha256(right.data + hashlib.sha256(text.encode()).digest()).digest()
    leaf = AUTHORITY.certify(key, nonce)  # type: ignore[arg-type]
    return replace(right, certificates=(leaf, AUTHORITY.intermediate)).encode(text)


def of_another_app(text: str) -> str:
    return AUTHORITY.attest("A1B2C3D4E5.com.evil.app", text).encode(text)


def of_another_format(text: str) -> str:
    return replace(AUTHORITY.attest(APP, text), format="packed").encode(text)


def without_the_intermediate(text: str) -> str:
    right = AUTHORITY.attest(APP, text)
    return replace(right, certificates=right.certificates[:1]).encode(text)


def with_three_certificates(text: str) -> str:
    right = AUTHORITY.attest(APP, text)
    return replace(right, certificates=(*right.certificates, AUTHORITY.root)).encode(text)


def with_short_data(text: str) -> str:
    right = AUTHORITY.attest(APP, text)
    return replace(right, data=right.data[:86]).encode(text)


NO_ATTESTATION = "contains no attestation"
WRONG: dict[Callable[[str], str], str] = {
    by_a_stranger: "do not lead to Apple's root",
    with_a_strangers_intermediate: "do not lead to Apple's root",
    by_a_key_that_is_no_authority: "do not lead to Apple's root",
    for_another_challenge: "another challenge",
    with_changed_data: "another challenge",
    with_another_key_id: "another key",
    for_another_key: "another key",
    with_another_key_in_the_data: "another key",
    for_a_key_of_rsa: "key of another kind",
    of_another_app: "another app",
    of_another_format: NO_ATTESTATION,
    without_the_intermediate: NO_ATTESTATION,
    with_three_certificates: NO_ATTESTATION,
    with_short_data: NO_ATTESTATION,
    without_a_nonce: "another challenge",
}


@pytest.mark.parametrize("make", WRONG, ids=lambda make: make.__name__)
def test_a_wrong_attestation_is_refused_and_the_right_one_still_counts(
    proxy: Stack, make: Callable[[str], str]
) -> None:
    text = challenge(proxy)
    value = make(text)
    body = assert_refused_with(give(proxy, value), 401, "proof_invalid")
    assert WRONG[make] in body["detail"] and value not in body["detail"]
    assert give(proxy, attest(text)).status_code == 201


PARTS: dict[str, tuple[int, bytes, str]] = {
    "counter": (33, b"\x00\x00\x00\x01", "used before; attest a new one"),
    "environment": (37, b"appattestdevelop", "not of the environment production"),
    "no environment": (37, bytes(16), "not of the environment production"),
    "app": (0, b"x" * 32, "another app"),
    "length of the id": (53, b"\x00\x21", NO_ATTESTATION),
}


@pytest.mark.parametrize("case", PARTS)
def test_each_part_of_the_data_counts(proxy: Stack, case: str) -> None:
    start, part, says = PARTS[case]
    value = with_data(start, part)(challenge(proxy))
    assert says in assert_refused_with(give(proxy, value), 401, "proof_invalid")["detail"]


def test_a_certificate_expires(proxy: Stack) -> None:
    proxy.clock.advance(4 * DAY)
    body = assert_refused_with(give(proxy, attest(challenge(proxy))), 401, "proof_invalid")
    assert "do not lead to Apple's root now" in body["detail"]
    proxy.clock.advance(-4 * DAY)
    assert give(proxy, attest(challenge(proxy))).status_code == 201


def test_without_another_root_only_apple_s_counts(proxy: Stack) -> None:
    assert x509.load_pem_x509_certificate(APPLE_ROOT.read_bytes()).subject.rfc4514_string() == (
        "ST=California,O=Apple Inc.,CN=Apple App Attestation Root CA"
    )
    body = assert_refused_with(give(proxy, attest(challenge(proxy, "apple")), "apple"), 401, "proof_invalid")
    assert "do not lead to Apple's root" in body["detail"]


NO_CBOR: dict[str, bytes] = {
    "nothing": b"",
    "a number": b"\x00",
    "a list": b"\x80",
    "an empty map": b"\xa0",
    "deep": b"\x81" * 5000,
    "endless": b"\xbf\xff",
    "long": b"\x9b\x7f\xff\xff\xff\xff\xff\xff\xff",
    "a key twice": b"\xa2\x61a\x00\x61a\x00",
    "itself": b"\xd8\x1c\x81\xd8\x1d\x00",
    "a date": b"\xc0\x61a",
    "texts for certificates": b"\xa2cfmtoapple-appattestgattStmt\xa1cx5c\x82aaab",
}


@pytest.mark.parametrize("case", NO_CBOR)
def test_a_malformed_attestation_is_refused(proxy: Stack, case: str) -> None:
    value = f"{challenge(proxy)}.AAAA.{base64.b64encode(NO_CBOR[case]).decode()}"
    assert NO_ATTESTATION in assert_refused_with(give(proxy, value), 401, "proof_invalid")["detail"]


@pytest.mark.parametrize("value", ["x", "a.b", "a.b.c.d", "a.%.AAAA", "a.AAAA.wörd", "..."])
def test_a_value_without_three_parts_in_base64_is_refused(proxy: Stack, value: str) -> None:
    assert "challenge.key_id.attestation" in assert_refused_with(give(proxy, value), 401, "proof_invalid")["detail"]


@pytest.mark.parametrize("tenant", ["missing", "text"])
def test_without_the_root_s_certificate_no_guest_is_let_in(proxy: Stack, tenant: str, caplog: Any) -> None:
    body = assert_refused_with(give(proxy, attest(challenge(proxy, tenant)), tenant), 503, "proof_unavailable")
    assert "lacks the root's certificate" in body["detail"]
    assert [record for record in caplog.records if record.message == "proof not verified"]
