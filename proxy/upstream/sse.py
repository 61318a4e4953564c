"""The codec of server-sent events (WHATWG HTML, section 9.2), without I/O."""

from __future__ import annotations

import re

MAX_EVENT_BYTES = 4 * 1024 * 1024
PING = b": ping\n\n"
_END = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r(?!\n))")
_LINE = re.compile(rb"\r\n|\n|\r")


class EventTooLarge(ValueError):
    """An event did not end within `MAX_EVENT_BYTES`."""


class EventSplitter:
    """Cuts a byte stream into whole events, wherever its chunks begin and end."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the events that this chunk completes, each with its blank line; keep a begun one for the next chunk.

        Raises:
            EventTooLarge: so much came without an end that nothing sensible can follow.
        """
        # A carriage return at the end may be half of a line break: whether it ends an event, the next byte tells.
        text, held = self._rest + chunk, b""
        if text.endswith(b"\r"):
            text, held = text[:-1], b"\r"
        events, start = [], 0
        for match in _END.finditer(text):
            events.append(text[start : match.end()])
            start = match.end()
        self._rest = text[start:] + held
        if len(self._rest) > MAX_EVENT_BYTES:
            raise EventTooLarge("an event of the stream does not end")
        return events


def data_of(event: bytes) -> bytes | None:
    """Return the joined `data` lines of an event; None for one that has none, such as a comment."""
    lines = [line[5:].removeprefix(b" ") for line in _LINE.split(event) if line[:5] == b"data:"]
    return b"\n".join(lines) if lines else None


def encode(data: bytes, *, name: str = "", id_: str = "") -> bytes:
    """Encode one event, with a name and an id if they are given.

    Each line of its data, which may be JSON with line breaks between its tokens, becomes a `data` line.
    """
    head = (f"event: {name}\n" if name else "") + (f"id: {id_}\n" if id_ else "")
    return head.encode() + b"data: " + data.replace(b"\n", b"\ndata: ") + b"\n\n"


def retry(seconds: float) -> bytes:
    """Encode how long a client waits before it comes back, should the stream end."""
    return b"retry: %d\n\n" % round(seconds * 1000)
