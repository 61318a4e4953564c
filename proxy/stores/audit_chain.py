"""Checks whether the audit log is whole: its entries follow each other from the anchor to the head."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from proxy.clock import to_iso
from proxy.stores.audit import GENESIS, compute_hash

#: Problems that one check names; an entry that is wrong makes none of the following ones wrong.
MOST_PROBLEMS = 20
_LINK = re.compile(r"([0-9]{1,18}):([0-9a-f]{64})")


class Link(NamedTuple):
    """One place in the chain."""

    number: int
    hash: str

    def __str__(self) -> str:
        return f"{self.number}:{self.hash}"

    @classmethod
    def parse(cls, text: str) -> Link:
        """Read what `str` writes.

        Raises:
            ValueError: it is nothing of the kind.
        """
        match = _LINK.fullmatch(text)
        if match is None:
            raise ValueError("must be a head as 'audit verify' prints it: a number, a colon and 64 hexadecimal digits")
        return cls(int(match[1]), match[2])


START = Link(0, GENESIS)


@dataclass(frozen=True)
class Entry:
    """An entry as it is stored.

    Attributes:
        document: the text that the hash is over.
        subject: the end user whom it concerns; None if it concerns none, or one that was forgotten.
    """

    number: int
    at: float
    tenant: str
    document: str
    hash: str
    subject: str | None = None

    def describe(self) -> dict[str, Any]:
        """Give the document with the end user and the hash."""
        document: dict[str, Any] = orjson.loads(self.document)
        return {**document, "subject": self.subject, "hash": self.hash}


class ChainCheck:
    """Takes all entries in the order of their numbers, and collects what is wrong with them.

    Args:
        anchor: the newest entry that was removed as past its time.
        expected: a head that was read earlier and kept elsewhere: what is cut off with its head shows by it alone.
    """

    def __init__(self, anchor: Link, expected: Link | None = None) -> None:
        self.problems: list[str] = []
        self.entries = 0
        self._anchor = anchor
        self._last = anchor
        self._expected = expected
        self._has_met_expected = expected is None or expected == anchor

    def add(self, entry: Entry) -> None:
        """Check one entry against the one before."""
        self.entries += 1
        if entry.number <= self._anchor.number:
            self._complain(f"entry {entry.number} was removed as past its time, and is there")
            return
        if entry.number > self._last.number + 1:
            self._complain(f"{_name_entries(self._last.number + 1, entry.number - 1)} missing")
        elif compute_hash(self._last.hash, entry.document) != entry.hash:
            self._complain(f"entry {entry.number} does not follow from the one before: one of them was changed")
        elif not _agrees(entry):
            self._complain(f"entry {entry.number} is not what its document says: a column was changed")
        self._last = Link(entry.number, entry.hash)
        if self._expected is not None and entry.number == self._expected.number:
            self._has_met_expected = True
            if entry.hash != self._expected.hash:
                self._complain(f"entry {entry.number} has another hash than you expect: the log was written again")

    def finish(self, head: Link) -> None:
        """Check that the last entry is the head, and that the expected one was there."""
        if self._last.number < head.number:
            self._complain(f"{_name_entries(self._last.number + 1, head.number)} missing at the end")
        elif self._last != head:
            self._complain(f"the log ends with entry {self._last.number}, which is not its head")
        if self._expected is None or self._has_met_expected:
            return
        if self._expected.number <= self._anchor.number:
            self._complain(
                f"entry {self._expected.number}, which you expect, was removed as past its time: expect a newer head"
            )
        else:
            self._complain(f"entry {self._expected.number}, which you expect, is missing: the end was cut off")

    def _complain(self, problem: str) -> None:
        if len(self.problems) < MOST_PROBLEMS:
            self.problems.append(problem)


def _agrees(entry: Entry) -> bool:
    """Return whether the columns beside a document say the same as it."""
    document = orjson.loads(entry.document)
    stated = (document["number"], document["at"], document["tenant"])
    return stated == (entry.number, to_iso(entry.at, "microseconds"), entry.tenant)


def _name_entries(first: int, last: int) -> str:
    return f"entry {first} is" if first == last else f"entries {first} to {last} are"
