"""A file that landed is stored, also if the proxy does not learn from its database that it did."""

from __future__ import annotations

import asyncio
import hashlib

from proxy.stores.sql import SqlStores
from tests.support.images import png
from tests.support.limited import assert_refused_with
from tests.uploads.conftest import Slot, Uploads

FILE = png(5000)


def drop_landed(uploads: Uploads, slot: Slot) -> None:
    """End the attempt as one that failed, as the proxy does where the answer to its commit is lost."""

    async def drop() -> None:
        stores = SqlStores(uploads.stack.settings.stores.database_url.reveal())
        kept_as = hashlib.sha256(slot.upload_url.rpartition("/")[2].encode()).hexdigest()
        (part,) = await stores.uploads.list_parts(kept_as)
        await stores.uploads.drop(part)
        await stores.close()

    asyncio.run(drop())


def test_a_file_whose_commit_was_not_confirmed_can_be_sent_again(uploads: Uploads) -> None:
    slot = uploads.slot()
    assert slot.put(FILE).status_code == 200
    drop_landed(uploads, slot)
    assert slot.put(FILE).status_code == 200
    assert_refused_with(slot.put(FILE[:-1]), 400, "bad_request")
    assert len(uploads.at_files()) == 1
