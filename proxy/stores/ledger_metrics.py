"""What the ledger tells Prometheus: how long entries waited, what was charged, which quotas were full."""

from __future__ import annotations

from collections.abc import Mapping

from proxy.stores.ledger import UNITS, Exhausted, Granted, Operation, Outcome, Settle
from proxy.telemetry.instruments import Count
from proxy.telemetry.metrics import Metrics

MILLION = 1_000_000
#: The units of the ledger as metrics name them.
_NAMES = {"requests": "calls"}


class LedgerMetrics:
    """Counts outcomes of the ledger."""

    def __init__(self, metrics: Metrics) -> None:
        self._wait = metrics.queue_seconds.of("ledger")
        self._charged = {unit: _add_charged(metrics, _NAMES.get(unit, unit)) for unit in UNITS}
        refusals = metrics.add_counts(
            "fal_proxy_quota_refusals", "Calls refused because a quota was used up, by unit.", ["unit"]
        )
        self._refusals = {unit: refusals.of(unit) for unit in UNITS}
        warnings = metrics.add_counts(
            "fal_proxy_quota_warnings", "Calls above a quota that only warns, by unit.", ["unit"]
        )
        self._warnings = {unit: warnings.of(unit) for unit in UNITS}

    def count(self, operation: Operation, outcome: Outcome, seconds: float) -> None:
        """Count one operation that is written down, or was refused. Only the first settlement of a job charges it."""
        self._wait.observe(seconds)
        if type(operation) is Settle:
            if operation.used and type(outcome) is Granted:
                self._count_charge(operation.used)
        elif type(outcome) is Exhausted:
            self._refusals[outcome.bucket.unit].value += 1
        elif type(outcome) is Granted and outcome.exceeded:
            for unit in {charge.bucket.unit for charge in outcome.exceeded}:
                self._warnings[unit].value += 1

    def _count_charge(self, used: Mapping[str, int]) -> None:
        for unit, amount in used.items():
            if amount:
                self._charged[unit].value += amount / MILLION


def _add_charged(metrics: Metrics, unit: str) -> Count:
    return metrics.add_counts(f"fal_proxy_charged_{unit}", f"Charged to calls: {unit.replace('_', ' ')}.").of()
