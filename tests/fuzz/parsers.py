"""Bytes that know the code: Atheris mutates inputs until they reach new branches of the parsers.

python -m tests.fuzz.parsers -max_total_time=300 -artifact_prefix=build/

The options are libFuzzer's. An input that breaks a parser is written to a file; give that file as an argument to run it
again. Of each parser a lie is an exception that it does not document, or an answer that breaks its promise.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import sys
from collections.abc import AsyncGenerator, Callable
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

import atheris

with atheris.instrument_imports(include=["proxy"]):
    from proxy.errors import ProxyError
    from proxy.http.json_bounds import MAX_DEPTH, check_json_bounds
    from proxy.libpq import parse
    from proxy.origins import normalize_origin
    from proxy.targets import parse_path, parse_url
    from proxy.tenants.addresses import public_url
    from proxy.uploads.multipart import parse_form
    from proxy.upstream.sse import EventSplitter, EventTooLarge, data_of

import orjson

_ENDPOINT = re.compile(r"[A-Za-z0-9._/-]*")


def read_target(data: bytes) -> None:
    """Only narrow text becomes part of fal's URL."""
    text = data.decode("latin-1")
    with contextlib.suppress(ProxyError):
        _assert_narrow(parse_url("POST", [f"https://queue.fal.run/{text}"]))
    with contextlib.suppress(ProxyError):
        _assert_narrow(parse_url("GET", [text]))
    with contextlib.suppress(ProxyError):
        _assert_narrow(parse_path("PUT", *_two(text)))


def _assert_narrow(target: Any) -> None:
    assert _ENDPOINT.fullmatch(target.endpoint + target.app + target.request_id), target
    assert ".." not in (target.endpoint + target.app).split("/"), target


def bound_json(data: bytes) -> None:
    """A text that the parser accepts is nested as deeply as the check found."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        with contextlib.suppress(ProxyError):
            check_json_bounds(data)
        return
    try:
        check_json_bounds(data)
    except ProxyError:
        assert _depth(value) > MAX_DEPTH
    else:
        assert _depth(value) <= MAX_DEPTH


def _depth(value: object) -> int:
    level, depth = [value], 0
    while level := [one for one in level if isinstance(one, dict | list)]:
        depth += 1
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
    return depth


def read_origin(data: bytes) -> None:
    """An origin that is normal already stays as it is."""
    with contextlib.suppress(ValueError):
        origin = normalize_origin(data.decode("utf-8"))
        assert normalize_origin(origin) == origin


def read_address(data: bytes) -> None:
    """What may be sent is sent in the spelling that was checked."""
    with contextlib.suppress(ValueError):
        url = public_url("https://" + data.decode("utf-8"))
        assert url.startswith("https://")
        assert public_url(url) == url


def read_database_url(data: bytes) -> None:
    """What the driver is given can be read again, and names the same server."""
    with contextlib.suppress(ValueError):
        text = "postgresql://" + data.decode("utf-8")
        url = parse(text).url
        assert urlsplit(parse(url).url).netloc == urlsplit(text).netloc


def split_events(data: bytes) -> None:
    """A stream has the same events, however it is cut."""
    whole, cut = EventSplitter(), EventSplitter()
    with contextlib.suppress(EventTooLarge):
        at = [0, *range(0, len(data), 1 + data[0] % 7), len(data)] if data else [0, 0]
        pieces = [event for start, end in pairwise(at) for event in cut.feed(data[start:end])]
        assert pieces == whole.feed(data)
        for event in pieces:
            data_of(event)


def read_form(data: bytes) -> None:
    """The content of a file is what stands between the head and the last boundary."""

    async def cut(body: bytes) -> AsyncGenerator[bytes, None]:
        for start in range(0, len(body), 13):
            yield body[start : start + 13]

    async def read(boundary: str, body: bytes) -> None:
        with contextlib.suppress(ProxyError):
            form = await parse_form(cut(body), f"multipart/form-data; boundary={boundary}", len(body))
            content = b"".join([piece async for piece in form.content])
            assert form.least <= len(content) <= form.size
            assert content in body

    head = b'--B\r\ncontent-disposition: form-data; name="file"; filename="'
    asyncio.run(read("B", head + data))
    asyncio.run(read("B", data))


def _two(text: str) -> tuple[str, str]:
    path, _, query = text.partition("?")
    return path, query


PARSERS: tuple[Callable[[bytes], None], ...] = (
    read_target,
    bound_json,
    read_origin,
    read_address,
    read_database_url,
    split_events,
    read_form,
)


def read_any(data: bytes) -> None:
    """The first byte chooses the parser."""
    if data:
        PARSERS[data[0] % len(PARSERS)](data[1:])


if __name__ == "__main__":
    logging.disable()
    atheris.Setup(sys.argv, read_any)
    atheris.Fuzz()
