"""Pages of a listing: how long, an opaque cursor to the next one, and what they are filtered by.

A cursor holds the sort key of the last entry of a page. What is added in front of it later moves no entry from one page
to another, and a cursor stays valid when its entry is removed.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import TypeVar
from urllib.parse import urlencode

import orjson

from proxy import targets
from proxy.clock import LAST_SECOND
from proxy.errors import BadRequest, BadTarget
from proxy.numbers import MOST, parse_whole
from proxy.targets import Target

_Entry = TypeVar("_Entry")

_Key = str | int | tuple[float, str] | tuple[str, ...]

_LONGEST_CURSOR = 300
#: A subject, of 200 characters of four bytes.
_LONGEST_NAME = 1_100
#: A day, an endpoint and a subject, of 200 characters each.
_LONGEST_NAMES = 2_300
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
#: Not all that `datetime.fromisoformat` reads: a moment has its offset, and the separators of ISO 8601 and RFC 3339.
#: Go and .NET write up to nine decimals; Python reads six.
_MOMENT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?:T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?(?:Z|[+-][0-9]{2}:[0-9]{2}))?"
)


def parse_limit(given: str | None, usual: int, most: int) -> int:
    """Return how many entries a page has.

    Raises:
        BadRequest: it is not a number from 1 to `most`.
    """
    if given is None:
        return usual
    if (limit := parse_whole(given, most, least=1)) is None:
        raise BadRequest(f"limit must be a number from 1 to {most}.")
    return limit


def cut_page(
    entries: Sequence[_Entry], limit: int, key: Callable[[_Entry], _Key]
) -> tuple[Sequence[_Entry], str | None]:
    """Return the first entries, and the cursor to the next page if there are more; `key` is what they are sorted by."""
    page = entries[:limit]
    return page, _encode(key(page[-1])) if len(entries) > limit else None


def link_next(query: Mapping[str, str], cursor: str | None) -> dict[str, str]:
    """Return the `link` header to the next page of a request (RFC 8288); none after the last one.

    It is relative to the request, whose public address a gateway may have changed.
    """
    return {} if cursor is None else {"link": f'<?{urlencode({**query, "cursor": cursor})}>; rel="next"'}


def parse_time_cursor(given: str | None) -> tuple[float, str] | None:
    """Return the time and the id of the last entry of the page before.

    Raises:
        BadRequest: it is not a cursor of such a listing.
    """
    if given is None:
        return None
    match _decode(given):
        case [float(at), str(id_)] if math.isfinite(at) and id_.isascii() and id_.isalnum():
            return at, id_
    raise _not_a_cursor()


def parse_number_cursor(given: str | None) -> int | None:
    """Return the number of the last entry of the page before.

    Raises:
        BadRequest: it is not a cursor of such a listing.
    """
    if given is None:
        return None
    match _decode(given):
        case int(number) if 0 <= number <= MOST and not isinstance(number, bool):
            return number
    raise _not_a_cursor()


def parse_name_cursor(given: str | None) -> str:
    """Return the name of the last entry of the page before; '' for the first page.

    Raises:
        BadRequest: it is not a cursor of such a listing.
    """
    if given is None:
        return ""
    if isinstance(name := _decode(given, _LONGEST_NAME), str):
        return name
    raise _not_a_cursor()


def parse_names_cursor(given: str | None, number: int) -> tuple[str, ...]:
    """Return the names of the last entry of the page before, so many of them; none for the first page.

    Raises:
        BadRequest: it is not a cursor of such a listing.
    """
    if given is None:
        return ()
    found = _decode(given, _LONGEST_NAMES)
    if isinstance(found, list) and len(found) == number and all(map(_is_name, found)):
        return tuple(found)
    raise _not_a_cursor()


def _is_name(found: object) -> bool:
    # As those of subjects: a space that does not break, or what joins an emoji, is not printable to Python.
    return isinstance(found, str) and _CONTROL.search(found) is None


def parse_endpoint(given: str) -> Target:
    """Return the target of a submit to an endpoint.

    Raises:
        BadRequest: it cannot be one.
    """
    try:
        return targets.parse_path("POST", f"queue/{given}", "")
    except BadTarget:
        raise BadRequest("endpoint must be an endpoint's id, such as fal-ai/llava-next.") from None


def _encode(key: _Key) -> str:
    return base64.urlsafe_b64encode(orjson.dumps(key)).rstrip(b"=").decode()


def _decode(given: str, longest: int = _LONGEST_CURSOR) -> object:
    if len(given) <= longest:
        with suppress(ValueError):
            return orjson.loads(base64.b64decode(given + "=" * (-len(given) % 4), b"-_", validate=True))
    return None


def _not_a_cursor() -> BadRequest:
    return BadRequest("cursor: use next_cursor of the page before, as it is.")


def parse_since(given: str | None) -> float | None:
    """Return a moment, in seconds since 1970 UTC; a day begins at midnight UTC.

    Raises:
        BadRequest: it is neither a day nor a moment with its offset.
    """
    return None if given is None else parse_moment("since", given)


def parse_moment(name: str, given: str) -> float:
    """Return a moment that was given under a name, as `parse_since` does.

    Raises:
        BadRequest: it is neither a day nor a moment with its offset.
    """
    if _MOMENT.fullmatch(given):
        with suppress(ValueError, OverflowError):
            moment = datetime.fromisoformat(given)
            # One whose day in UTC the calendar does not have is none.
            at = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC).timestamp()
            # A fraction behind that is rounded up to a year that no answer could write.
            if at <= LAST_SECOND:
                return at
    raise BadRequest(f"{name}: must be a day such as 2026-01-31, or a moment such as 2026-01-31T08:00:00Z.")
