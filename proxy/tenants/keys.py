"""Tenant keys: `fpk_<id>_<secret>`, for a tenant's own servers. Only a hash of the secret is ever kept.

The secret is 256 random bits, so a plain SHA-256 is enough: there is nothing to guess, and no need for a slow hash.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping

from proxy.errors import Unauthenticated
from proxy.stores.directory import TenantKey

PREFIX = "fpk_"
_KEY_ID = re.compile(r"[0-9a-f]{16}")
_KEY = re.compile(r"fpk_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")


def is_key_id(text: str) -> bool:
    """Return whether a text can be the id of a key."""
    return _KEY_ID.fullmatch(text) is not None


def make(tenant: str, name: str, now: float) -> tuple[str, TenantKey]:
    """Make a new key: the text to show once, and the record to keep."""
    key_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
    record = TenantKey(id=key_id, tenant=tenant, name=name, secret_hash=hash_secret(secret), created_at=now)
    return f"{PREFIX}{key_id}_{secret}", record


def verify(text: str, known: Mapping[str, TenantKey]) -> TenantKey:
    """Verify a key that is presented, in constant time, and return its record.

    Raises:
        Unauthenticated: malformed, unknown, or revoked: all alike.
    """
    match = _KEY.fullmatch(text)
    record = known.get(match[1]) if match else None
    if match is None or record is None or not hmac.compare_digest(hash_secret(match[2]), record.secret_hash):
        raise Unauthenticated("The tenant key is not valid.")
    return record


def hash_secret(secret: str) -> str:
    """Hash 256 random bits: what is kept of a key."""
    return hashlib.sha256(secret.encode()).hexdigest()
