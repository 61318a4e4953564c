"""Bound the depth and the number of values of a JSON text before a parser builds objects of it.

A parsed value takes up to forty times the bytes of its text, so twelve megabytes of brackets become hundreds of
megabytes of lists. The check reads the bytes only, mostly by single searches in C: a large data URI is one string and
costs as much as two passes over it.

The text need not be JSON. Up to its first fault the check sees what the parser sees, and behind it the parser builds
nothing, so a wrong text is refused either here or there.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

from proxy.errors import BadRequest

#: The encoder that writes the input for fal stops at 254 levels, so nothing behind this bound fails by depth.
MAX_DEPTH = 64
MAX_VALUES = 100_000
#: A text of this size cannot hold too many values: each takes two bytes.
_SMALL_BYTES = 64 * 1024
#: Quotes that are looked at one by one; the rest is split at all of them, by pieces of about this size.
_MAX_STEPS = 2_000
_PIECE_BYTES = 64 * 1024
_BACKSLASH = ord("\\")
#: An even number of them: backslashes that escape one another are skipped so many at once.
_RUN = b"\\" * 256
#: Each value may be a string with a key.
_MAX_QUOTES = 4 * MAX_VALUES
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
#: What each bracket adds to the depth, as a signed byte.
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")


def has_key_twice(text: bytes | bytearray, document: Any) -> bool:
    """Return whether a JSON text has a key twice in an object, if `document` is what a parser made of it.

    Each key of the text has a colon behind it, outside of strings, and the parser keeps one of two equal keys.
    """
    return _outside_strings(text).count(b":") > _count_keys(document)


def _count_keys(document: Any) -> int:
    keys, left = 0, [document]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            keys += len(value)
            left += value.values()
        elif isinstance(value, list):
            left += value
    return keys


def check_json_bounds(text: bytes | bytearray) -> None:
    """Refuse a JSON text that is nested too deeply or has too many values.

    Raises:
        BadRequest: it is more than the bound.
    """
    if len(text) <= _SMALL_BYTES and text.count(b"[") + text.count(b"{") <= MAX_DEPTH:
        return
    structure = _outside_strings(text)
    openings = structure.count(b"[") + structure.count(b"{")
    if openings + structure.count(b",") >= MAX_VALUES:
        raise BadRequest(f"The JSON of the body has more than {MAX_VALUES} values.")
    if openings > MAX_DEPTH and _depth(structure) > MAX_DEPTH:
        raise BadRequest(f"The JSON of the body is nested deeper than {MAX_DEPTH} levels.")


def _depth(structure: bytes) -> int:
    steps = structure.translate(_STEPS, _NOT_BRACKETS)
    return max(accumulate(memoryview(steps).cast("b")))


def _outside_strings(text: bytes | bytearray) -> bytes:
    """Return the text without its strings."""
    view = memoryview(text)
    outside: list[memoryview | bytes] = []
    at, quote, in_string = 0, -1, False
    for _ in range(_MAX_STEPS):
        quote = text.find(b'"', quote + 1)
        if quote < 0:
            outside.append(b"" if in_string else view[at:])
            return b"".join(outside)
        if not in_string:
            outside.append(view[at:quote])
            at, in_string = quote, True
        elif text[quote - 1] != _BACKSLASH or not _is_escaped(text, at, quote):
            at, in_string = quote + 1, False
    outside += _split_outside(text, at)
    return b"".join(outside)


def _is_escaped(text: bytes | bytearray, start: int, quote: int) -> bool:
    """Return whether a quote follows an odd number of backslashes, all of them behind `start`."""
    end = quote
    while end - len(_RUN) > start and text.endswith(_RUN, start + 1, end):
        end -= len(_RUN)
    before = text[max(start + 1, end - len(_RUN)) : end]
    return (len(before) - len(before.rstrip(b"\\"))) % 2 == 1


def _split_outside(text: bytes | bytearray, at: int) -> Iterator[bytes]:
    """Yield what is outside of strings, from a place that is; the text is cut into pieces, split at all their quotes.

    Raises:
        BadRequest: there are more quotes than so many values have.
    """
    if text.count(b'"', at) > _MAX_QUOTES:
        raise BadRequest(f"The JSON of the body has more than {_MAX_QUOTES} quotation marks.")
    in_string = False
    while at < len(text):
        # A piece ends with a quote, so that no escape lies across its end.
        end = text.find(b'"', at + _PIECE_BYTES) + 1 or len(text)
        outside, in_string = _parts_outside(bytes(memoryview(text)[at:end]), in_string)
        yield b"".join(outside)
        at = end


def _parts_outside(piece: bytes, in_string: bool) -> tuple[list[bytes], bool]:
    """Return the parts of a piece that are outside of strings, and whether it ends in a string."""
    parts = piece.split(b'"')
    if b"\\" not in piece:
        return parts[in_string::2], in_string ^ (len(parts) % 2 == 0)
    outside: list[bytes] = []
    for part in parts[:-1]:
        if not in_string:
            outside.append(part)
            in_string = True
        elif len(part) < len(_RUN):
            in_string = (len(part) - len(part.rstrip(b"\\"))) % 2 == 1
        else:
            in_string = _is_escaped(part, -1, len(part))
    return outside if in_string else [*outside, parts[-1]], in_string
