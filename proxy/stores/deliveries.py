"""Deliveries of alerts: a queue for each receiver, of which one process at a time sends the oldest alert."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from proxy.clock import to_iso
from proxy.stores.alerts import Alert
from proxy.stores.audit import Author

#: The receiver of the operator; that of a tenant has the tenant's id, which is never empty.
OPERATOR = ""
WAITING, SENT, DEAD = "waiting", "sent", "dead"
STATES = (WAITING, SENT, DEAD)


@dataclass(frozen=True)
class Delivery:
    """What has become of one alert at one receiver.

    Attributes:
        state: one of `STATES`.
        attempts: how often it was sent.
        changed_at: when it was last sent or its state changed, in seconds since 1970 UTC.
        problem: why the last attempt failed; '' if it did not.
    """

    alert: str
    receiver: str
    state: str
    attempts: int
    changed_at: float
    problem: str

    def describe(self) -> dict[str, Any]:
        """Describe the delivery as operators see it."""
        return {
            "receiver": "tenant" if self.receiver else "operator",
            "state": self.state,
            "attempts": self.attempts,
            "changed_at": to_iso(self.changed_at, "microseconds"),
            "problem": self.problem or None,
        }


@dataclass(frozen=True)
class Held:
    """An alert that one process sends now, and no other until then.

    Attributes:
        claim: names the process and its turn; only it can record the outcome.
        failures: how often the receiver has failed since it last took an alert.
        failing_since: when it began to fail; None if it does not.
    """

    receiver: str
    claim: str
    alert: Alert
    failures: int
    failing_since: float | None


@dataclass(frozen=True)
class Queues:
    """What waits now.

    Attributes:
        due: receivers that an alert can be sent to, those that wait longest first.
        oldest: since when the oldest alert of all waits; None if none does.
    """

    due: Sequence[str]
    oldest: float | None


class DeliveryStore(Protocol):
    """The queues of all processes. Moments are seconds since 1970 UTC."""

    async def look(self, now: float, most: int, *, without: Collection[str] = ()) -> Queues:
        """Find up to so many receivers that are due, and not among some."""

    async def claim(self, receiver: str, claim: str, now: float, until: float) -> Held | None:
        """Take the oldest alert of a receiver until a moment.

        None if there is none, the receiver is not due, or another process has taken one.
        """

    async def record_sent(self, held: Held, now: float) -> bool:
        """Record that the receiver has taken an alert; False if another process holds it meanwhile."""

    async def record_failed(self, held: Held, now: float, problem: str, again_at: float, give_up: float) -> int:
        """Record that the receiver has not taken an alert, and when it is asked again.

        Those of its alerts that wait since `give_up` or longer become dead letters; how many.
        """

    async def list_of(self, alerts: Collection[str]) -> Sequence[Delivery]:
        """List the deliveries of some alerts, by their ids."""

    async def resend(self, alert: str, *, by: Author) -> Sequence[Delivery] | None:
        """Have an alert sent to all of its receivers again, for as long as a new one; record it in the audit log.

        Its deliveries after that, none if it had no receiver when it was raised; None if there is no such alert.
        """

    async def drop_waiting(self, receiver: str, now: float, problem: str) -> int:
        """Make all that waits for a receiver dead letters; return how many they are."""
