"""Translates the errors of databases into those of the stores."""

from __future__ import annotations

import logging
import sqlite3
from time import perf_counter

from sqlalchemy.exc import SQLAlchemyError

from proxy.errors import StoreUnavailable
from proxy.stores.errors import DataRefused, DriverFailed, OutcomeUnknown, TransactionAborted
from proxy.telemetry.instruments import Distribution
from proxy.telemetry.log_limit import LogLimit

#: What SQLite raises where the data is at fault, and the classes of PostgreSQL's codes: data exceptions, and violated
#: constraints.
_REFUSALS = (sqlite3.IntegrityError, sqlite3.DataError, OverflowError)
_REFUSAL_STATES = ("22", "23")
#: Deadlocks, and transactions that cannot be put into an order.
_ROLLBACK_STATE = "40"
_log = logging.getLogger(__name__)


class Translation:
    """Turns the driver's trouble into `StoreUnavailable`, without its text: that may quote values.

    `seconds` gets how long the block takes.
    """

    def __init__(self, log_limit: LogLimit, seconds: Distribution | None) -> None:
        self._log_limit = log_limit
        self._seconds = seconds

    def __enter__(self) -> None:
        self._started = perf_counter()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _traceback: object) -> None:
        if self._seconds is not None:
            self._seconds.observe(perf_counter() - self._started)
        if isinstance(error, (SQLAlchemyError, DriverFailed, sqlite3.Error, OSError, TimeoutError, OverflowError)):
            # Each call fails while the database is away.
            problem, code = _cause(error), _code_of(error)
            if failures := self._log_limit.count((problem, code)):
                fields = {"problem": problem, "code": code, "failures": failures}
                _log.error("database failed", extra={"log_fields": fields})
            state = (code or "")[:2]
            if isinstance(getattr(error, "orig", error), _REFUSALS) or state in _REFUSAL_STATES:
                raise DataRefused("The proxy's database does not take that.") from None
            if state == _ROLLBACK_STATE:
                raise TransactionAborted("The proxy's database is busy; try again shortly.") from None
            kind_of = OutcomeUnknown if getattr(error, "is_in_doubt", False) else StoreUnavailable
            raise kind_of("The proxy's database does not answer; try again shortly.") from None


def _code_of(error: BaseException) -> str | None:
    """Return PostgreSQL's SQLSTATE, or SQLite's name of an error; None for an error from elsewhere."""
    original = getattr(error, "orig", error)
    return getattr(original, "sqlstate", None) or getattr(original, "sqlite_errorname", None)


def _cause(error: BaseException) -> str:
    original = getattr(error, "orig", None)
    return f"{type(error).__name__} ({type(original).__name__})" if original is not None else type(error).__name__
