"""All stores of a process.

An error out of any of their methods means trouble with the store itself and is always `StoreUnavailable`; that there is
none is an answer, not an error.
"""

from __future__ import annotations

from typing import Protocol

from proxy.stores.directory import DirectoryStore
from proxy.stores.idempotency import IdempotencyStore
from proxy.stores.ledger import Ledger
from proxy.stores.retention import RetentionStore
from proxy.stores.uploads import UploadStore


class Stores(Protocol):
    """All persistence of one process, over one connection pool."""

    @property
    def directory(self) -> DirectoryStore: ...

    @property
    def ledger(self) -> Ledger: ...

    @property
    def uploads(self) -> UploadStore: ...

    @property
    def idempotency(self) -> IdempotencyStore: ...

    @property
    def retention(self) -> RetentionStore: ...

    async def prepare(self) -> None:
        """Make it usable, before anything else is asked of it."""

    async def ping(self) -> None:
        """Prove that the store takes what calls write, and has the schema of this version."""

    async def close(self) -> None: ...
