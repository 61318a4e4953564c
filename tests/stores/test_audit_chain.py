"""The check of the audit log finds each entry that is changed, missing or in another place, on every database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import anyio
import pytest
from sqlalchemy import text

from proxy.stores.audit import Change, compute_hash
from proxy.stores.audit_chain import MOST_PROBLEMS, START, ChainCheck, Entry, Link
from proxy.stores.sql import SqlStores, schema
from proxy.stores.sql import audit as sql_audit
from proxy.stores.sql.retention import ROWS_AT_ONCE
from tests.stores.conftest import OpenStores
from tests.stores.expired import count, expiry, remove, removed
from tests.support.audit_log import AUTHOR

pytestmark = pytest.mark.anyio
NAMES = ["alice", "bob", "carol", "dave", "erin", "frank"]


async def fill(stores: SqlStores, names: Sequence[str] = NAMES, at: float = 1000.0) -> None:
    for place, name in enumerate(names):
        change = Change("session.revoke", "acme", f"s-{name}", name)
        await stores.audit.record(replace(AUTHOR, at=at + place), change)


async def tamper(stores: SqlStores, *statements: str) -> None:
    async with stores.audit._database.writing() as connection:
        for statement in statements:
            await connection.execute(text(statement))


async def problems(stores: SqlStores, expected: Link | None = None) -> list[str]:
    return list((await stores.audit.verify(expected)).problems)


async def test_an_unchanged_log_verifies_from_its_start_and_from_a_kept_head(stores: SqlStores) -> None:
    empty = await stores.audit.verify()
    assert (empty.head, empty.entries, empty.problems) == (START, 0, [])
    await fill(stores)
    found = await stores.audit.verify(START)
    assert (found.head.number, found.entries, found.problems) == (6, 6, [])
    assert await problems(stores, found.head) == []
    assert Link.parse(str(found.head)) == found.head
    await fill(stores, ["grace"])
    assert await problems(stores, found.head) == []


@pytest.mark.parametrize("text", ["", "6", "6:", f"6:{'A' * 64}", f"6:{'a' * 63}", f"-1:{'a' * 64}", f"6:{'a' * 64}\n"])
def test_a_malformed_head_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be a head"):
        Link.parse(text)


#: A change of the tables past the program, and the words of the problem that the check reports.
TAMPERED = {
    "by": (
        "UPDATE audit SET document = replace(document, 'tester', 'nobody') WHERE number = 3",
        "entry 3 does not follow",
    ),
    "hash": (f"UPDATE audit SET hash = '{'0' * 64}' WHERE number = 3", "entry 3 does not follow"),
    "hash of the last": (f"UPDATE audit SET hash = '{'0' * 64}' WHERE number = 6", "entry 6 does not follow"),
    "at": ("UPDATE audit SET at = 5.0 WHERE number = 3", "a column was changed"),
    "tenant": ("UPDATE audit SET tenant = 'globex' WHERE number = 3", "a column was changed"),
    "number": ("UPDATE audit SET number = 7 WHERE number = 6", "entry 6 is missing"),
    "first": ("DELETE FROM audit WHERE number = 1", "entry 1 is missing"),
    "two in the middle": ("DELETE FROM audit WHERE number IN (3, 4)", "entries 3 to 4 are missing"),
    "last": ("DELETE FROM audit WHERE number = 6", "entry 6 is missing at the end"),
    "all": ("DELETE FROM audit", "entries 1 to 6 are missing at the end"),
    "one more": (
        f"INSERT INTO audit SELECT 7, at, tenant, document, '{'0' * 64}' FROM audit WHERE number = 6",
        "entry 7 does not follow",
    ),
    "one below": (
        "UPDATE audit SET number = -6 WHERE number = 6",
        "entry -6 was removed as past its time, and is there",
    ),
    "head": ("UPDATE audit_chain SET head_number = 5", "the log ends with entry 6, which is not its head"),
    "anchor": ("UPDATE audit_chain SET anchor_number = 2", "entry 1 was removed as past its time, and is there"),
    "no head": ("DELETE FROM audit_chain", "the row of the table audit_chain is missing"),
}


@pytest.mark.parametrize("name", TAMPERED)
async def test_a_change_of_the_tables_past_the_program_is_found(stores: SqlStores, name: str) -> None:
    await fill(stores)
    statement, words = TAMPERED[name]
    await tamper(stores, statement)
    assert words in "; ".join(await problems(stores))


async def test_two_swapped_entries_are_found(stores: SqlStores) -> None:
    await fill(stores)
    await tamper(
        stores,
        "UPDATE audit SET number = -number WHERE number IN (3, 5)",
        "UPDATE audit SET number = 8 + number WHERE number IN (-3, -5)",
    )
    assert [problem.split(" ", 2)[1] for problem in await problems(stores)] == ["3", "4", "5", "6"]


async def test_an_end_that_is_cut_off_with_its_head_shows_by_an_expected_one(stores: SqlStores) -> None:
    await fill(stores)
    head = (await stores.audit.verify()).head
    shorter = "(SELECT hash FROM audit WHERE number = 4)"
    await tamper(
        stores,
        "DELETE FROM audit WHERE number > 4",
        f"UPDATE audit_chain SET head_number = 4, head_hash = {shorter}",
    )
    assert await problems(stores) == []
    assert await problems(stores, head) == ["entry 6, which you expect, is missing: the end was cut off"]
    # And written again from there on.
    await fill(stores, ["mallory", "mallory"])
    assert await problems(stores) == []
    assert await problems(stores, head) == ["entry 6 has another hash than you expect: the log was written again"]


def test_a_check_names_a_bounded_number_of_problems() -> None:
    check = ChainCheck(START)
    for number in range(2, 2 * MOST_PROBLEMS + 4, 2):
        check.add(Entry(number, 0.0, "", "{}", compute_hash("", "")))
    assert len(check.problems) == MOST_PROBLEMS


# Reading


async def test_entries_are_read_in_pages_with_their_subjects(stores: SqlStores) -> None:
    await fill(stores)
    await stores.audit.record(AUTHOR, Change("key.create", "globex", "k1"))
    newest = await stores.audit.list_newest(3)
    assert [(entry.number, entry.subject) for entry in newest] == [(7, None), (6, "frank"), (5, "erin")]
    assert [entry.number for entry in await stores.audit.list_newest(3, before=5)] == [4, 3, 2]
    assert [entry.number for entry in await stores.audit.list_newest(3, tenant="globex")] == [7]
    async with stores.audit._database.writing() as connection:
        await connection.run_sync(sql_audit.erase_subject, "acme", "erin")
    everything = [entry async for entry in stores.audit.read_all()]
    assert [entry.number for entry in everything] == [1, 2, 3, 4, 5, 6, 7]
    assert [entry.subject for entry in everything[4:]] == [None, "frank", None]
    assert [entry.number async for entry in stores.audit.read_all(6)] == [7]


async def test_a_long_log_is_read_in_several_statements(stores: SqlStores) -> None:
    many = [Change("a", target=f"{number}") for number in range(sql_audit.PAGE + 2)]
    await stores.audit.record(AUTHOR, *many)
    assert len([entry async for entry in stores.audit.read_all(1)]) == sql_audit.PAGE + 1
    found = await stores.audit.verify()
    assert (found.entries, found.problems) == (sql_audit.PAGE + 2, [])


# Retention


async def test_the_rest_is_whole_after_the_oldest_are_removed(stores: SqlStores, database_url: str) -> None:
    await fill(stores)
    await stores.audit.record(replace(AUTHOR, at=1006.0), Change("session.revoke", "acme", "s-alice", "alice"))
    links = [Link(entry.number, entry.hash) async for entry in stores.audit.read_all()]
    first, third, head = links[0], links[2], links[6]
    assert await removed(stores, "audit", expiry(audit=1003.0), most=2) == 3
    found = await stores.audit.verify(head)
    assert (found.head, found.entries, found.problems) == (head, 4, [])
    assert await problems(stores, third) == []
    assert await problems(stores, first) == [
        "entry 1, which you expect, was removed as past its time: expect a newer head"
    ]
    # The names of users whom only removed entries concern are gone.
    names = [entry.subject async for entry in stores.audit.read_all()]
    assert names == ["dave", "erin", "frank", "alice"]
    assert await count(database_url, schema.audit_subjects) == 4
    await fill(stores, ["grace"], at=1007.0)
    assert await removed(stores, "audit", expiry(audit=2000.0)) == 5
    await fill(stores, ["heidi"], at=2000.0)
    found = await stores.audit.verify()
    assert (found.head.number, found.entries, found.problems) == (9, 1, [])


async def test_none_is_removed_before_an_older_one(stores: SqlStores) -> None:
    """Clocks of several machines differ: what follows a young entry stays with it."""
    for at in (1000.0, 3000.0, 1001.0):
        await stores.audit.record(replace(AUTHOR, at=at), Change("a"))
    assert await removed(stores, "audit", expiry(audit=2000.0)) == 1
    assert [entry.number async for entry in stores.audit.read_all()] == [2, 3]
    assert await problems(stores) == []


async def test_entries_come_while_others_are_removed(
    stores: SqlStores, open_stores: OpenStores, database_url: str
) -> None:
    await stores.audit.record(replace(AUTHOR, at=1000.0), *(Change("a") for _ in range(4 * ROWS_AT_ONCE)))
    others, left = [open_stores(database_url) for _ in range(2)], [4 * ROWS_AT_ONCE]

    async def remove_all() -> None:
        while found := await stores.retention.find("audit", expiry(audit=2000.0), ROWS_AT_ONCE):
            left.append(left[-1] - await remove(stores, "audit", found))

    async with anyio.create_task_group() as group:
        group.start_soon(remove_all)
        for other in others:
            group.start_soon(fill, other, NAMES, 3000.0)
    found = await stores.audit.verify()
    assert left[-1] == 0 and (found.entries, found.problems) == (2 * len(NAMES), [])
