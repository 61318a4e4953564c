"""Pages that are refused for their origin. Their developers see no more than "failed to fetch": the log says why."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from proxy.errors import OriginNotAllowed
from proxy.telemetry.log_limit import LogLimit
from proxy.telemetry.metrics import Metrics

#: Origins of a minute's lines: any stranger can send any origin.
MOST_ORIGINS = 64
#: A text of a caller's in a log line is cut at this length, and a list of origins at so many.
MAX_FACT_CHARS, MOST_ALLOWED = 200, 20
_log = logging.getLogger(__name__)


class RefusedOrigins:
    """Counts the refusals of pages for their origin, and logs an event for each origin once a minute."""

    def __init__(self, metrics: Metrics, timer: Callable[[], float] = time.monotonic) -> None:
        self._metrics = metrics
        self._limit = LogLimit(MOST_ORIGINS, timer)

    def report(self, error: OriginNotAllowed) -> None:
        """Count a refusal, and log which origin it was, which are allowed, and the setting that allows one."""
        if (refusal := error.refusal) is None:
            return
        self._metrics.origins_refused.labels(refusal.check).inc()
        origin = refusal.origin[:MAX_FACT_CHARS]
        if not self._limit.admits((refusal.check, origin)):
            return
        allowed = sorted(refusal.list_allowed())
        fields = {
            "origin": origin,
            "check": refusal.check,
            "allowed": [one[:MAX_FACT_CHARS] for one in allowed[:MOST_ALLOWED]],
            "allowed_in_all": len(allowed),
            "setting": refusal.setting,
        }
        _log.warning("page refused for its origin", extra={"log_fields": fields})
