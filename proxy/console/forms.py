"""Forms of the console: their fields, and where they come from."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlsplit

from starlette.requests import Request

from proxy.errors import BadRequest, NotAllowed, UnsupportedMediaType
from proxy.http.bodies import FORM_BYTES, read_body

_URLENCODED = "application/x-www-form-urlencoded"
#: Fields of one form.
MOST_FIELDS = 40
_READS = ("GET", "HEAD")


async def read_fields(request: Request, most: int = FORM_BYTES) -> dict[str, str]:
    """Read the fields of a form by name.

    Raises:
        UnsupportedMediaType, BodyTooLarge, BadRequest: it is no form, too long, or has a field twice.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _URLENCODED:
        raise UnsupportedMediaType(f"Send the form as {_URLENCODED}.")
    body = await read_body(request, most)
    try:
        text = body.decode("ascii")
        pairs = parse_qsl(
            text, keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=MOST_FIELDS
        )
    except ValueError:
        raise BadRequest(f"The form cannot be read, or has more than {MOST_FIELDS} fields.") from None
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise BadRequest("The form has a field twice.")
    return fields


def check_source(request: Request) -> None:
    """Make sure that a request comes from the console itself, or is a link that only shows a page.

    Browsers say where a request comes from (https://www.w3.org/TR/fetch-metadata/). Older ones name the origin alone.

    Raises:
        NotAllowed: another site has sent it, or nothing says where it comes from and it changes something.
    """
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    if request.method in _READS:
        if is_link(request) or (site in (None, "same-origin", "none") and _is_own(request, origin, unset=True)):
            return
    elif site == "same-origin" or (site is None and _is_own(request, origin, unset=False)):
        return
    raise NotAllowed("The console takes this only from its own pages; open /console in this browser and try again.")


def is_link(request: Request) -> bool:
    """Return whether a request opens a page in a tab of its own, as a link does."""
    headers = request.headers
    is_page = (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")) == ("navigate", "document")
    return request.method in _READS and is_page and "origin" not in headers


def _is_own(request: Request, origin: str | None, *, unset: bool) -> bool:
    if origin is None:
        return unset
    try:
        return urlsplit(origin).netloc.lower() == request.headers.get("host", "").lower() != ""
    except ValueError:
        return False
