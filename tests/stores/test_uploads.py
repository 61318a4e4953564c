"""Files on their way to fal, on every kind of database."""

from __future__ import annotations

from dataclasses import replace

import anyio
import pytest

from proxy.stores.sql import SqlStores
from proxy.stores.uploads import WHOLE, Part
from tests.stores.records import UPLOAD

pytestmark = pytest.mark.anyio


async def test_an_upload_is_found_by_its_id_and_gets_its_size_at_its_end(stores: SqlStores) -> None:
    await stores.uploads.add(UPLOAD)
    assert await stores.uploads.get("hash") == UPLOAD
    assert await stores.uploads.get("other") is None
    await stores.uploads.finish("hash", 77)
    assert await stores.uploads.get("hash") == replace(UPLOAD, size=77)


async def test_a_file_larger_than_two_gigabytes_is_counted(stores: SqlStores) -> None:
    await stores.uploads.add(replace(UPLOAD, max_bytes=5 * 2**30))
    await stores.uploads.finish("hash", 3 * 2**30)
    found = await stores.uploads.get("hash")
    assert found is not None and (found.max_bytes, found.size) == (5 * 2**30, 3 * 2**30)


PARTS = replace(
    UPLOAD, in_parts=True, session_id="session", issued_at=800.5, newest_revocation=7, tags=("trial", "chat:17")
)


def part(number: int, size: int = 100, attempt: str = "first") -> Part:
    return Part("hash", number, attempt, size)


async def test_parts_land_in_any_order(stores: SqlStores) -> None:
    await stores.uploads.add(PARTS)
    assert await stores.uploads.get("hash") == PARTS
    for number in (10_000, 1, 2):
        assert await stores.uploads.begin(part(number)) is True
    assert await stores.uploads.list_parts("hash") == []
    for number in (2, 10_000):
        assert await stores.uploads.land(part(number), f"etag {number}")
    assert [(one.number, one.etag) for one in await stores.uploads.list_parts("hash")] == [
        (2, "etag 2"),
        (10_000, "etag 10000"),
    ]
    assert await stores.uploads.finish("hash", 200) is True
    assert await stores.uploads.finish("hash", 300) is False
    found = await stores.uploads.get("hash")
    assert found is not None and found.size == 200


async def test_the_latest_attempt_at_a_part_counts(stores: SqlStores) -> None:
    await stores.uploads.add(PARTS)
    old, new = part(1, attempt="old"), part(1, attempt="new")
    await stores.uploads.begin(old)
    assert await stores.uploads.is_current(old)
    await stores.uploads.begin(new)
    assert not await stores.uploads.is_current(old) and await stores.uploads.is_current(new)
    assert not await stores.uploads.land(old, "old")
    await stores.uploads.drop(old)
    assert await stores.uploads.land(new, "new")
    assert [one.etag for one in await stores.uploads.list_parts("hash")] == ["new"]
    await stores.uploads.drop(new)
    assert await stores.uploads.list_parts("hash") == []


async def test_parts_beyond_the_size_of_the_upload_are_refused(stores: SqlStores) -> None:
    await stores.uploads.add(PARTS)
    assert await stores.uploads.begin(part(1, 600)) is True
    assert await stores.uploads.begin(part(2, 401)) is False
    assert await stores.uploads.begin(part(2, 400)) is True
    assert await stores.uploads.begin(part(1, 601, "larger")) is False
    assert await stores.uploads.is_current(part(1, 600))
    assert await stores.uploads.begin(part(1, 599, "smaller")) is True
    await stores.uploads.drop(part(2, 400))
    assert await stores.uploads.begin(part(3, 401)) is True


async def test_parts_that_come_at_once_do_not_exceed_the_size_of_the_upload(stores: SqlStores) -> None:
    await stores.uploads.add(PARTS)
    begun: list[bool | None] = []

    async def begin(number: int) -> None:
        begun.append(await stores.uploads.begin(part(number, 150)))

    async with anyio.create_task_group() as group:
        for number in range(1, 13):
            group.start_soon(begin, number)
    assert begun.count(True) == 6 and begun.count(False) == 6


async def test_an_upload_of_the_whole_file_ends_it(stores: SqlStores) -> None:
    await stores.uploads.add(UPLOAD)
    whole, late = part(WHOLE, 77), part(WHOLE, 78, "late")
    await stores.uploads.begin(whole)
    assert await stores.uploads.land(whole, "")
    assert await stores.uploads.get("hash") == replace(UPLOAD, size=77)
    assert await stores.uploads.begin(late) is None
    assert not await stores.uploads.is_current(whole)
    assert not await stores.uploads.land(whole, "again")
    # As after a commit whose answer was lost.
    await stores.uploads.drop(whole)
    assert [one.etag for one in await stores.uploads.list_parts("hash")] == [""]
    assert await stores.uploads.begin(Part("other", 1, "first", 1)) is None
