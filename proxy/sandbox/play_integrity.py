"""The stand-in for Google Play Integrity: it makes tokens for any app, with keys that are no secret."""

from __future__ import annotations

import hashlib
import time
from base64 import b64encode
from collections.abc import Mapping
from typing import Any

import orjson
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc import jwe, jws
from joserfc.jwk import ECKey, OctKey

KIND = "play_integrity"
_PRIVATE = ec.derive_private_key(int.from_bytes(hashlib.sha256(b"sandbox").digest()), ec.SECP256R1())
_SECRET = hashlib.sha256(b"sandbox-decryption-key").digest()
#: The keys of every app, as the Play Console shows them. They open nothing else.
DECRYPTION_KEY = b64encode(_SECRET).decode()
VERIFICATION_KEY = b64encode(
    _PRIVATE.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
).decode()


def give(wanted: Mapping[str, Any]) -> str:
    """Give a token, as Google Play gives one to an app.

    Raises:
        ValueError: the wish is not complete.
    """
    package, nonce = wanted.get("package"), wanted.get("nonce")
    if not (isinstance(package, str) and isinstance(nonce, str)):
        raise ValueError("name the package of an app and a nonce, as texts")
    verdict = {
        "requestDetails": {
            "requestPackageName": package,
            "nonce": nonce,
            "timestampMillis": str(int(time.time() * 1000)),
        },
        "appIntegrity": {
            "appRecognitionVerdict": wanted.get("app_verdict", "PLAY_RECOGNIZED"),
            "packageName": package,
            "versionCode": "1",
        },
        "deviceIntegrity": {"deviceRecognitionVerdict": [wanted.get("device_verdict", "MEETS_DEVICE_INTEGRITY")]},
        "accountDetails": {"appLicensingVerdict": "LICENSED"},
    }
    return seal(verdict)


def seal(verdict: Any, *, key: bytes = _SECRET, private: ec.EllipticCurvePrivateKey = _PRIVATE) -> str:
    """Sign and encrypt a token with this verdict."""
    signed = jws.serialize_compact({"alg": "ES256"}, orjson.dumps(verdict), ECKey.import_key(private))
    return jwe.encrypt_compact({"alg": "A256KW", "enc": "A256GCM"}, signed, OctKey.import_key(key))
