"""Signed upload URLs and short-lived tokens of the sandbox."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from urllib.parse import parse_qs, urlencode


class Signer:
    """Signs with a secret of its own, made when the sandbox starts."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    def query(self, path: str, seconds: float) -> str:
        """Make the query that lets its bearer write to `path` for so long."""
        expires = f"{time.time() + seconds:.3f}"
        return urlencode({"expires": expires, "signature": self._signature("upload", path, expires)})

    def allows(self, path: str, query: str) -> bool:
        asked = parse_qs(query)
        expires, signature = asked.get("expires", [""])[0], asked.get("signature", [""])[0]
        return self._is_good("upload", path, expires, signature)

    def token(self, purpose: str, seconds: float) -> str:
        expires = str(int(time.time() + seconds))
        return f"sandbox-{purpose}.{expires}.{self._signature(purpose, '', expires)}"

    def accepts(self, purpose: str, token: str) -> bool:
        head, _, rest = token.partition(".")
        expires, _, signature = rest.partition(".")
        return head == f"sandbox-{purpose}" and self._is_good(purpose, "", expires, signature)

    def _is_good(self, purpose: str, subject: str, expires: str, signature: str) -> bool:
        expected = self._signature(purpose, subject, expires)
        return hmac.compare_digest(signature.encode(), expected.encode()) and float(expires) > time.time()

    def _signature(self, purpose: str, subject: str, expires: str) -> str:
        text = "\n".join((purpose, subject, expires)).encode()
        return hmac.new(self._secret, text, hashlib.sha256).hexdigest()
