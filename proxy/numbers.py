"""Numbers from outside: one strict reading for text, one for JSON, each with a bound.

`str.isdigit` knows digits that `int` does not (`²`), `int` reads `1_0` and `+1`, refuses more than 4,300 digits with a
`ValueError`, and `float` reads `nan`. These functions answer None for all of that.
"""

from __future__ import annotations

import re

#: The largest number that is read at all. A 64-bit column holds nine times as much, so sums fit too.
MOST = 10**18
_WHOLE = re.compile(r"[0-9]{1,18}")
_DECIMAL = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,30})?(?:e[+-]?[0-9]{1,3})?")


def parse_whole(text: str, most: int, least: int = 0) -> int | None:
    """Read a whole number in ASCII digits; None for any other text, or one out of bounds."""
    if not _WHOLE.fullmatch(text):
        return None
    number = int(text)
    return number if least <= number <= most else None


def parse_decimal(text: str, most: float) -> float | None:
    """Read a decimal number without a sign; None for any other text, or one above `most`."""
    return number_in_range(float(text), most) if _DECIMAL.fullmatch(text) else None


def number_in_range(value: object, most: float) -> float | None:
    """Return a JSON number from 0 to `most` as it is; None for any other value."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if 0 <= value <= most else None
