"""What a check finds."""

from __future__ import annotations

from typing import NamedTuple

OK, WARN, FAIL = "ok", "warn", "fail"


class Finding(NamedTuple):
    """The result of one check, and what to do about it."""

    check: str
    level: str
    message: str
    advice: str = ""
