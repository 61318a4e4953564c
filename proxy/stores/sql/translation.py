"""Translates the errors of databases into those of the stores."""

from __future__ import annotations

import logging
import sqlite3
from time import perf_counter

from sqlalchemy.exc import SQLAlchemyError

from proxy.stores.errors import DriverFailed
from proxy.stores.sql.diagnosis import diagnose
from proxy.telemetry.instruments import Distribution
from proxy.telemetry.log_limit import LogLimit

_log = logging.getLogger(__name__)


class Translation:
    """Turns the driver's trouble into `StoreUnavailable`, without its text: that may quote values.

    `seconds` gets how long the block takes. `is_file` is whether the database is a SQLite file.
    """

    def __init__(self, log_limit: LogLimit, seconds: Distribution | None, *, is_file: bool) -> None:
        self._log_limit = log_limit
        self._is_file = is_file
        self._seconds = seconds

    def __enter__(self) -> None:
        self._started = perf_counter()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _traceback: object) -> None:
        if self._seconds is not None:
            self._seconds.observe(perf_counter() - self._started)
        if isinstance(error, (SQLAlchemyError, DriverFailed, sqlite3.Error, OSError, TimeoutError, OverflowError)):
            trouble = diagnose(error, is_file=self._is_file)
            problem, code = _cause(error), _code_of(error)
            # Each call fails while the database is away.
            if failures := self._log_limit.count((problem, code)):
                fields = {"problem": problem, "code": code, "reason": trouble.message, "failures": failures}
                _log.error("database failed", extra={"log_fields": fields})
            raise trouble from None


def _code_of(error: BaseException) -> str | None:
    """Return PostgreSQL's SQLSTATE, or SQLite's name of an error; None for an error from elsewhere."""
    original = getattr(error, "orig", error)
    return getattr(original, "sqlstate", None) or getattr(original, "sqlite_errorname", None)


def _cause(error: BaseException) -> str:
    original = getattr(error, "orig", None)
    return f"{type(error).__name__} ({type(original).__name__})" if original is not None else type(error).__name__
