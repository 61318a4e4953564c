"""A bound on log lines that strangers cause: one a minute for each kind and address."""

from __future__ import annotations

import logging

from cachetools import TTLCache

SECONDS = 60
#: Kinds and addresses that are remembered; beyond these the oldest may be logged again.
MOST_REMEMBERED = 4096


class LogLimit:
    """Writes the first line of a kind and an address, and none of the next for a minute."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._last: TTLCache[tuple[str, str], bool] = TTLCache(MOST_REMEMBERED, SECONDS)

    def warn(self, event: str, address: str, **facts: object) -> None:
        """Log an event with its facts, unless the same one of this address was logged within the minute."""
        if (event, address) in self._last:
            return
        self._last[event, address] = True
        self._log.warning(event, extra={"facts": {"address": address, **facts}})
