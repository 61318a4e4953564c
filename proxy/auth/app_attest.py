"""Proofs of Apple's App Attest: a key in the hardware of a device, and Apple's word for which app made it.

An attestation is CBOR: two certificates, which lead to Apple's root, and data of the app. The first certificate holds
the hash of this data and of the challenge of this proxy. The only user of cbor2.
"""

from __future__ import annotations

import hashlib
from base64 import b64decode
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from proxy.auth.app_challenges import AppChallenges
from proxy.auth.tenant_secrets import report_unverified
from proxy.clock import Clock
from proxy.errors import ProofInvalid
from proxy.tenants.tiers import AppAttestTier

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

KIND = "app_attest"
FORMAT = "apple-appattest"
APPLE_ROOT = Path(__file__).parent / "apple_app_attestation_root_ca.pem"
MAX_ROOT_BYTES = 16 * 1024
#: A map of a map of a list.
MAX_DEPTH = 4
NONCE_EXTENSION = "1.2.840.113635.100.8.2"
#: What stands before the nonce in the extension: a sequence, a tag, and an octet string of 32 bytes.
NONCE_PREFIX = bytes.fromhex("3024a1220420")
ENVIRONMENTS = {"production": b"appattest" + bytes(7), "development": b"appattestdevelop"}


class _Attestation(NamedTuple):
    leaf: Certificate
    intermediate: Certificate
    data: _AppData


class _AppData(NamedTuple):
    """What the device says (WebAuthn, section 6.1), as far as it counts here."""

    whole: bytes
    app_hash: bytes
    counter: bytes
    environment: bytes
    key_id: bytes


class AppAttest:
    """Verifies attestations."""

    def __init__(self, challenges: AppChallenges, clock: Clock) -> None:
        self._challenges = challenges
        self._clock = clock

    def verify(self, tier: AppAttestTier, tenant: str, origin: str, value: str) -> str:
        """Verify an attestation of a tenant's app: `challenge.key_id.attestation`; its challenge, which no other has.

        Raises:
            ProofInvalid: it does not hold.
            ProofUnavailable: the root's file cannot be read.
        """
        challenge, key_id, attestation = _split(value)
        self._challenges.check(challenge, KIND, tenant, origin)
        found = _read(attestation)
        self._verify_chain(found, _find_root(tier))
        client_data = hashlib.sha256(challenge.encode()).digest()
        _check_nonce(found.leaf, hashlib.sha256(found.data.whole + client_data).digest())
        _check_key(found, key_id)
        _check_app(found.data, tier)
        return challenge

    def _verify_chain(self, found: _Attestation, root: Certificate) -> None:
        from cryptography.x509.verification import ExtensionPolicy, PolicyBuilder, Store, VerificationError

        # The first certificate is for no server and no person: Apple's own extension is checked instead.
        authority, own = ExtensionPolicy.webpki_defaults_ca(), ExtensionPolicy.permit_all()
        policy = PolicyBuilder().store(Store([root])).time(datetime.fromtimestamp(self._clock.now(), UTC))
        policy = policy.max_chain_depth(1).extension_policies(ca_policy=authority, ee_policy=own)
        try:
            policy.build_client_verifier().verify(found.leaf, [found.intermediate])
        except VerificationError:
            raise ProofInvalid("The attestation's certificates do not lead to Apple's root now.") from None


def _split(value: str) -> tuple[str, bytes, bytes]:
    parts = value.split(".")
    try:
        challenge, key_id, attestation = parts
        return challenge, b64decode(key_id, validate=True), b64decode(attestation, validate=True)
    except ValueError:
        # `from None`: the cause may quote the proof.
        raise ProofInvalid("The proof must be challenge.key_id.attestation, the last two in base64.") from None


def _read(attestation: bytes) -> _Attestation:
    # Imported here: most proxies verify no such proof.
    from cbor2 import CBORError, loads
    from cryptography.x509 import load_der_x509_certificate

    try:
        found = loads(
            attestation,
            max_depth=MAX_DEPTH,
            allow_indefinite=False,
            allow_duplicate_keys=False,
            strict_hashable_types=True,
        )
        if found["fmt"] != FORMAT:
            raise ValueError("another format")
        leaf, intermediate = (load_der_x509_certificate(one) for one in found["attStmt"]["x5c"])
        return _Attestation(leaf, intermediate, _read_data(found["authData"]))
    except (CBORError, ArithmeticError, LookupError, TypeError, ValueError):
        raise ProofInvalid("The proof contains no attestation of App Attest.") from None


def _read_data(whole: bytes) -> _AppData:
    """Take the device's data apart; the key's id is as long as a hash.

    Raises:
        TypeError, ValueError: it is too short, or another id.
    """
    if len(whole) < 87 or whole[53:55] != b"\x00\x20":
        raise ValueError("no attested credential data")
    return _AppData(bytes(whole), whole[:32], whole[33:37], whole[37:53], whole[55:87])


def read_root(tier: AppAttestTier) -> Certificate:
    """Read the certificate by which attestations are verified.

    Raises:
        OSError, ValueError: there is none that can be used.
    """
    from cryptography.x509 import load_pem_x509_certificate

    with Path(tier.root_file or APPLE_ROOT).open("rb") as file:
        return load_pem_x509_certificate(file.read(MAX_ROOT_BYTES))


def _find_root(tier: AppAttestTier) -> Certificate:
    try:
        return read_root(tier)
    except (OSError, ValueError) as problem:
        raise report_unverified(KIND, problem, "the proxy lacks the root's certificate") from None


def _check_nonce(leaf: Certificate, nonce: bytes) -> None:
    from cryptography.x509 import ExtensionNotFound, ObjectIdentifier, UnrecognizedExtension

    try:
        found = leaf.extensions.get_extension_for_oid(ObjectIdentifier(NONCE_EXTENSION)).value
    except (ExtensionNotFound, ValueError):
        found = None
    if not isinstance(found, UnrecognizedExtension) or found.value != NONCE_PREFIX + nonce:
        raise ProofInvalid("The attestation was made for another challenge, or was changed; attest a new key.")


def _check_key(found: _Attestation, key_id: bytes) -> None:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = found.leaf.public_key()
    if not isinstance(key, EllipticCurvePublicKey):
        raise ProofInvalid("The attestation is for a key of another kind.")
    digest = hashlib.sha256(key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)).digest()
    if not digest == key_id == found.data.key_id:
        raise ProofInvalid("The attestation is for another key (key_id).")


def _check_app(data: _AppData, tier: AppAttestTier) -> None:
    if data.app_hash != hashlib.sha256(tier.app.encode()).digest():
        raise ProofInvalid("The attestation is for another app.")
    if data.environment != ENVIRONMENTS[tier.environment]:
        raise ProofInvalid(f"The attestation is not of the environment {tier.environment}.")
    if data.counter != bytes(4):
        raise ProofInvalid("The key was used before; attest a new one.")
