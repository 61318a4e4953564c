"""A bound on log lines that strangers cause: one a minute for each address, and not more than some hundred in all."""

from __future__ import annotations

import logging

from cachetools import TTLCache

SECONDS = 60
#: The lines of a minute. Addresses are cheap, of IPv6 above all: neither memory nor the log grows with their number.
MAX_LINES = 256


class LogLimit:
    """Writes an event of each address once a minute, while there is room for it."""

    def __init__(self, log: logging.Logger, event: str, *, most: int = MAX_LINES, seconds: float = SECONDS) -> None:
        self._log = log
        self._event = event
        self._most = most
        self._written: TTLCache[str, bool] = TTLCache(most, seconds)

    def warn(self, address: str, **fields: object) -> None:
        """Log the event with its fields, unless it was logged for this address within the minute."""
        self._written.expire()
        if address in self._written or len(self._written) >= self._most:
            return
        self._written[address] = True
        self._log.warning(self._event, extra={"log_fields": {"address": address, **fields}})
