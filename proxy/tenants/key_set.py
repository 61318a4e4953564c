"""The public keys of an issuer (JWK Set, RFC 7517)."""

from __future__ import annotations

from base64 import b64decode
from collections import defaultdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from joserfc.jwk import Key

MAX_BYTES = 256 * 1024
MOST_KEYS = 100
#: Keys that are tried for one token: those with its `kid`, or, for a token without one, all that fit.
MOST_TRIED = 4
#: Verification with a larger key takes long, and a smaller one can be broken (NIST SP 800-131A).
RSA_BITS = range(2048, 4096 + 1)
#: What private keys and shared secrets have (RFC 7518, section 6; RFC 8037, section 2).
_PRIVATE = frozenset(("d", "k"))
_TYPES = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}
_CURVES = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521", "EdDSA": "Ed25519"}


class KeySet:
    """Keys by their `kid`. Two keys may have one `kid` (RFC 7517, section 4.5): then both are tried.

    What is no key for signatures, or of an unknown type, is left out (section 5).
    """

    def __init__(self, document: Any) -> None:
        """Read a JWK Set.

        Raises:
            ValueError: it is none, or has a private key, no usable key or more than `MOST_KEYS`.
        """
        listed = document.get("keys") if isinstance(document, dict) else None
        if not isinstance(listed, list):
            raise ValueError("is not a JWK Set: an object with a list of keys")
        if len(listed) > MOST_KEYS:
            raise ValueError(f"has {len(listed)} keys; at most {MOST_KEYS} are taken")
        if any(isinstance(key, dict) and not _PRIVATE.isdisjoint(key) for key in listed):
            raise ValueError("has a private key or a shared secret; it must have public keys only")
        self._by_id: defaultdict[str | None, list[Key]] = defaultdict(list)
        for document in listed:
            if (key := _import(document)) is not None:
                self._by_id[key.kid].append(key)
        if not self._by_id:
            raise ValueError("has no key that verifies signatures")

    def find(self, kid: str | None, algorithm: str) -> list[Key]:
        """Find the keys that may have signed a token."""
        keys = self._by_id.get(kid, []) if kid is not None else [key for keys in self._by_id.values() for key in keys]
        return [key for key in keys if _fits(key, algorithm)]


def read_curve_key(text: str) -> Key:
    """Read the public key of ES256, in base64 of its DER form.

    Raises:
        ValueError: it is none.
    """
    from joserfc.errors import JoseError
    from joserfc.jwk import ECKey

    try:
        key = ECKey.import_key(b64decode(text, validate=True))
    except (JoseError, ValueError, TypeError):
        raise ValueError("must be a public key of the curve P-256, as DER in base64") from None
    if key.curve_name != _CURVES["ES256"] or key.is_private:
        raise ValueError("must be a public key of the curve P-256, as DER in base64")
    return key


def _import(document: Any) -> Key | None:
    """Import a key, if it is a public one that verifies signatures."""
    if not isinstance(document, dict) or document.get("kty") not in _TYPES.values():
        return None
    operations = document.get("key_ops", ["verify"])
    if document.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        return None
    # Imported here, as below: only where tenants have issuers.
    from joserfc.errors import JoseError
    from joserfc.jwk import import_key
    from joserfc.util import base64_to_int

    try:
        if document["kty"] == "RSA" and base64_to_int(document["n"]).bit_length() not in RSA_BITS:
            return None
        return import_key(document)
    except (JoseError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _fits(key: Key, algorithm: str) -> bool:
    if key.key_type != _TYPES[algorithm[:2]] or key.get("alg", algorithm) != algorithm:
        return False
    return algorithm not in _CURVES or key.get("crv") == _CURVES[algorithm]
