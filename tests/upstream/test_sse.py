"""The codec: events come out whole, wherever the chunks were cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.upstream import sse

LINE_BREAKS = st.sampled_from([b"\n", b"\r\n", b"\r"])


def chunks_of(text: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(text) + 1) for cut in cuts} | {0, len(text)})
    return [text[start:end] for start, end in itertools.pairwise(places)]


@given(
    values=st.lists(st.text(st.characters(blacklist_characters="\r\n", codec="utf-8"), min_size=1), max_size=6),
    line_break=LINE_BREAKS,
    cuts=st.lists(st.integers(0, 10_000), max_size=12),
)
def test_cutting_anywhere_changes_nothing(values: list[str], line_break: bytes, cuts: list[int]) -> None:
    text = b"".join(b"data: " + value.encode() + line_break * 2 for value in values)
    # What follows a final carriage return decides whether it was a whole line break.
    chunks = [*chunks_of(text, cuts), b": end\n\n"]
    splitter = sse.EventSplitter()
    data = [sse.data_of(event) for chunk in chunks for event in splitter.feed(chunk)]
    assert [one.decode() for one in data if one is not None] == values


@given(data=st.binary(max_size=200).filter(lambda data: 13 not in data and b"\n\n" not in b"\n" + data + b"\n"))
def test_what_was_encoded_is_read_back(data: bytes) -> None:
    (event,) = sse.EventSplitter().feed(sse.encode(data))
    assert sse.data_of(event) == data


def test_line_breaks_between_the_tokens_of_json_do_not_break_the_event() -> None:
    (event,) = sse.EventSplitter().feed(sse.encode(b'{"a":\n1}'))
    assert event == b'data: {"a":\ndata: 1}\n\n'
    assert sse.data_of(event) == b'{"a":\n1}'


def test_comments_and_names_carry_no_data() -> None:
    assert sse.data_of(sse.PING) is None
    assert sse.data_of(b"event: event\r\ndata: {}\r\n\r\n") == b"{}"
    assert sse.data_of(b"data: a\ndata:b\n\n") == b"a\nb"
    assert sse.data_of(b"database: a\n\n") is None


def test_an_event_that_never_ends_is_given_up() -> None:
    splitter = sse.EventSplitter()
    with pytest.raises(sse.EventTooLarge):
        for _ in range(sse.MAX_EVENT_BYTES // 65536 + 2):
            splitter.feed(b"x" * 65536)
