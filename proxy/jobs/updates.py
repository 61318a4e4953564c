"""What fal reports of a job: its log, and each update of its state in the forms that callers want.

A poll has all log lines, an event of a stream only the new ones. Both forms are encoded once for all callers. A reader
that comes back to another place in the log gets a form of its own, which is not kept: it would take the size of the log
for each place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson

from proxy.numbers import number_in_range

COMPLETED = "COMPLETED"
STATES = ("IN_QUEUE", "IN_PROGRESS", COMPLETED)
#: The most memory for a log; beyond it, the oldest lines are dropped.
MOST_LOG_BYTES = 1024 * 1024
#: A mark has room for no larger place in a queue.
_MOST_POSITION = 10**9 - 1

#: Turns fal's document of a job on an endpoint into the form of a surface. Each surface has one such object, as encoded
#: forms are kept by it.
Rewrite = Callable[[str, dict[str, Any]], dict[str, Any]]


class Log:
    """The lines of a job's log, each once, in the order in which they came, and numbered."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        self._known: set[bytes] = set()
        self._gone = 0
        self.bytes = 0

    def __len__(self) -> int:
        """Count the lines, with those that were dropped."""
        return self._gone + len(self._lines)

    def add(self, lines: Iterable[Any]) -> None:
        """Add the lines that are new; a stream that is opened again begins with known ones."""
        for encoded in self._select_new([_encode_json(line) for line in lines]):
            self._known.add(encoded)
            self._lines.append(encoded)
            self.bytes += len(encoded)
        while self.bytes > MOST_LOG_BYTES:
            oldest = self._lines.pop(0)
            self._known.discard(oldest)
            self.bytes -= len(oldest)
            self._gone += 1

    def _select_new(self, lines: list[bytes]) -> list[bytes]:
        if self._gone:
            # Lines before a known one are old: they were dropped.
            known = [number for number, line in enumerate(lines, 1) if line in self._known]
            lines = lines[max(known, default=0) :]
        return [line for line in dict.fromkeys(lines) if line not in self._known]

    def cut(self, first: int, end: int) -> orjson.Fragment:
        """Return the lines from one number to before another, as a JSON list."""
        lines = self._lines[max(0, first - self._gone) : max(0, end - self._gone)]
        return orjson.Fragment(b"[" + b",".join(lines) + b"]")


@dataclass(frozen=True, slots=True)
class Update:
    """A job as fal described it at one moment.

    Attributes:
        endpoint: the one it was submitted to.
        document: fal's JSON object; the lines of its `logs` are in the log.
        lines: how many lines the log had.
        fresh_from: how many it had at the update before: the number of the first line that is new.
    """

    endpoint: str
    document: dict[str, Any]
    log: Log
    lines: int
    fresh_from: int = 0
    _encoded: dict[Any, bytes] = field(default_factory=dict, repr=False, compare=False)

    @property
    def state(self) -> str:
        state: str = self.document["status"]
        return state

    @property
    def is_last(self) -> bool:
        return self.state == COMPLETED

    @property
    def mark(self) -> str:
        """Where in a job's life this is, the same in every process: what an event stream can be resumed after."""
        position = number_in_range(self.document.get("queue_position"), _MOST_POSITION)
        return f"{self.state}.{'' if position is None else int(position)}.{self.lines}"

    def encode(self, first_line: int | None, rewrite: Rewrite | None = None) -> bytes:
        """Encode the JSON document with the log from a line on, or with `logs` of null for None."""
        key = (first_line, rewrite)
        found = self._encoded.get(key)
        if found is None:
            found = self._encode(first_line, rewrite)
            is_whole_log = first_line == 0 and self.lines == len(self.log)
            if is_whole_log or first_line in (None, self.fresh_from):
                self._encoded[key] = found
        return found

    def forget_whole_log(self) -> None:
        """Drop the forms with all lines, which polls want of the latest update only."""
        for key in [key for key in self._encoded if key[0] == 0 and self.fresh_from]:
            del self._encoded[key]

    def _encode(self, first_line: int | None, rewrite: Rewrite | None) -> bytes:
        document = dict(self.document)
        if "logs" in document or (first_line is not None and self.lines):
            has_none = first_line is None or (document.get("logs") is None and not self.lines)
            document["logs"] = None if has_none else self.log.cut(first_line or 0, self.lines)
        return _encode_json(rewrite(self.endpoint, document) if rewrite else document)


def _encode_json(document: Any) -> bytes:
    """Encode JSON into as much memory as it is long; orjson's own bytes have room for four kilobytes."""
    return bytes(memoryview(orjson.dumps(document)))
