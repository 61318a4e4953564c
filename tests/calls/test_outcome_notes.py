"""The outcomes of calls with an Idempotency-Key that are written later."""

from __future__ import annotations

import pytest

from proxy.calls.outcome_notes import OutcomeNotes
from proxy.errors import StoreUnavailable
from proxy.stores.idempotency import Claim
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.anyio


class LockedRow:
    """Keys in memory, one of which cannot be written, as if another transaction held its row."""

    def __init__(self, locked: str) -> None:
        self._locked = locked
        self.freed: list[str] = []

    async def forget(self, claim: Claim) -> None:
        if claim.job_id == self._locked:
            raise StoreUnavailable("The row is locked.")
        self.freed.append(claim.job_id)


def new_claim(job_id: str) -> Claim:
    return Claim("acme", "alice", f"key of {job_id}", "body", job_id, 0.0)


async def test_an_outcome_that_cannot_be_written_does_not_hold_up_the_others() -> None:
    store = LockedRow("first")
    notes = OutcomeNotes(store)  # type: ignore[arg-type]
    for job_id in ("first", "second", "third"):
        notes.free_later(new_claim(job_id))
    await wait_until_async(lambda: store.freed == ["second", "third"], "the others were not written")
    await notes.close()
