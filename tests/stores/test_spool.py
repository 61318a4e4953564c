"""What waits for the database outlives the process."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from pathlib import Path

import orjson
import pytest

from proxy.stores.batching import LedgerBatcher
from proxy.stores.ledger import Accept, Charge, Deferred, Reserve, Settle
from proxy.stores.spool import Fact, Spool
from tests.stores.conftest import OpenStores
from tests.stores.records import REQUESTS, job
from tests.stores.test_backlog import LOCK_SECONDS, SHORT, is_in, locked
from tests.support.databases import SqliteDatabases
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.anyio
FIRST, SECOND = "0" * 31 + "1", "0" * 31 + "2"
FACTS: list[Fact] = [
    Accept(FIRST, "fal-1", 5000.5),
    Settle(FIRST, {"requests": 1, "usd": 25}, 1010.25),
    Settle(SECOND, None, 1020.0),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "spool"


def test_another_process_finds_the_kept_entries(folder: Path) -> None:
    spool = Spool(folder)
    assert not folder.exists() and spool.load() == []
    assert spool.keep(FACTS) == 0 and not spool.is_empty
    assert Spool(folder).load() == FACTS
    assert spool.keep(FACTS[1:]) == 0
    assert Spool(folder).load() == FACTS[1:]
    assert spool.keep([]) == 0 and spool.is_empty and os.listdir(folder) == []


def test_only_its_owner_reads_it(folder: Path) -> None:
    before = os.umask(0)
    try:
        Spool(folder).keep(FACTS)
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert (stat.S_IMODE(folder.stat().st_mode), modes) == (0o700, {0o600})


def test_files_of_another_process_stay(folder: Path) -> None:
    mine, other = Spool(folder), Spool(folder)
    mine.keep(FACTS[:1])
    other.keep(FACTS[1:])
    mine.keep([])
    assert Spool(folder).load() == FACTS[1:]


def test_a_file_that_another_process_took_over_is_skipped(folder: Path) -> None:
    """Another process took it over, and has written it down."""
    spool, other = Spool(folder), Spool(folder)
    spool.keep(FACTS)
    assert other.load() == FACTS
    other.keep([])
    assert spool.keep(FACTS[:1]) == 0 and spool.keep([]) == 0


@pytest.mark.parametrize(
    "name, document",
    [
        (f"{FIRST}.accept.json", b"{"),
        (f"{FIRST}.accept.json", b"[1]"),
        (f"{FIRST}.accept.json", b'{"job_id": "' + SECOND.encode() + b'", "request_id": "r", "expires_at": 1.0}'),
        (f"{FIRST}.accept.json", orjson.dumps({"job_id": FIRST, "request_id": "../r", "expires_at": 1.0})),
        (f"{FIRST}.accept.json", orjson.dumps({"job_id": FIRST, "request_id": "r", "expires_at": "soon"})),
        (f"{FIRST}.accept.json", orjson.dumps({"job_id": FIRST, "request_id": "r", "expires_at": 1e300})),
        (f"{FIRST}.settle.json", orjson.dumps({"job_id": FIRST, "at": 1.0})),
        (f"{FIRST}.settle.json", orjson.dumps({"job_id": FIRST, "used": [], "at": 1.0})),
        (f"{FIRST}.settle.json", orjson.dumps({"job_id": FIRST, "used": {"requests": -1}, "at": 1.0})),
        (f"{FIRST}.settle.json", orjson.dumps({"job_id": FIRST, "used": {"requests": 1.5}, "at": 1.0})),
        (f"{FIRST}.settle.json", orjson.dumps({"job_id": FIRST, "used": {"requests": 1}, "at": None})),
        (
            f"{FIRST}.settle.json",
            orjson.dumps({"job_id": FIRST, "used": {"requests": 1}, "at": 1.0}) + b" " * 20_000 + b"!",
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_logged_and_stays(
    folder: Path, name: str, document: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    Spool(folder).keep(FACTS[2:])
    (folder / name).write_bytes(document)
    (folder / "notes.txt").write_text("of an operator")
    assert Spool(folder).load() == FACTS[2:]
    assert "spooled operation ignored" in caplog.text
    assert (folder / name).read_bytes() == document


def test_a_folder_that_cannot_be_written_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "spool").write_text("a file is in its place")
    assert Spool(tmp_path / "spool").keep(FACTS) == 3
    assert "ledger operations not spooled" in caplog.text
    assert Spool(tmp_path / "spool").load() == []
    assert Spool(None).keep(FACTS) == 3 and Spool(None).load() == []


@pytest.mark.slow
@pytest.mark.parametrize("ends", [True, False], ids=["stopped", "killed"])
async def test_the_next_process_writes_what_this_one_could_not(
    sqlite_databases: SqliteDatabases, open_stores: OpenStores, tmp_path: Path, folder: Path, ends: bool
) -> None:
    url = sqlite_databases.migrated()
    stores = open_stores(url, LOCK_SECONDS)
    mine, other = job(Charge(REQUESTS, 5, 100)), job(Charge(REQUESTS, 1, 100))
    batcher = LedgerBatcher(stores.ledger, SHORT, Spool(folder))
    await batcher.commit(Reserve(mine))
    await batcher.commit(Reserve(other))
    with locked(url):
        assert await batcher.commit(Accept(mine.id, "fal-1", 5000.0)) == Deferred()
        assert await batcher.commit(Settle(other.id, {"requests": 1}, 1010.0)) == Deferred()
        if ends:
            await batcher.close()
        else:
            await wait_until_async(lambda: _are_in(folder, 2), "they were not spooled")
            shutil.copytree(folder, tmp_path / "copy")
    if not ends:
        # The process that is still here writes them down, and takes their files away.
        await wait_until_async(lambda: _are_in(folder, 0), "the files stay")
        await batcher.close()
        folder = tmp_path / "copy"
    after = LedgerBatcher(stores.ledger, SHORT, Spool(folder))
    after.start()
    await wait_until_async(lambda: is_in(stores, other.id, "settled"), "it is not booked")
    await wait_until_async(lambda: _are_in(folder, 0), "the files stay")
    await after.close()
    found = await stores.ledger.find("fal-1")
    assert found is not None and (found.id, found.state) == (mine.id, "accepted")
    account = (await stores.ledger.accounts([REQUESTS]))[REQUESTS]
    assert (account.used, account.reserved) == (1, 5)


async def _are_in(folder: Path, files: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return len([name for name in os.listdir(folder) if name.endswith(".json")]) == files
    return False


async def test_a_process_that_ends_without_a_spool_logs_what_is_lost(
    sqlite_databases: SqliteDatabases, open_stores: OpenStores, caplog: pytest.LogCaptureFixture
) -> None:
    url = sqlite_databases.migrated()
    batcher = LedgerBatcher(open_stores(url, LOCK_SECONDS).ledger, SHORT)
    with locked(url):
        assert await batcher.commit(Settle(FIRST, None, 1.0)) == Deferred()
        await batcher.close()
    assert "ledger operations lost" in caplog.text
