"""No signed URL is readable in the database, SQLite or PostgreSQL, in any kind of upload."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from sqlalchemy import select, update

from proxy.stores.sql.engine import create_engine
from proxy.stores.sql.schema import metadata, uploads
from proxy.uploads.sealing import seal, unseal
from tests.support.images import png
from tests.support.limited import assert_refused_with, limited_proxy, plan
from tests.support.sandbox import SandboxControl
from tests.uploads.conftest import PNG, Uploads

URL = "https://v3.fal.media/files/b/x/a.png?signature=a-signature"


def test_a_sealed_url_opens_for_its_slot_only() -> None:
    sealed = seal(URL, "slot")
    assert unseal(sealed, "slot") == URL
    assert "signature" not in sealed and "fal.media" not in sealed and sealed != seal(URL, "slot")
    for other in (sealed[:-4] + "AAAA", sealed[:20], "sealed:", "sealed:%%%", "sealed:é", seal(URL, "another")):
        with pytest.raises(ValueError, match="not sealed for this slot") as caught:
            unseal(other, "slot")
        assert caught.value.__cause__ is None


def test_an_unsealed_url_of_the_previous_version_still_works() -> None:
    assert unseal(URL, "slot") == URL


async def read_everything(database_url: str) -> str:
    """The text of every row of every table."""
    engine = create_engine(database_url)
    async with engine.connect() as connection:
        rows = [row for table in metadata.sorted_tables for row in (await connection.execute(select(table))).all()]
    await engine.dispose()
    return "\n".join(str(tuple(row)) for row in rows)


async def damage(database_url: str) -> None:
    engine = create_engine(database_url)
    async with engine.begin() as connection:
        await connection.execute(update(uploads).values(upstream_url=seal(URL, "another slot")))
    await engine.dispose()


def signatures(proxy: Uploads) -> list[str]:
    """The values in the queries of the signed URLs that were used."""
    return [value for record in proxy.at_files() for value in re.split("[=&]", record["query"]) if len(value) >= 16]


def test_no_table_holds_a_signed_url(database_url: str, sandbox: SandboxControl, tmp_path: Path) -> None:
    environ = {"PROXY_DATABASE_URL": database_url}
    with limited_proxy(sandbox, tmp_path, {"acme": plan()}, environ=environ) as stack:
        proxy = Uploads(stack, tmp_path)
        whole, parts = proxy.slot(), proxy.slot(in_parts=True)
        bearer = {**proxy.token(), **PNG, "x-fal-file-name": "a.png"}
        cdn = proxy.http.post("/fal/cdn/files/upload/multipart", headers=bearer).json()
        before = asyncio.run(read_everything(database_url))
        assert whole.put(png(500)).status_code == 200
        assert parts.complete(parts.parts(png(500))).status_code == 200
        part = f"{cdn['access_url']}/multipart/{cdn['uploadId']}/1"
        assert proxy.http.put(part, content=png(500), headers=bearer).status_code == 200
        after, signed = asyncio.run(read_everything(database_url)), signatures(proxy)
        slots = [whole.upload_url.rpartition("/")[2], parts.upload_url.rpartition("/")[2], cdn["uploadId"]]
        for kept in (before, after):
            assert kept.count("sealed:") == 3
            assert not [secret for secret in (*signed, *slots, "signature=", "/cdn/upload") if secret in kept]
        assert len(set(signed)) >= 3
        # A sealed URL of another row opens nothing.
        late = proxy.slot()
        asyncio.run(damage(database_url))
        assert_refused_with(late.put(png(500)), 404, "not_found")
        proxy.http.close()
