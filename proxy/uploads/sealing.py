"""Signed URLs at rest: sealed by the secret of their slot, which only its owner has.

The database keeps no more of a slot than a hash, so reading it, or a copy of it, opens no upload at fal.
"""

from __future__ import annotations

import base64
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_PREFIX = "sealed:"
_PURPOSE = b"fal-proxy: the signed URL of an upload slot"
_NONCE_BYTES = 12


def seal(url: str, slot: str) -> str:
    """Seal a URL for the store: AES-GCM under a key that is derived from the slot's id (RFC 5869)."""
    nonce = os.urandom(_NONCE_BYTES)
    return _PREFIX + base64.urlsafe_b64encode(nonce + _cipher(slot).encrypt(nonce, url.encode(), None)).decode()


def unseal(stored: str, slot: str) -> str:
    """Unseal a stored URL. Versions before this one did not seal; such a URL is good until its hour is over.

    Raises:
        ValueError: it was not sealed for this slot.
    """
    if not stored.startswith(_PREFIX):
        return stored
    from cryptography.exceptions import InvalidTag

    try:
        sealed = base64.urlsafe_b64decode(stored.removeprefix(_PREFIX))
        return _cipher(slot).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], None).decode()
    except (InvalidTag, ValueError):
        raise ValueError("the URL was not sealed for this slot") from None


def _cipher(slot: str) -> AESGCM:
    # Imported here: a proxy that relays no files has better uses for the memory.
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return AESGCM(HKDF(SHA256(), length=32, salt=None, info=_PURPOSE).derive(slot.encode()))
