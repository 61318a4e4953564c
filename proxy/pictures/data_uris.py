"""The pictures in an input, written out as data URIs."""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple, cast
from urllib.parse import unquote_to_bytes

from proxy.errors import Detail, InvalidInput
from proxy.limits.inputs import TRIMMED
from proxy.pictures.cleaner import PictureCleaner, UncleanPicture, Wanted
from proxy.tenants.plans import Plan

#: Data URIs in one input: each is looked at, and each picture takes a process. No model takes more.
MOST_DATA_URIS = 16
#: How much of a data URI is looked at to recognise its type, as it is written.
_HEAD_CHARS = 8192
_SCHEME = "data:"
Where = tuple[str | int, ...]


class _Picture(NamedTuple):
    """A picture in an input: where, its type, how its bytes are written, and these."""

    where: Where
    media_type: str
    form: str
    payload: str


class InputPictures:
    """Removes the metadata of the pictures in inputs."""

    def __init__(self, cleaner: PictureCleaner) -> None:
        self._cleaner = cleaner

    async def clean(self, tenant: str, subject: str, plan: Plan, body: dict[str, Any]) -> dict[str, Any]:
        """Return the same input with pictures that are nothing but pixels; what is no picture stays as it is.

        Raises:
            InvalidInput: a picture cannot be written again, or there are too many.
            Overloaded, Internal: as `PictureCleaner.clean`.
        """
        found = list(islice(_data_uris(body), MOST_DATA_URIS + 1))
        if len(found) > MOST_DATA_URIS:
            message = f"An input of this plan may have {MOST_DATA_URIS} data URIs; upload the pictures"
            raise InvalidInput([_problem(found[-1][0], message)])
        for where, media_type, form, payload in filter(None, [self._read(*one) for one in found]):
            wanted = Wanted(media_type, form, plan.max_data_uri_bytes * 3 // 4, plan.max_pixels)
            try:
                written = await self._cleaner.clean(tenant, subject, payload.encode(), wanted)
            except UncleanPicture as problem:
                raise InvalidInput([_problem(where, str(problem))]) from None
            body = cast(dict[str, Any], _replace(body, where, f"{_SCHEME}{media_type};base64,{written.decode()}"))
        return body

    def _read(self, where: Where, uri: str) -> _Picture | None:
        head, _, payload = uri[len(_SCHEME) :].partition(",")
        announced, _, parameters = head.lower().partition(";")
        form = "base64" if parameters.rpartition(";")[2].strip() == "base64" else "percent"
        try:
            media_type = self._cleaner.find_type(_first_bytes(payload[:_HEAD_CHARS], form), announced.strip())
        except UncleanPicture as problem:
            raise InvalidInput([_problem(where, str(problem))]) from None
        return None if media_type is None else _Picture(where, media_type, form, payload)


def _data_uris(value: Any, where: Where = ()) -> Iterator[tuple[Where, str]]:
    """Yield each data URI in a value, in every field: a model may read a picture from any of them."""
    if isinstance(value, str):
        uri = value.lstrip(TRIMMED) if value[:1] <= " " else value
        if uri[: len(_SCHEME)].lower() == _SCHEME:
            yield where, uri
    elif isinstance(value, dict):
        for name, one in value.items():
            yield from _data_uris(one, (*where, name))
    elif isinstance(value, list):
        for at, one in enumerate(value):
            yield from _data_uris(one, (*where, at))


def _first_bytes(payload: str, form: str) -> bytes:
    data = unquote_to_bytes(payload)
    if form == "percent":
        return data
    text = b"".join(data.split())
    try:
        return b64decode(text[: len(text) // 4 * 4])
    except binascii.Error:
        return b""


def _replace(value: Any, where: Where, new: str) -> Any:
    """Copy a value with another one at a place; what is beside it is shared."""
    if not where:
        return new
    copy = value.copy()
    copy[where[0]] = _replace(value[where[0]], where[1:], new)
    return copy


def _problem(where: Where, message: str) -> Detail:
    return {"loc": ["body", *where], "msg": message, "type": "image_url"}
