"""The head of an answer as bytes: writing its beginning, and finding headers in it."""

from __future__ import annotations

from collections.abc import Sequence

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from proxy.http.header_lines import write_lines

_status_lines = {status: line.removesuffix(b"\r\n") for status, line in STATUS_LINE.items()}


class _Beginnings:
    """Remembers the beginnings of heads by status, for as long as the server adds the same headers: one second."""

    def __init__(self) -> None:
        self._known: tuple[Sequence[tuple[bytes, bytes]], dict[int, bytes]] = ((), {})

    def get(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
        of_headers, by_status = self._known
        if of_headers is not headers:
            by_status = {}
            self._known = headers, by_status
        beginning = by_status.get(status)
        if beginning is None:
            beginning = by_status[status] = _status_lines[status] + write_lines(headers)
        return beginning


_beginnings = _Beginnings()


def begin_head(status: int, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Write a status line and the headers that the server adds to each answer, such as `date`.

    Args:
        headers: compared by identity, so headers that differ must be another object.
    """
    return _beginnings.get(status, headers)


def first_value(head: bytes, start: bytes) -> bytes | None:
    """Return the first value of a header.

    Args:
        start: a line break, the name in small letters, a colon and a space. No value can contain this.
    """
    at = head.find(start)
    return None if at < 0 else head[at + len(start) :].partition(b"\r\n")[0]


def values_in(head: bytes, start: bytes) -> list[bytes]:
    """Return all values of a header; `start` as for `first_value`."""
    return [rest.partition(b"\r\n")[0] for rest in head.split(start)[1:]]
