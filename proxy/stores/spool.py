"""Ledger operations that wait for the database, in files, so that they outlive the process.

A folder holds one file for each, which its owner alone reads. A process that starts takes over the files that others
left. An operation can be done twice, so it may take over those of a process that still runs.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from proxy.numbers import MOST, number_in_range
from proxy.stores.ledger import Accept, Settle
from proxy.targets import is_request_id

#: What has happened at fal already, and only waits to be written down.
Fact = Accept | Settle
#: The longest file that is read.
MOST_BYTES = 16_384
_NAME = re.compile(r"([0-9a-f]{32})\.(accept|settle)\.json")
_log = logging.getLogger(__name__)


class Spool:
    """Keeps operations in a folder, which is made when the first one comes.

    Args:
        folder: where; None where a process has no place for files.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._held: set[str] = set()

    @property
    def is_empty(self) -> bool:
        return not self._held

    def keep(self, facts: Iterable[Fact]) -> int:
        """Keep these operations and no others; return how many could not be kept. Blocks until they are on the disk."""
        wanted = {_name_of(fact): fact for fact in facts}
        if self._folder is None or not (wanted or self._held):
            return len(wanted)
        try:
            self._write(self._folder, {name: fact for name, fact in wanted.items() if name not in self._held})
            for name in self._held - wanted.keys():
                (self._folder / name).unlink(missing_ok=True)
        except OSError as problem:
            _log.error("ledger operations not spooled", extra={"log_fields": {"problem": type(problem).__name__}})
            return len(wanted.keys() - self._held)
        self._held = set(wanted)
        return 0

    def _write(self, folder: Path, facts: dict[str, Fact]) -> None:
        if not facts:
            return
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, fact in facts.items():
            # Under its own name it is there whole or not at all.
            draft = folder / f".{secrets.token_hex(8)}"
            _write_private(draft, orjson.dumps(asdict(fact)))
            draft.replace(folder / name)
            self._held.add(name)
        _flush_folder(folder)

    def load(self) -> list[Fact]:
        """Take over what is in the folder. A file that makes no sense stays there, and is logged."""
        return list(self._find_files(self._folder)) if self._folder is not None else []

    def _find_files(self, folder: Path) -> Iterator[Fact]:
        try:
            names = sorted(os.listdir(folder))
        except FileNotFoundError:
            return
        except OSError as problem:
            _log.error("spool not read", extra={"log_fields": {"problem": type(problem).__name__}})
            return
        for name in names:
            if not (match := _NAME.fullmatch(name)):
                continue
            try:
                fact = _parse(match[1], match[2], orjson.loads(_read(folder / name)))
            except FileNotFoundError:
                # Another process has written it down.
                continue
            except (OSError, ValueError) as problem:
                fields = {"file": name, "problem": type(problem).__name__}
                _log.error("spooled operation ignored", extra={"log_fields": fields})
                continue
            self._held.add(name)
            yield fact


def _name_of(fact: Fact) -> str:
    return f"{fact.job_id}.{type(fact).__name__.lower()}.json"


def _write_private(path: Path, content: bytes) -> None:
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError("too long")
    return content


def _parse(job_id: str, kind: str, document: Any) -> Fact:
    """Parse the operation in a file.

    Raises:
        ValueError: there is none.
    """
    if not isinstance(document, dict) or document.get("job_id") != job_id:
        raise ValueError("not an operation of that job")
    if kind == "accept":
        request_id, expires_at = document.get("request_id"), number_in_range(document.get("expires_at"), MOST)
        if not is_request_id(request_id) or expires_at is None:
            raise ValueError("not an acceptance")
        return Accept(job_id, request_id, expires_at)
    used, at = document.get("used", ""), number_in_range(document.get("at"), MOST)
    if at is None or not (used is None or (isinstance(used, dict) and all(map(_is_amount, used.values())))):
        raise ValueError("not a settlement")
    return Settle(job_id, used, at)


def _is_amount(value: object) -> bool:
    return isinstance(value, int) and number_in_range(value, MOST) is not None
