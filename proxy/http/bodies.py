"""Reading request bodies: bounded in memory by the middleware; in time, size and shape here.

Call these once it is known that the caller may ask, and how often.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from proxy.errors import BadRequest, BodyTooLarge, UnsupportedMediaType
from proxy.http.disconnect import CallerGone
from proxy.http.json_bounds import check_json_bounds, has_key_twice
from proxy.http.scope import HAS_BODY, header_of, values_of
from proxy.limits.inputs import parse_json
from proxy.tenants.form_problems import JSON, describe_problem, find_place

#: The longest silence in a body, and the longest a body that keeps trickling may take.
SILENCE_SECONDS = 30.0
TOTAL_SECONDS = 300.0
#: The largest of our own forms, which hold names and numbers.
FORM_BYTES = 64 * 1024
#: Problems that one answer names.
MOST_PROBLEMS = 20
Form = TypeVar("Form", bound=BaseModel)


def check_encoding(request: Request) -> None:
    """Refuse a body that is packed, or says so (RFC 9110, sections 8.4 and 15.5.16).

    Raises:
        UnsupportedMediaType: it names the coding, and the one that is taken.
    """
    for coding in values_of(request.scope, b"content-encoding"):
        if coding.strip().lower() not in ("", "identity"):
            raise UnsupportedMediaType(
                f"The body has the content-encoding {coding[:40]!r}; send it uncompressed.",
                headers={"accept-encoding": "identity"},
            )


async def read_body(request: Request, most: int | None = None) -> bytearray:
    """Read the whole body; `most` is a bound below that of all bodies.

    Raises:
        UnsupportedMediaType: it is packed.
        BodyTooLarge: more than the bound.
        BadRequest: it stopped coming.
        CallerGone: the caller hung up in the middle of it.
    """
    check_encoding(request)
    if request.scope.get("state", {}).get(HAS_BODY):
        # There is nothing to wait for, and a timer takes longer than all the rest here.
        return await _collect(request, most, None)
    try:
        async with asyncio.timeout(SILENCE_SECONDS) as silence:
            return await _collect(request, most, silence)
    except TimeoutError:
        raise BadRequest("The body stopped arriving; send it again.") from None


async def _collect(request: Request, most: int | None, silence: asyncio.Timeout | None) -> bytearray:
    """Collect the whole body; each piece of it restarts the time of silence."""
    body = bytearray()
    now = asyncio.get_running_loop().time
    latest = now() + TOTAL_SECONDS
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise CallerGone
        piece = message.get("body", b"")
        body += piece
        if most is not None and len(body) > most:
            raise BodyTooLarge(f"The body is larger than {most} bytes, which is the limit here.")
        if not message.get("more_body", False):
            return body
        if piece and silence is not None:
            silence.reschedule(min(now() + SILENCE_SECONDS, latest))


async def read_json(request: Request) -> Any:
    """Read the body, and parse its JSON.

    Raises:
        UnsupportedMediaType, BadRequest: it is not JSON, too deep, or has too many values.
    """
    return _parse(request, await read_body(request))


async def read_form(request: Request, form: type[Form], most: int | None = FORM_BYTES) -> Form:
    """Read the body as one of our own forms; an empty body is an empty form.

    Raises:
        BadRequest: a field is wrong, missing or unknown; every one is named. Or the body has a key twice.
        BodyTooLarge: it has more than `most` bytes.
    """
    body = await read_body(request, most)
    if not body.strip():
        return check_form(form, {})
    document = _parse(request, body)
    _check_keys(body, document)
    return check_form(form, document)


def read_document(text: str) -> Any:
    """Parse the JSON of a text that a form holds.

    Raises:
        BadRequest: it is not JSON, too deep, has too many values, or a key twice.
    """
    body = bytearray(text.encode())
    check_json_bounds(body)
    document = parse_json(body, None)
    _check_keys(body, document)
    return document


def check_form(form: type[Form], document: Any) -> Form:
    """Read a document as one of our own forms.

    Raises:
        BadRequest: a field is wrong, missing or unknown; every one is named.
    """
    try:
        return form.model_validate(document)
    except ValidationError as problem:
        raise BadRequest("; ".join(_sentence(error) for error in problem.errors()[:MOST_PROBLEMS])) from None


def _parse(request: Request, body: bytearray) -> Any:
    check_json_bounds(body)
    return parse_json(body, header_of(request.scope, b"content-type"))


def _check_keys(body: bytearray, document: Any) -> None:
    """Refuse a JSON text with a key twice in an object: readers differ in which one counts (RFC 8259, section 4).

    `document` is what was parsed of it. A large text is parsed again only to name the key.
    """
    if len(body) <= FORM_BYTES or has_key_twice(body, document):
        json.loads(body, object_pairs_hook=_check_pairs, parse_int=str)


def _check_pairs(pairs: list[tuple[str, Any]]) -> None:
    if len(pairs) == len(dict(pairs)):
        return
    names = Counter(name for name, _ in pairs)
    twice = next(name for name, count in names.items() if count > 1)
    raise BadRequest(f"{twice[:100]}: stands in the body twice; keep one.")


def _sentence(error: Any) -> str:
    return f"{find_place(error, 'the body')}: {describe_problem(error, JSON)}"
