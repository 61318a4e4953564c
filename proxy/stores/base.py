"""All stores of a process.

An error out of any of their methods means trouble with the store itself and is always `StoreUnavailable`; that there is
none is an answer, not an error.
"""

from __future__ import annotations

from typing import Protocol

from proxy.stores.admin_tokens import AdminTokenStore
from proxy.stores.alerts import AlertStore
from proxy.stores.audit_store import AuditStore
from proxy.stores.deliveries import DeliveryStore
from proxy.stores.directory import DirectoryStore
from proxy.stores.grants import GrantStore
from proxy.stores.idempotency import IdempotencyStore
from proxy.stores.learned import LearnedStore
from proxy.stores.ledger import Ledger
from proxy.stores.removal import RemovalStore
from proxy.stores.retention import RetentionStore
from proxy.stores.spend import SpendStore
from proxy.stores.statements import StatementStore
from proxy.stores.uploads import UploadStore
from proxy.stores.usage import UsageRollup


class Stores(Protocol):
    """All persistence of one process, over one connection pool."""

    @property
    def directory(self) -> DirectoryStore: ...

    @property
    def admin_tokens(self) -> AdminTokenStore: ...

    @property
    def audit(self) -> AuditStore: ...

    @property
    def ledger(self) -> Ledger: ...

    @property
    def grants(self) -> GrantStore: ...

    @property
    def learned(self) -> LearnedStore: ...

    @property
    def uploads(self) -> UploadStore: ...

    @property
    def idempotency(self) -> IdempotencyStore: ...

    @property
    def alerts(self) -> AlertStore: ...

    @property
    def deliveries(self) -> DeliveryStore: ...

    @property
    def spend(self) -> SpendStore: ...

    @property
    def retention(self) -> RetentionStore: ...

    @property
    def removal(self) -> RemovalStore: ...

    @property
    def statements(self) -> StatementStore: ...

    @property
    def usage_rollup(self) -> UsageRollup: ...

    async def prepare(self) -> None:
        """Make it usable, before anything else is asked of it."""

    async def ping(self) -> None:
        """Prove that the store takes what calls write, and has the schema of this version."""

    async def close(self) -> None: ...
