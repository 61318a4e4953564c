"""Answers of a server that may be any: they end, however much it sends and however slowly."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx

#: The largest answer that a command reads: a listing has up to 500 entries, and a job's events are its output.
MOST_BYTES = 32 * 1024 * 1024
#: How long one may take. A job whose events are read takes minutes.
MOST_SECONDS = 900.0


class AnswerTooLong(httpx.TransportError):
    """The answer has too many bytes, or has not ended in time."""


class _BoundedStream(httpx.SyncByteStream):
    def __init__(self, stream: httpx.SyncByteStream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        size, give_up_at = 0, time.monotonic() + MOST_SECONDS
        for piece in self._stream:
            size += len(piece)
            if size > MOST_BYTES or time.monotonic() > give_up_at:
                raise AnswerTooLong(f"more than {MOST_BYTES} bytes, or {MOST_SECONDS:g} seconds")
            yield piece

    def close(self) -> None:
        self._stream.close()


def bound_answer(answer: httpx.Response) -> None:
    """Bound the body of an answer before it is read; a hook of an `httpx.Client`."""
    assert isinstance(answer.stream, httpx.SyncByteStream)
    answer.stream = _BoundedStream(answer.stream)
