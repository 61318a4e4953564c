"""The outcomes of calls with an Idempotency-Key, as they are stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Claim:
    """One Idempotency-Key of one caller: its body, its job, and the answer once there is one.

    The key and the body are kept as hashes. `answer` is a JSON document, see `proxy.calls.idempotency`.
    """

    tenant: str
    subject: str
    key_hash: str
    body_hash: str
    job_id: str
    created_at: float
    answer: Mapping[str, Any] | None = field(default=None, repr=False)


class IdempotencyStore(Protocol):
    """The keys of calls, each with the first outcome of its call."""

    async def claim(self, claim: Claim, forgotten_before: float) -> Claim | None:
        """Take a key; None if it was free, else what holds it. Keys taken before `forgotten_before` are free again."""

    async def find(self, claim: Claim) -> Claim | None:
        """Find what holds the key now."""

    async def take_over(self, claim: Claim, from_job: str) -> bool:
        """Take a key from a job that never came to be; False if another call was quicker."""

    async def finish(self, claim: Claim, answer: Mapping[str, Any]) -> None:
        """Keep the answer, unless another call has taken the key over."""

    async def forget(self, claim: Claim) -> None:
        """Free the key again, as its call had no outcome, unless another call has taken it over."""

    async def is_alone(self) -> bool:
        """Return whether every other process that took keys is gone; False where that cannot be known.

        Raises:
            StoreUnavailable: the store does not answer.
        """
