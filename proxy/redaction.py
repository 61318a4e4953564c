"""Redact secrets from texts: known ones in every spelling, and whatever has the form of one."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Iterator
from urllib.parse import parse_qsl, unquote, urlsplit

from proxy.settings import Secret

HIDDEN = "****"
#: Shorter parts of a secret would also be found in words that are none.
MIN_PART_LENGTH = 8
#: What our own credentials look like, wherever they turn up: tenant keys, admin tokens, session tokens, what follows
#: `/s/`, `/uploads/` and `/multipart/` in a path, the user and password of a URL, the query of a signed URL, an
#: Authorization header.
_PATTERNS = re.compile(
    r"""fp[ak]_[A-Za-z0-9_-]+
      | (?<=/s/)[^/\s"']+
      | (?<=/uploads/)[^/\s"']+
      | (?<=/multipart/)[^/\s"']+
      | (?<=://)[^/\s"'@]+(?=@)
      | (?<=\?)[^\s"'?]*(?:[Ss]ignature|[Tt]oken)[^\s"']*
      | \.?eyJ[A-Za-z0-9_-]{20,}(?:\.[A-Za-z0-9_-]+)+
      | \.eJ[A-Za-z0-9_-]{20,}(?:\.[A-Za-z0-9_-]+)+
      | (?i:(?<=authorization:\s)|(?<=\bKey\s)|(?<=\bBearer\s))[^\s"',]{16,}""",
    re.VERBOSE,
)
#: Looking for a few letters first spares most texts the search for whole patterns.
_SIGNS = (
    "fpk_", "fpa_", "/s/", "/uploads/", "/multipart/", "://", "signature", "token", "eyj", ".ej", "authorization",
    "key ", "bearer ",
)  # fmt: skip
#: Characters that no encoding changes (RFC 3986, 2.3).
_UNRESERVED = frozenset(string.ascii_letters + string.digits + "-._~")
_ESCAPES = {"\n": "n", "\r": "r", "\t": "t", "\b": "b", "\f": "f"}


class Redactor:
    """Finds and removes the given secrets, and what has the form of one, in texts of any origin."""

    def __init__(self, secrets: Iterable[Secret]) -> None:
        self._values: set[str] = set()
        self._known: re.Pattern[str] | None = None
        #: Of each secret, the longest part that every spelling has as it stands.
        self._cores: list[str] = []
        self.add(secrets)

    def add(self, secrets: Iterable[Secret]) -> None:
        """Find these too. A secret that is no longer used stays known."""
        self._values |= {part for secret in secrets for part in _parts(secret.reveal()) if len(part) >= MIN_PART_LENGTH}
        self._cores = [max(re.findall(r"[\w.~-]*", value, re.ASCII), key=len) for value in self._values]
        longest_first = sorted(self._values, key=len, reverse=True)
        self._known = re.compile("|".join(map(_every_spelling, longest_first))) if longest_first else None

    def is_needed(self, text: str) -> bool:
        """Return whether `clean` would change the text."""
        # Loops, not `any` over generators: each log line is asked, and most have nothing. The pattern alone takes eight
        # times as long as the search for a part that all spellings of a secret have.
        for core in self._cores:
            if core in text and self._known is not None and self._known.search(text):
                return True
        lowered = text.lower()
        for sign in _SIGNS:
            if sign in lowered:
                return _PATTERNS.search(text) is not None
        return False

    def clean(self, text: str) -> str:
        if self._known is not None:
            text = self._known.sub(HIDDEN, text)
        return _PATTERNS.sub(HIDDEN, text)


def _parts(secret: str) -> Iterator[str]:
    """Yield a secret as a whole, the secret half of a key, and the passwords in a URL, as they stand and decoded."""
    yield secret
    if "//" not in secret:
        yield secret.partition(":")[2]
        return
    try:
        parts = urlsplit(secret)
    except ValueError:
        return
    passwords = [parts.password or ""]
    passwords += [value for name, value in parse_qsl(parts.query) if "password" in name.lower()]
    for password in passwords:
        yield password
        yield unquote(password)


def _every_spelling(secret: str) -> str:
    """Write a pattern for a secret as it stands, and as `repr`, JSON and URLs write it, also one inside the other."""
    return "".join(re.escape(char) if char in _UNRESERVED else _spellings(char) for char in secret)


def _spellings(char: str) -> str:
    utf8 = char.encode("utf-8", "surrogatepass")
    utf16 = char.encode("utf-16-be", "surrogatepass").hex()
    percent = "".join(f"%{byte:02x}" for byte in utf8)
    json_escape = r"\\+u".join(utf16[at : at + 4] for at in range(0, len(utf16), 4))
    forms = [
        # As it stands, or behind backslashes: quotes, and the backslash itself.
        rf"\\*{re.escape(char)}",
        f"(?i:{percent})",
        rf"(?i:\\+u{json_escape})",
        "".join(rf"\\+x{byte:02x}" for byte in utf8),
        rf"\\+x{ord(char):02x}" if ord(char) < 0x100 else rf"\\+U{ord(char):08x}",
    ]
    if char in _ESCAPES:
        forms.append(rf"\\+{_ESCAPES[char]}")
    if char == " ":
        forms.append(r"\+")
    return f"(?:{'|'.join(forms)})"
