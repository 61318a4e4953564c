"""What a readiness check looks for, writes, and takes back."""

from __future__ import annotations

import secrets

from sqlalchemy import func, select

from proxy.stores.ledger import Accept, Bucket, Charge, Job, Operation, Reserve, Settle
from proxy.stores.sql.schema import metadata
from proxy.stores.transaction import LedgerTransaction, commit_operations

#: Names all tables and their columns, and reads no row.
EVERY_TABLE = select(
    *(
        select(func.count()).select_from(select(table).limit(0).subquery()).scalar_subquery()
        for table in metadata.sorted_tables
    )
)


def book_call(transaction: LedgerTransaction) -> None:
    """Reserve, accept and settle a call without an owner, as every call does. It has an account of its own."""
    name = secrets.token_hex(16)
    bucket = Bucket("", name, "requests", "lifetime", 0)
    job = Job(name, "probe", "", "", "", 0.0, 0.0, (Charge(bucket, 1, 1),))
    operations: list[Operation] = [Reserve(job), Accept(name, name, 0.0), Settle(name, {"requests": 1}, 0.0)]
    commit_operations(transaction, operations=operations, known=())
