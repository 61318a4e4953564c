"""The errors of stores."""

from __future__ import annotations

from proxy.errors import StoreUnavailable


class DataRefused(StoreUnavailable):
    """The store works, but does not take this data; sending it again would fail again."""


class TransactionAborted(StoreUnavailable):
    """The database undid a transaction for the sake of another one, as it does in a deadlock."""


class OutcomeUnknown(StoreUnavailable):
    """The database did not answer to a commit: the transaction may have been done or not."""


class SchemaMismatch(StoreUnavailable):
    """The database answers, and its schema is not one that this version can use: waiting alone changes nothing."""


class SchemaTooNew(SchemaMismatch):
    """A newer version made the schema, which no migration of this version leads back from."""


class FileUnusable(StoreUnavailable):
    """A SQLite file that cannot be opened, read or written as it is: waiting alone changes nothing."""


class DriverFailed(Exception):
    """What a driver raised at a transaction of the ledger, as `orig`.

    Attributes:
        is_in_doubt: whether the transaction may have been committed.
    """

    def __init__(self, orig: Exception, *, is_in_doubt: bool = False) -> None:
        super().__init__(type(orig).__name__)
        self.orig = orig
        self.is_in_doubt = is_in_doubt
