"""Files on their way to fal, on every kind of database."""

from __future__ import annotations

from dataclasses import replace

import pytest

from proxy.stores.sql import SqlStores
from tests.stores.records import UPLOAD

pytestmark = pytest.mark.anyio


async def test_uploads(stores: SqlStores) -> None:
    await stores.uploads.add(UPLOAD)
    assert await stores.uploads.get("hash") == UPLOAD
    assert await stores.uploads.get("other") is None
    await stores.uploads.finish("hash", 77)
    assert await stores.uploads.get("hash") == replace(UPLOAD, size=77)


async def test_uploads_that_are_long_over_are_forgotten(stores: SqlStores) -> None:
    await stores.uploads.add(UPLOAD)
    await stores.uploads.add(replace(UPLOAD, id="soon-after", expires_at=UPLOAD.expires_at + 1000))
    assert await stores.uploads.get("hash") is not None
    await stores.uploads.add(replace(UPLOAD, id="days-after", expires_at=UPLOAD.expires_at + 200_000))
    assert await stores.uploads.get("hash") is None


async def test_a_file_larger_than_two_gigabytes_is_counted(stores: SqlStores) -> None:
    await stores.uploads.add(replace(UPLOAD, max_bytes=5 * 2**30))
    await stores.uploads.finish("hash", 3 * 2**30)
    found = await stores.uploads.get("hash")
    assert found is not None and (found.max_bytes, found.size) == (5 * 2**30, 3 * 2**30)
