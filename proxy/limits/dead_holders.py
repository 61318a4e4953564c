"""Processes that are dead, and the leases that they held."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from proxy.clock import Clock
from proxy.stores.counters import Counters
from proxy.stores.ledger import Ledger

#: How long a sign of life counts.
HOLDER_SECONDS = 6.0
_log = logging.getLogger(__name__)


class DeadHolders:
    """Ends the calls of dead processes.

    A process is dead if it was late at two beats of this one. When the counters have been away, all processes are late,
    and each has time for a sign of life between the two.
    """

    def __init__(self, counters: Counters, ledger: Ledger, clock: Clock) -> None:
        self._counters = counters
        self._ledger = ledger
        self._clock = clock
        self._late: frozenset[str] = frozenset()
        self._dead: frozenset[str] = frozenset()

    def see(self, late: Sequence[str]) -> None:
        """Note which processes are late at a beat."""
        seen = frozenset(late)
        self._dead, self._late = self._late & seen, seen

    def forget(self) -> None:
        """Note that a beat failed: who was late before it may just have been unable to give a sign."""
        self._dead = self._late = frozenset()

    async def free(self) -> None:
        """End the calls of the dead processes; jobs that they have submitted go on.

        Raises:
            StoreUnavailable: the counters or the ledger do not answer.
        """
        for holder in self._dead:
            leases = await self._counters.holder.held_by(holder)
            queued = await self._ledger.queued_among(list(leases))
            ended = {lease: () if lease in queued else keys for lease, keys in leases.items()}
            now = self._clock.now()
            await self._counters.holder.free(holder, ended, now, now + HOLDER_SECONDS)
            fields = {"holder": holder, "calls": len(leases) - len(queued), "jobs": len(queued)}
            _log.info("leases of a dead process ended", extra={"log_fields": fields})
