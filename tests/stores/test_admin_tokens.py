"""Named admin tokens, on every kind of database."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from sqlalchemy import text

from proxy.errors import StoreUnavailable
from proxy.stores.admin_tokens import NamedToken
from proxy.stores.sql import SqlStores
from tests.stores.conftest import OpenStores
from tests.support.audit_log import AUTHOR

pytestmark = pytest.mark.anyio
OPS = NamedToken("0" * 16, "ops", "operator", "h" * 64, 10.0, 20.5)


async def test_tokens_are_read_as_written(stores: SqlStores, open_stores: OpenStores, database_url: str) -> None:
    night = replace(OPS, id="1" * 16, name="night")
    assert await stores.admin_tokens.add(OPS, 2, by=AUTHOR)
    assert await stores.admin_tokens.add(night, 2, by=AUTHOR)
    assert await open_stores(database_url).admin_tokens.load() == [night, OPS]
    assert await stores.admin_tokens.revoke("ops", by=AUTHOR)
    assert not await stores.admin_tokens.revoke("ops", by=AUTHOR)
    assert await stores.admin_tokens.load() == [night]


async def test_a_name_belongs_to_one_token_and_their_number_is_bounded(stores: SqlStores) -> None:
    assert await stores.admin_tokens.add(OPS, 2, by=AUTHOR)
    assert not await stores.admin_tokens.add(replace(OPS, id="1" * 16), 2, by=AUTHOR)
    assert await stores.admin_tokens.add(replace(OPS, id="1" * 16, name="night"), 2, by=AUTHOR)
    assert not await stores.admin_tokens.add(replace(OPS, id="2" * 16, name="day"), 2, by=AUTHOR)
    assert len(await stores.admin_tokens.load()) == 2


async def test_a_name_that_is_requested_twice_at_once_belongs_to_one_token(
    stores: SqlStores, open_stores: OpenStores, database_url: str
) -> None:
    others = [open_stores(database_url) for _ in range(3)]
    for number in range(5):
        asked = [replace(OPS, id=f"{number}{place}" * 8, name=f"ops-{number}") for place in range(4)]
        added = [each.admin_tokens.add(one, 99, by=AUTHOR) for each, one in zip([stores, *others], asked, strict=True)]
        assert sorted(await asyncio.gather(*added)) == [False, False, False, True]


async def test_of_tokens_that_are_created_at_once_there_are_no_more_than_fit(
    stores: SqlStores, open_stores: OpenStores, database_url: str
) -> None:
    others = [open_stores(database_url) for _ in range(5)]
    for most in range(2, 12, 2):
        asked = [replace(OPS, id=f"{most:02}{place}" * 5, name=f"ops-{most}-{place}") for place in range(6)]
        added = [
            each.admin_tokens.add(one, most, by=AUTHOR) for each, one in zip([stores, *others], asked, strict=True)
        ]
        assert sorted(await asyncio.gather(*added)) == [False] * 4 + [True] * 2
        assert len(await stores.admin_tokens.load()) == most


async def test_a_token_that_is_revoked_twice_at_once_is_revoked_once(
    stores: SqlStores, open_stores: OpenStores, database_url: str
) -> None:
    everywhere = [stores, *(open_stores(database_url) for _ in range(5))]
    for _ in range(5):
        assert await stores.admin_tokens.add(OPS, 9, by=AUTHOR)
        revoked = await asyncio.gather(*(each.admin_tokens.revoke("ops", by=AUTHOR) for each in everywhere))
        assert sorted(revoked) == [False] * 5 + [True]
    entries = [one.document async for one in stores.audit.read_all()]
    assert sum('"action":"admin_token.revoke"' in one for one in entries) == 5


async def test_each_change_is_an_entry_or_does_not_happen(stores: SqlStores) -> None:
    await stores.admin_tokens.add(OPS, 9, by=AUTHOR)
    await stores.admin_tokens.add(OPS, 9, by=AUTHOR)
    (entry,) = [one async for one in stores.audit.read_all()]
    assert '"action":"admin_token.create"' in entry.document and OPS.secret_hash not in entry.document
    async with stores.audit._database.writing() as connection:
        await connection.execute(text("ALTER TABLE audit RENAME TO elsewhere"))
    with pytest.raises(StoreUnavailable):
        await stores.admin_tokens.revoke("ops", by=AUTHOR)
    with pytest.raises(StoreUnavailable):
        await stores.admin_tokens.add(replace(OPS, id="1" * 16, name="night"), 9, by=AUTHOR)
    assert await stores.admin_tokens.load() == [OPS]
