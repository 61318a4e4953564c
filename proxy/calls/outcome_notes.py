"""Writes down the outcomes of calls with an Idempotency-Key, later if the database does not take them now.

A call that the database made fail leaves its key in it: the repetition, at whichever process, would wait for a call
that has ended. An answer that is not written down would be lost for the repetition.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from cachetools import LRUCache

from proxy.errors import StoreUnavailable
from proxy.stores.errors import DataRefused
from proxy.stores.idempotency import Claim, IdempotencyStore

#: How long a caller waits until its answer is kept for the next one.
NOTE_SECONDS = 2.0
#: How soon what could not be written is tried again, at first and at the most.
RETRY_SECONDS = (0.1, 2.0)
#: What waits to be written: so many notes, and so many bytes of answers.
MOST_LATE, MOST_LATE_BYTES = 10_000, 32 * 2**20
MOST_REFUSED = 10_000
_log = logging.getLogger(__name__)


class _Note(NamedTuple):
    """The outcome of a claim: its answer, or None if the key is to be free again."""

    claim: Claim
    answer: Mapping[str, Any] | None

    @property
    def size(self) -> int:
        return len((self.answer or {}).get("body", ""))


class OutcomeNotes:
    """Keeps the outcomes of claims, and frees the keys of those that have none."""

    def __init__(self, store: IdempotencyStore) -> None:
        self._store = store
        self._writing: set[asyncio.Task[None]] = set()
        #: The jobs of the latest calls that were refused: their keys are free, whatever the database says.
        self._refused: LRUCache[str, bool] = LRUCache(MOST_REFUSED)
        #: By job, oldest first.
        self._late: dict[str, _Note] = {}
        self._late_bytes = 0
        self._retrying: asyncio.Task[None] | None = None

    async def keep(self, claim: Claim, answer: Mapping[str, Any]) -> None:
        """Keep the answer for the next call."""
        await self._write_in_time(_Note(claim, answer))

    async def free(self, claim: Claim) -> None:
        """Free the key of a call that was refused."""
        self._refused[claim.job_id] = True
        await self._write_in_time(_Note(claim, None))

    def free_later(self, claim: Claim) -> None:
        """Free a key that may have been taken: the database did not say."""
        self._refused[claim.job_id] = True
        self._postpone(_Note(claim, None))

    def was_refused(self, claim: Claim) -> bool:
        """Return whether this process refused the call that holds a key."""
        return claim.job_id in self._refused

    async def close(self) -> None:
        """Give up what is not written yet."""
        tasks = [*self._writing, *([self._retrying] if self._retrying else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _write_in_time(self, note: _Note) -> None:
        """Write a note, and keep its caller from the answer only so long."""
        task = asyncio.create_task(self._write_or_postpone(note))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)
        try:
            await asyncio.wait({task}, timeout=NOTE_SECONDS)
        except asyncio.CancelledError:
            # The process ends. The outcome is known, and given.
            if (current := asyncio.current_task()) is not None:
                current.uncancel()

    async def _write_or_postpone(self, note: _Note) -> None:
        try:
            await self._write(note)
        except StoreUnavailable:
            self._postpone(note)

    async def _write(self, note: _Note) -> None:
        try:
            if note.answer is None:
                await self._store.forget(note.claim)
            else:
                await self._store.finish(note.claim, note.answer)
        except DataRefused:
            # It would be refused again.
            _give_up(note)

    def _postpone(self, note: _Note) -> None:
        if len(self._late) >= MOST_LATE or self._late_bytes + note.size > MOST_LATE_BYTES:
            _give_up(note)
            return
        self._late[note.claim.job_id] = note
        self._late_bytes += note.size
        if self._retrying is None or self._retrying.done():
            self._retrying = asyncio.create_task(self._write_late())

    async def _write_late(self) -> None:
        """Write what is late, until nothing is."""
        pause, longest = RETRY_SECONDS
        while self._late:
            await asyncio.sleep(pause)
            pause = min(2 * pause, longest)
            try:
                await self._write_all_late()
            except StoreUnavailable as problem:
                fields = {"outcomes": len(self._late), "problem": type(problem).__name__}
                _log.warning("outcomes of Idempotency-Keys are written later", extra={"log_fields": fields})

    async def _write_all_late(self) -> None:
        for job_id, note in list(self._late.items()):
            try:
                await self._write(note)
            except StoreUnavailable:
                # To the end: one that fails by itself does not hold up the others.
                self._late[job_id] = self._late.pop(job_id)
                raise
            del self._late[job_id]
            self._late_bytes -= note.size


def _give_up(note: _Note) -> None:
    _log.warning("outcome of an Idempotency-Key not kept", extra={"log_fields": {"job": note.claim.job_id}})
