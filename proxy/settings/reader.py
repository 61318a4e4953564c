"""Reads one variable at a time, and collects what is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from proxy.numbers import parse_whole
from proxy.settings.variables import DEFAULTS, SECRETS

#: Of a file that holds a setting: it may be a device that never ends.
MAX_FILE_BYTES = 64 * 1024
_QUOTES = "\"'`\u201c\u201d\u2018\u2019"
IN_QUOTES = "contains quotes; remove them (docker's --env-file keeps them)"
#: fal's keys are a UUID and hexadecimal digits; the rest leaves room. No shell's `$`, no brackets of a placeholder.
_FAL_KEY = re.compile(r"[A-Za-z0-9._~+/=:-]+")
T = TypeVar("T")


def is_quoted(text: str) -> bool:
    """Return whether a text begins and ends with a quotation mark, which no value does."""
    return len(text) > 1 and text[0] in _QUOTES and text[-1] in _QUOTES


class SettingsError(Exception):
    """The settings do not allow a start.

    Attributes:
        problems: one sentence each, beginning with the variable's name.
        warnings: what stops no start, in the same form.
    """

    def __init__(self, problems: list[str], warnings: Sequence[str] = ()) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
        self.warnings = tuple(warnings)


class EnvironmentReader:
    """Reads variables one by one and keeps the complaints, so that all are reported at once."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.problems: list[str] = []
        self.warnings: list[str] = []

    def complain(self, name: str, what: str) -> None:
        self.problems.append(f"{name}: {what}")

    def warn(self, name: str, what: str) -> None:
        self.warnings.append(f"{name}: {what}")

    def value(self, name: str) -> str:
        """Return the text of a variable, from the file that `NAME_FILE` names, or the default; '' if there is none."""
        given = self._environ.get(name, "").strip()
        path = self._environ.get(f"{name}_FILE", "").strip() if name in SECRETS else ""
        if given and path:
            self._complain_once(name, f"is set twice, also as {name}_FILE; keep one")
        if not given and path:
            given = self._file(name, path)
        return self._unwrap(name, given) or DEFAULTS.get(name, "")

    def _unwrap(self, name: str, given: str) -> str:
        """What is left without the variable's name and without quotes: it is looked at too, so that each problem is
        named at once."""
        if line := re.match(rf"(?:export\s+)?{name}\s*=\s*", given):
            self._complain_once(name, f"begins with {name}=; give only what is behind it")
            given = given[line.end() :]
        if is_quoted(given):
            self._complain_once(name, IN_QUOTES)
            given = given[1:-1].strip()
        return given

    def _file(self, name: str, path: str) -> str:
        try:
            with Path(path).open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
            if len(content) <= MAX_FILE_BYTES:
                # Some editors begin a file with a byte order mark.
                return content.decode("utf-8-sig").strip()
            self._complain_once(f"{name}_FILE", f"names a file of more than {MAX_FILE_BYTES} bytes")
        except UnicodeDecodeError:
            self._complain_once(f"{name}_FILE", "names a file that is not text in UTF-8; save it as UTF-8")
        except (OSError, ValueError) as problem:
            # The latter: no file can have this path.
            self._complain_once(f"{name}_FILE", f"cannot be read ({type(problem).__name__})")
        return ""

    def _complain_once(self, name: str, what: str) -> None:
        if f"{name}: {what}" not in self.problems:
            self.complain(name, what)

    def take(self, name: str, parse: Callable[[str], T]) -> T | None:
        text = self.value(name)
        if not text:
            return None
        try:
            return parse(text)
        except ValueError as problem:
            self.complain(name, str(problem))
            return None

    def get_required(self, name: str, parse: Callable[[str], str]) -> str:
        return self.take(name, parse) or ""

    def integer(self, name: str, least: int, most: int) -> int:
        text = self.value(name)
        if (number := parse_whole(text, most, least)) is not None:
            return number
        self.complain(name, f"must be a whole number from {least} to {most}")
        return least

    def optional_integer(self, name: str, least: int, most: int) -> int | None:
        return self.integer(name, least, most) if self.value(name) else None

    def one_of(self, name: str, choices: tuple[str, ...]) -> str:
        text = self.value(name).lower()
        if text not in choices:
            self.complain(name, f"must be one of {', '.join(choices)}")
        return text

    def get_each(self, name: str, parse: Callable[[str], T]) -> list[T]:
        items: list[T] = []
        parts = [part.strip() for part in self.value(name).split(",")]
        if len(parts) > 1 and not any(parts):
            self.complain(name, "has commas and nothing between them")
        if self.value(name).startswith('["'):
            self.complain(name, "is a list in JSON; write the values with commas between them")
        for part in filter(None, parts):
            if is_quoted(part):
                self._complain_once(name, IN_QUOTES)
            try:
                items.append(parse(part))
            except ValueError as problem:
                self.complain(name, str(problem))
        return items

    def fal_key(self) -> str:
        whole, first, second = (self.value(name) for name in ("FAL_KEY", "FAL_KEY_ID", "FAL_KEY_SECRET"))
        if whole and (first or second):
            self.complain("FAL_KEY", "is set together with FAL_KEY_ID or FAL_KEY_SECRET; set one or the other")
        key = whole or (f"{first}:{second}" if first and second else "")
        if not key:
            self.complain("FAL_KEY", "is not set; set it, or both FAL_KEY_ID and FAL_KEY_SECRET")
        else:
            self._check_key("FAL_KEY", key)
        return key

    def usage_key(self) -> str:
        """Return the key for fal's platform API; '' if there is none."""
        key = self.value("FAL_USAGE_KEY")
        if key:
            self._check_key("FAL_USAGE_KEY", key)
        return key

    def _check_key(self, name: str, key: str) -> None:
        if any(quote in key for quote in _QUOTES):
            self._complain_once(name, IN_QUOTES)
        elif not _FAL_KEY.fullmatch(key):
            self.complain(name, "contains characters that no fal key has, such as spaces, commas or $")
        elif not all(key.partition(":")[::2]) or "://" in key:
            self.complain(name, "is not id:secret, the form of fal's keys")
