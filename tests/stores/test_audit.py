"""The audit log on every kind of database: a chain that holds each change once, or there is no change."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from typing import Any

import anyio
import pytest
from sqlalchemy import select, text

from proxy.errors import StoreUnavailable
from proxy.stores.audit import MOST_VALUE_BYTES, Author, Change
from proxy.stores.directory import Revocation
from proxy.stores.sql import SqlStores, schema
from proxy.stores.sql.audit import erase_subject
from tests.stores.conftest import OpenStores
from tests.stores.records import ACME, GLOBEX, KEY, PLANS
from tests.support.audit_log import AUTHOR

pytestmark = pytest.mark.anyio


async def read_chain(stores: SqlStores) -> list[dict[str, Any]]:
    """All entries, once each is found to follow from the one before, by the rule in the docs."""
    async with stores.audit._database.reading() as connection:
        rows = (await connection.execute(select(schema.audit).order_by(schema.audit.c.number))).all()
        chain = (await connection.execute(select(schema.audit_chain))).one()
    previous, entries = "0" * 64, [json.loads(row.document) for row in rows]
    for number, (row, entry) in enumerate(zip(rows, entries, strict=True), 1):
        previous = hashlib.sha256(f"{previous}\n{row.document}".encode()).hexdigest()
        assert (row.number, row.hash) == (number, previous)
        assert (entry["number"], entry["tenant"]) == (number, row.tenant)
        assert row.document == json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert (chain.head_number, chain.head_hash) == (len(rows), previous)
    return entries


async def test_each_change_of_the_directory_is_an_entry(stores: SqlStores) -> None:
    directory = stores.directory
    await directory.apply(PLANS, [ACME, GLOBEX], by=AUTHOR)
    await directory.apply(PLANS, [ACME], by=AUTHOR)
    await directory.apply({}, [{**ACME, "plan": "gold"}], by=AUTHOR)
    await directory.add_key(KEY, by=AUTHOR)
    await directory.touch_key("k1", 20.0)
    await directory.revoke_key("k1", by=AUTHOR)
    await directory.revoke_key("k1", by=AUTHOR)
    await directory.revoke(Revocation("acme", "s-1", None, 10.0, 99.0), by=AUTHOR)
    await directory.revoke(Revocation("acme", "s-2", None, 10.0, 99.0), by=None)
    entries = await read_chain(stores)
    assert [(entry["action"], entry["tenant"], entry["target"]) for entry in entries] == [
        ("plan.create", "", "free"),
        ("tenant.create", "acme", "acme"),
        ("tenant.create", "globex", "globex"),
        ("tenant.change", "acme", "acme"),
        ("key.create", "acme", "k1"),
        ("key.revoke", "acme", "k1"),
        ("session.revoke", "acme", "s-1"),
    ]
    assert (entries[1]["before"], entries[1]["after"]) == (None, ACME)
    assert (entries[3]["before"], entries[3]["after"]) == ({"plan": "free"}, {"plan": "gold"})
    assert (entries[4]["before"], entries[4]["after"]) == (None, {"name": "backend"})
    assert (entries[5]["before"], entries[5]["after"]) == ({"name": "backend"}, None)
    assert KEY.secret_hash not in json.dumps(entries)


async def test_an_entry_says_who_when_and_from_where(stores: SqlStores) -> None:
    by = Author("token:ops", 1_800_000_000.25, "203.0.113.9", "request-1")
    await stores.audit.record(by, Change("secret.replace", target="FAL_KEY"))
    assert await read_chain(stores) == [
        {
            "number": 1,
            "at": "2027-01-15T08:00:00.250000+00:00",
            "by": "token:ops",
            "address": "203.0.113.9",
            "request_id": "request-1",
            "action": "secret.replace",
            "tenant": "",
            "target": "FAL_KEY",
            "subject_ref": "",
            "before": None,
            "after": None,
        }
    ]


@pytest.mark.parametrize("table", ["audit", "audit_chain", "audit_subjects"])
async def test_a_change_that_cannot_be_recorded_does_not_happen(stores: SqlStores, table: str) -> None:
    directory = stores.directory
    await directory.apply(PLANS, [ACME], by=AUTHOR)
    await directory.add_key(KEY, by=AUTHOR)
    before = await directory.load()
    async with stores.audit._database.writing() as connection:
        await connection.execute(text(f"ALTER TABLE {table} RENAME TO elsewhere"))
    changes = [
        partial(directory.apply, PLANS, [GLOBEX]),
        partial(directory.revoke_key, "k1"),
        partial(directory.revoke, Revocation("acme", None, "alice", 10.0, 99.0)),
    ]
    for change in changes if table != "audit_subjects" else changes[-1:]:
        with pytest.raises(StoreUnavailable):
            await change(by=AUTHOR)
    assert await directory.load() == before


async def test_entries_of_several_processes_make_one_chain(
    stores: SqlStores, open_stores: OpenStores, database_url: str
) -> None:
    async def write(process: SqlStores, name: str) -> None:
        for number in range(15):
            await process.audit.record(AUTHOR, Change("a", "acme", f"{name}-{number}"), Change("b", "acme", name, name))

    async with anyio.create_task_group() as group:
        for name in ("one", "two", "three"):
            group.start_soon(write, open_stores(database_url), name)
    entries = await read_chain(stores)
    assert len(entries) == 90
    for name in ("one", "two", "three"):
        mine = [entry["target"] for entry in entries if entry["target"].startswith(f"{name}-")]
        assert mine == [f"{name}-{number}" for number in range(15)]


async def test_a_user_is_forgotten_and_the_chain_stays_whole(stores: SqlStores) -> None:
    database = stores.audit._database
    for subject in ("alice@example.com", "bob", "alice@example.com"):
        await stores.directory.revoke(Revocation("acme", None, subject, 10.0, 99.0), by=AUTHOR)
    alice, bob, alice_again = [entry["subject_ref"] for entry in await read_chain(stores)]
    assert alice == alice_again != bob and len(alice) == 16
    async with database.writing() as connection:
        await connection.run_sync(erase_subject, "globex", "alice@example.com")
        await connection.run_sync(erase_subject, "acme", "alice@example.com")
    assert len(await read_chain(stores)) == 3
    async with database.reading() as connection:
        names = [row.subject for row in await connection.execute(select(schema.audit_subjects))]
        documents = [row.document for row in await connection.execute(select(schema.audit))]
    assert names == ["bob"] and "alice" not in "".join(documents)
    # A user of the same name who comes back is a new user: no earlier entry is theirs.
    await stores.directory.revoke(Revocation("acme", None, "alice@example.com", 10.0, 99.0), by=AUTHOR)
    assert (await read_chain(stores))[-1]["subject_ref"] != alice


async def test_a_long_value_is_stored_as_its_hash(stores: SqlStores) -> None:
    fits, long = {"a": "x" * (MOST_VALUE_BYTES - 8)}, {"a": "x" * (MOST_VALUE_BYTES - 7)}
    await stores.audit.record(AUTHOR, Change("a", before=long, after=fits))
    (entry,) = await read_chain(stores)
    digest = hashlib.sha256(json.dumps(long, separators=(",", ":")).encode()).hexdigest()
    assert entry["before"] == {"bytes": MOST_VALUE_BYTES + 1, "sha256": digest}
    assert entry["after"] == fits
