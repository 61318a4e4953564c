"""The bounds of JSON are counted in the bytes as a parser counts them in the values."""

from __future__ import annotations

import time
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import BadRequest
from proxy.http.json_bounds import MAX_DEPTH, MAX_VALUES, check_json_bounds, has_key_twice

MIB = 2**20
LARGEST = 12 * MIB
#: What looks like structure, and what ends a string or seems to.
TRICKY = st.text(st.sampled_from('"\\[]{},:a\n\u00e9\U0001f600'), max_size=12)
DOCUMENTS: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.integers(-9, 9) | TRICKY,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TRICKY, inner, max_size=4),
    max_leaves=20,
)


def nest(levels: int, inside: bytes = b"") -> bytes:
    return b"[" * levels + inside + b"]" * levels


def refusal(text: bytes | bytearray) -> str | None:
    """The text of the refusal, if the bounds refuse it."""
    try:
        check_json_bounds(text)
    except BadRequest as problem:
        return problem.message
    return None


def many_strings(document: Any) -> bytes:
    """The document behind more strings than are skipped one by one, and more bytes than are let through unseen."""
    return b"[" + b'"\\\\",' * 3000 + b'"' + b"x" * 65536 + b'",' + orjson.dumps(document) + b"]"


@pytest.mark.parametrize("shape", [bytes, bytearray])
def test_a_document_at_the_greatest_depth_is_read_and_a_deeper_one_refused(shape: type[bytes]) -> None:
    assert refusal(shape(nest(MAX_DEPTH))) is None
    assert "64 levels" in str(refusal(shape(nest(MAX_DEPTH + 1))))
    objects = b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1)
    assert "64 levels" in str(refusal(shape(objects)))


def test_many_containers_side_by_side_are_not_deep() -> None:
    assert refusal(b"[" + b",".join([nest(MAX_DEPTH - 1)] * 100) + b"]") is None
    assert refusal(b"[" + b",".join([nest(MAX_DEPTH - 1)] * 99 + [nest(MAX_DEPTH)]) + b"]") is not None


@pytest.mark.parametrize("value", [b"1", b'""', b"[]", b'"a,b[c"'])
def test_a_document_with_the_most_values_is_read_and_a_longer_one_refused(value: bytes) -> None:
    most = MAX_VALUES - 1
    assert refusal(b"[" + b",".join([value] * most) + b"]") is None or value == b"[]"
    assert "100000 values" in str(refusal(b"[" + b",".join([value] * (most + 1)) + b"]"))


@given(DOCUMENTS, st.booleans())
def test_brackets_inside_strings_do_not_count(document: Any, is_large: bool) -> None:
    encode = many_strings if is_large else orjson.dumps
    inside, levels = orjson.dumps(document), depth(document)
    assert refusal(encode(document)) is None
    least = MAX_DEPTH - levels - is_large
    assert refusal(encode(orjson.Fragment(nest(least, inside)))) is None
    assert refusal(encode(orjson.Fragment(nest(least + 1, inside)))) is not None


def depth(value: Any) -> int:
    if not isinstance(value, (dict, list)):
        return 0
    return 1 + max((depth(one) for one in (value.values() if isinstance(value, dict) else value)), default=0)


@pytest.mark.parametrize("quote", [rb"\"", rb"\\\"", b"\\" * 513 + b'"'])
def test_an_escaped_quote_ends_no_string(quote: bytes) -> None:
    inside = b'"' + (quote + b"[{") * 200 + b'"'
    assert refusal(b"[" + inside + b"]") is None
    assert refusal(b"[" + b",".join([inside] * 40) + b"]") is None


def test_more_quotes_than_values_can_have_are_refused() -> None:
    assert "quotation marks" in str(refusal(b'"' + b'\\"' * 400_001 + b'"'))


@given(st.binary(max_size=200), st.integers(0, 3))
def test_any_bytes_can_be_checked(text: bytes, times: int) -> None:
    check_json_bounds((text + b"[") * (times + 1))


@pytest.mark.parametrize(
    "text",
    [
        b'["' + b"x" * (LARGEST - 4) + b'"]',
        b'["' + b"\\n" * (LARGEST // 2 - 2) + b'"]',
        b'["' + b"\\" * (LARGEST - 4) + b'"]',
        b"[" * LARGEST,
        b"[" + b"[]," * (LARGEST // 3),
        b"[" + b'"",' * (LARGEST // 3),
        b"[" + b"1," * (LARGEST // 2),
        b'["' + b'\\"' * 390_000 + b"x" * (LARGEST - 800_000) + b'"]',
        b'["' + b'","'.join([b"\\" * 2400] * 5000) + b'"]',
    ],
    ids=["one string", "escapes", "backslashes", "open", "lists", "strings", "numbers", "escaped quotes", "runs"],
)
def test_the_largest_bodies_are_counted_quickly(text: bytes) -> None:
    """Processor time, the best of three: tenths of a second would mean that bytes are looked at one by one."""
    taken = []
    for _ in range(3):
        before = time.process_time()
        refusal(text)
        taken.append(time.process_time() - before)
    assert min(taken) < 0.25


@given(DOCUMENTS)
@pytest.mark.parametrize("spread", [orjson.dumps, many_strings])
def test_a_key_twice_is_noticed(spread: Any, document: Any) -> None:
    text = spread(document)
    assert not has_key_twice(text, orjson.loads(text))
    twice = b'{"\\u0061":0,"a":' + text + b"}"
    assert has_key_twice(twice, orjson.loads(twice))
