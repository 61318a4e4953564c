"""Alerts: what an operator should know soon. Each is stored once, however many processes raise it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from proxy.clock import to_iso


@dataclass(frozen=True)
class Alert:
    """One alert.

    Attributes:
        id: a digest of what it is about and of its window. Two alerts with one id are the same.
        kind: what happened, such as `quota.reached`.
        tenant: whom it concerns; '' for the operator alone.
        subject: the end user whom it concerns; '' for none.
        at: when it was seen first, in seconds since 1970 UTC.
        details: more, for people and programs; without secrets.
    """

    id: str
    kind: str
    tenant: str
    at: float
    subject: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """Describe the alert as operators see it."""
        shown = {"id": self.id, "kind": self.kind, "tenant": self.tenant, "at": to_iso(self.at, "microseconds")}
        return {**shown, "subject": self.subject or None, "details": dict(self.details)}


def alert_id(kind: str, tenant: str, *key: str | int) -> str:
    """Return the id of the alert that there is once for a key, which has the window in it."""
    return hashlib.blake2b(orjson.dumps([kind, tenant, *key]), digest_size=16).hexdigest()


class AlertStore(Protocol):
    """The alerts of all processes."""

    async def add(
        self, alerts: Collection[Alert], find_receivers: Callable[[Alert], Collection[str]] = lambda _: ()
    ) -> set[str]:
        """Add those that are not there yet, each with its deliveries; their ids."""

    async def list_newest(
        self,
        most: int,
        *,
        before: tuple[float, str] | None = None,
        tenant: str | None = None,
        delivery: str | None = None,
    ) -> Sequence[Alert]:
        """List alerts, the newest first; `before` are the time and id of the last one of the page before.

        Args:
            delivery: only those with a delivery in this state.
        """
