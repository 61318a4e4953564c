"""The head of an answer as bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

#: What the name of a header may not hold.
_NOT_IN_NAMES = frozenset(b'\x7f()<>@,;:[]={} \t\\"').union(range(0x20))
#: All but control characters. A head without these is left with the ends of its lines, and with what may not be there.
_HARMLESS = bytes(byte for byte in range(256) if byte == 0x09 or (byte >= 0x20 and byte != 0x7F))
#: Names that are remembered; the program's own and those of fal's headers that it passes on are less than a hundred.
_MOST_NAMES = 512


class _LineStarts(dict[bytes, bytes]):
    """What stands before the value, from the end of the line before, by the name of a header.

    Each name is checked once.
    """

    def __missing__(self, name: bytes) -> bytes:
        if not _NOT_IN_NAMES.isdisjoint(name):
            raise RuntimeError("Invalid HTTP header name.")
        start = b"\r\n" + name.lower() + b": "
        if len(self) < _MOST_NAMES:
            self[name] = start
        return start


_starts = _LineStarts()
_status_lines = {status: line.removesuffix(b"\r\n") for status, line in STATUS_LINE.items()}


class _Beginnings:
    """The beginnings of heads by status, while the headers that the server adds are the same: for a second."""

    def __init__(self) -> None:
        self._headers: Sequence[tuple[bytes, bytes]] = ()
        self._by_status: dict[int, bytes] = {}

    def get(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
        if headers is not self._headers:
            self._headers, self._by_status = headers, {}
        beginning = self._by_status.get(status)
        if beginning is None:
            beginning = self._by_status[status] = _status_lines[status] + write_lines(headers)
        return beginning


_beginnings = _Beginnings()


def begin_head(status: int, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Write a status line and the headers that the server adds to each answer.

    Args:
        headers: kept, and compared by identity: with other headers comes another object.
    """
    return _beginnings.get(status, headers)


def write_lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Write the lines of a head, each behind the end of the line before it.

    uvicorn searches each name and each value with a regular expression. One look at all of them, and one at each new
    name, saves 16,000 instructions an answer, a thirtieth of a status poll.

    Raises:
        RuntimeError: this is no name of a header, or a value holds control characters, which could end its line.
    """
    starts = _starts
    lines = [starts[name] + value for name, value in headers]
    head = b"".join(lines)
    if len(head.translate(None, _HARMLESS)) != 2 * len(lines):
        raise RuntimeError("Invalid HTTP header value.")
    return head


def first_value(head: bytes, start: bytes) -> bytes | None:
    """The first value of a header.

    Args:
        start: the end of a line, the name in small letters, a colon and a space. No value holds that.
    """
    at = head.find(start)
    return None if at < 0 else head[at + len(start) :].partition(b"\r\n")[0]


def values_in(head: bytes, start: bytes) -> list[bytes]:
    """All values of a header; `start` as for `first_value`."""
    return [rest.partition(b"\r\n")[0] for rest in head.split(start)[1:]]
