"""Writing to a SQLite file: in turns, at once where it is free, patiently where it is not, and with a log of a bounded
length."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import sqlite3
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from sqlalchemy import select, text

from proxy.errors import StoreUnavailable
from proxy.settings import SettingsError, read_stores
from proxy.stores.ledger import Granted, Reserve, Settle
from proxy.stores.sql import SqlStores
from proxy.stores.sql.database import MOST_BESIDE_IN_FILE, Database
from proxy.stores.sql.schema import jobs
from proxy.stores.sql.sqlite import CONNECTIONS, WAIT_SECONDS
from proxy.stores.sqlite.connection import LedgerConnection
from proxy.stores.sqlite.file import CHECKPOINT_AFTER, LONG_LOG, LONGEST_LOG, OLD_ROWS
from proxy.stores.sqlite.location import SqliteLocation, keep_private
from proxy.stores.sqlite.log_hold import LogHold
from proxy.stores.transaction import LedgerTransaction
from tests.stores.conftest import OpenStores
from tests.stores.expired import expiry, remove
from tests.stores.records import REQUESTS, UPLOAD, job
from tests.support.databases import SqliteDatabases

pytestmark = pytest.mark.anyio
PAGE_BYTES = 4096


def path_of(url: str) -> Path:
    return Path(url.removeprefix("sqlite:///"))


@pytest.fixture
async def database(sqlite_databases: SqliteDatabases) -> Any:
    database = Database(sqlite_databases.migrated())
    yield database
    await database.close()


def start_over(path: Path) -> None:
    """Write the whole log into the file, and empty it."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0)


async def settled_jobs(stores: SqlStores, number: int) -> None:
    done = [job(id=f"{one:032x}") for one in range(number)]
    for start in range(0, number, 500):
        some = done[start : start + 500]
        await stores.ledger.commit([Reserve(one) for one in some] + [Settle(one.id, {}, 1010.0) for one in some])


async def test_a_removal_and_a_count_hold_the_file_through_no_turn_of_the_event_loop(
    sqlite_databases: SqliteDatabases, open_stores: OpenStores
) -> None:
    url = sqlite_databases.migrated()
    stores = open_stores(url)
    await settled_jobs(stores, 200)
    found = await stores.retention.find("jobs", expiry(jobs=5000.0), 100)
    # It waits for the lock on the event loop itself, and gets it though the loop does nothing else meanwhile.
    with contextlib.closing(sqlite3.connect(path_of(url), isolation_level=None, timeout=5)) as other:
        for turns in range(40):
            some = found[turns * 2 : turns * 2 + 2]
            working = [remove(stores, "jobs", some), stores.usage_rollup.count(2)]
            tasks = [asyncio.create_task(work) for work in working]
            for _ in range(turns):
                await asyncio.sleep(0)
            other.execute("BEGIN IMMEDIATE")
            other.execute("ROLLBACK")
            # Some that are to be counted may have been removed before.
            assert (await asyncio.gather(*tasks))[0] == 2


def jobs_in_file(path: Path) -> int:
    """How many jobs the file has without its log."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as connection:
        (jobs,) = connection.execute("SELECT count(*) FROM jobs").fetchone()
        return int(jobs)


async def test_removals_wait_while_the_log_is_written_into_the_file(
    sqlite_databases: SqliteDatabases, open_stores: OpenStores
) -> None:
    url, removals = sqlite_databases.migrated(), -(-CHECKPOINT_AFTER // OLD_ROWS)
    stores = open_stores(url)
    await settled_jobs(stores, removals + 3)
    found = await stores.retention.find("jobs", expiry(jobs=5000.0), removals)
    start_over(path_of(url))
    for one in found:
        assert jobs_in_file(path_of(url)) == removals + 3
        assert await remove(stores, "jobs", [one]) == 1
    assert jobs_in_file(path_of(url)) == 3


async def test_a_removal_tells_how_many_calls_wanted_the_file_since_the_one_before(
    sqlite_databases: SqliteDatabases, open_stores: OpenStores
) -> None:
    stores, calls = open_stores(sqlite_databases.migrated()), list[int]()
    await settled_jobs(stores, 3)
    while await stores.usage_rollup.count(9):
        pass
    for found in await stores.retention.find("jobs", expiry(jobs=5000.0), 3):
        for _ in range(len(calls)):
            await stores.ledger.commit([Reserve(job())])
        removal = await stores.retention.remove("jobs", [found], 60.0)
        assert removal is not None
        calls.append(removal.calls)
    assert calls[1:] == [1, 2]


async def test_a_removal_writes_few_pages_a_row(sqlite_databases: SqliteDatabases, open_stores: OpenStores) -> None:
    """What SQLite writes while calls wait: the row's page, and that of each index."""
    url = sqlite_databases.migrated()
    stores = open_stores(url)
    await settled_jobs(stores, 1500)
    found = await stores.retention.find("jobs", expiry(jobs=5000.0), 25)
    start_over(path_of(url))
    assert await remove(stores, "jobs", found) == 25
    assert 0 < pages(path_of(url)) <= 25 * (1 + len(jobs.indexes) + 2) + 20


def adding(*names: str) -> Callable[[LedgerTransaction], None]:
    """Adds jobs of these ids."""

    def work(transaction: LedgerTransaction) -> None:
        transaction.add_jobs([job(id=name) for name in names])

    return work


async def names(database: Database) -> list[str]:
    async with database.reading() as connection:
        return sorted((await connection.execute(select(jobs.c.id))).scalars())


async def test_a_free_file_is_written_by_the_calling_thread(database: Database) -> None:
    assert await database.run(lambda _: threading.current_thread()) is threading.current_thread()


async def test_the_event_loop_does_not_wait_for_the_disk_when_the_log_begins_again(database: Database) -> None:
    """SQLite syncs the head of the log then, within the transaction."""
    starts = itertools.count()

    def look(_: LedgerTransaction) -> threading.Thread:
        return threading.current_thread()

    def write(transaction: LedgerTransaction) -> threading.Thread:
        transaction.create_accounts([REQUESTS._replace(window_start=next(starts))])
        return threading.current_thread()

    here = threading.current_thread()
    for _ in range(CHECKPOINT_AFTER):
        assert await database.run(write) is here
    await asyncio.sleep(0)
    await database.wait_for_checkpoint()
    assert await database.run(look) is not here
    assert await database.run(write) is not here
    assert await database.run(write) is here


async def test_the_log_does_not_begin_again_while_it_is_tidied_up(
    sqlite_databases: SqliteDatabases, open_stores: OpenStores
) -> None:
    """Calls go on in the event loop meanwhile, which must not wait for the disk."""
    url = sqlite_databases.migrated()
    location = SqliteLocation(str(path_of(url)))
    ledger, others = LedgerConnection(location.connect(0)), location.connect(0)
    hold = LogHold(location, 0)

    def write(name: str) -> None:
        ledger.begin()
        ledger.commit(adding(name))

    def tidy_up() -> None:
        ((is_held_up, pages, tidied),) = others.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        assert (is_held_up, pages) == (0, tidied)

    write("first")
    before = restarts(path_of(url))
    for name in ("second", "third"):
        hold.take()
        tidy_up()
        write(name)
        assert restarts(path_of(url)) == before
    hold.release()
    tidy_up()
    write("fourth")
    assert restarts(path_of(url)) == before + 1
    assert {one.id for one in await open_stores(url).ledger.open_jobs()} == {"first", "second", "third", "fourth"}
    for one in (ledger, others, hold):
        one.close()


async def test_calls_stay_in_the_event_loop_while_the_log_is_tidied_up(database: Database) -> None:
    starts, here = itertools.count(), threading.current_thread()

    def write(transaction: LedgerTransaction) -> threading.Thread:
        transaction.create_accounts([REQUESTS._replace(window_start=next(starts))])
        return threading.current_thread()

    for _ in range(CHECKPOINT_AFTER):
        await database.run(write)
    before = restarts(path_of(database._url))
    # Now it begins.
    await asyncio.sleep(0)
    assert await database.run(write) is here
    await database.wait_for_checkpoint()
    assert restarts(path_of(database._url)) == before


def restarts(path: Path) -> int:
    """How often the log began again, as its head says (SQLite's file format, section 4.1)."""
    return int.from_bytes(Path(f"{path}-wal").read_bytes()[12:16], "big")


@pytest.mark.slow
async def test_a_long_log_begins_again_before_the_next_call(database: Database) -> None:
    """The call would wait for the disk, and those behind it."""
    path, here = path_of(database._url), threading.current_thread()

    def write(transaction: LedgerTransaction, request_id: str = "") -> threading.Thread:
        transaction.update_jobs([job(id="written", request_id=request_id)])
        return threading.current_thread()

    await database.run(adding("written"))
    await database.run(lambda transaction: write(transaction, "x" * LONG_LOG * PAGE_BYTES))
    assert pages(path) > LONG_LOG
    before = restarts(path)
    for number in range(CHECKPOINT_AFTER):
        await database.run(lambda transaction, number=number: write(transaction, f"{number}"))
    await database.wait_for_checkpoint()
    assert restarts(path) == before + 1
    assert await database.run(write) is here


@pytest.mark.slow
async def test_a_log_that_is_to_be_emptied_is_tidied_up_first(
    sqlite_databases: SqliteDatabases, caplog: pytest.LogCaptureFixture
) -> None:
    """Each of the two takes its turn; if one had it and waited for the other, calls would wait for both."""
    database = Database(sqlite_databases.migrated(), 60.0)

    def write(transaction: LedgerTransaction, request_id: str = "") -> None:
        transaction.update_jobs([job(id="written", request_id=request_id)])

    await database.run(adding("written"))
    await database.run(lambda transaction: write(transaction, "x" * LONG_LOG * PAGE_BYTES))
    for number in range(CHECKPOINT_AFTER):
        await database.run(lambda transaction, number=number: write(transaction, f"{number}"))
    await database.truncate_log()
    await database.wait_for_checkpoint()
    assert not [record for record in caplog.records if "not checkpointed" in record.message]
    assert pages(path_of(database._url)) < CHECKPOINT_AFTER
    await database.close()


async def test_work_that_fails_leaves_nothing_behind(database: Database) -> None:
    def work(transaction: LedgerTransaction) -> None:
        adding("first")(transaction)
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        await database.run(work)
    with pytest.raises(StoreUnavailable):
        await database.run(adding("twice", "twice"))
    await database.run(adding("second"))
    assert await names(database) == ["second"]


async def test_a_lock_of_another_process_is_waited_for_outside_the_event_loop(database: Database) -> None:
    await database.run(adding("first"))
    holder = sqlite3.connect(path_of(database._url), isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    waiting = asyncio.create_task(database.run(adding("second")))
    later = asyncio.create_task(database.run(adding("third")))
    # The loop goes on, and so does reading.
    assert await names(database) == ["first"]
    assert not waiting.done()
    holder.execute("COMMIT")
    await asyncio.gather(waiting, later)
    assert await names(database) == ["first", "second", "third"]
    holder.close()


async def test_writers_take_turns_in_the_order_of_their_arrival(database: Database) -> None:
    order = list[str]()

    async def noting(name: str, work: Any) -> None:
        await work
        order.append(name)

    def adding_beside(name: str) -> Callable[[sqlite3.Connection], object]:
        return lambda connection: connection.execute("INSERT INTO plans (name, document) VALUES (?, '{}')", [name])

    writes = [
        (
            noting("ledger", database.run(adding(f"job-{number}"))),
            noting("beside", database.change_file(adding_beside(f"plan-{number}"), 1)),
        )
        for number in range(20)
    ]
    await asyncio.gather(*(write for pair in writes for write in pair))
    assert order == ["ledger", "beside"] * 20


async def test_other_writers_come_to_their_turn_while_the_ledger_writes_all_the_time(
    sqlite_databases: SqliteDatabases, open_stores: OpenStores
) -> None:
    stores, over = open_stores(sqlite_databases.migrated()), False

    async def keep_reserving() -> int:
        count = 0
        while not over:
            await stores.ledger.commit([Reserve(job())])
            await asyncio.sleep(0)
            count += 1
        return count

    busy = [asyncio.create_task(keep_reserving()) for _ in range(3)]
    uploads = (UPLOAD.__class__(**{**vars(UPLOAD), "id": f"upload-{number}"}) for number in range(20))
    await asyncio.gather(*map(stores.uploads.add, uploads))
    over = True
    assert sum(await asyncio.gather(*busy)) >= 20


async def test_a_writer_that_waits_too_long_for_its_turn_fails(
    sqlite_databases: SqliteDatabases, open_stores: OpenStores
) -> None:
    url = sqlite_databases.migrated()
    impatient = open_stores(url, 0.05)
    holder = sqlite3.connect(path_of(url), isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    asking = [impatient.ledger.commit([Reserve(job())]) for _ in range(3)]
    asking.append(impatient.uploads.add(UPLOAD))
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert [type(answer) for answer in answers] == [StoreUnavailable] * 4
    holder.execute("ROLLBACK")
    assert await impatient.ledger.commit([Reserve(job())]) == [Granted()]
    holder.close()


async def test_writers_do_not_wait_forever_for_a_write_that_hangs(sqlite_databases: SqliteDatabases) -> None:
    database = Database(sqlite_databases.migrated(), 0.05)
    async with database.writing():
        with pytest.raises(StoreUnavailable):
            await database.run(adding("late"))
    await database.run(adding("in time"))
    assert await names(database) == ["in time"]
    await database.close()


async def test_a_writer_waits_for_a_place_no_longer_than_for_its_turn(sqlite_databases: SqliteDatabases) -> None:
    database = Database(sqlite_databases.migrated(), 0.05)
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(CONNECTIONS):
            await stack.enter_async_context(database.reading())
        # They have the places, and wait for a connection.
        waiting = [asyncio.create_task(database.write(lambda _: None)) for _ in range(MOST_BESIDE_IN_FILE)]
        await asyncio.sleep(0)
        with anyio.fail_after(WAIT_SECONDS / 2), pytest.raises(StoreUnavailable):
            await database.write(lambda _: None)
        assert not any(task.done() for task in waiting)
    await asyncio.gather(*waiting)
    await database.close()


def pages(path: Path) -> int:
    """Of the log."""
    return Path(f"{path}-wal").stat().st_size // PAGE_BYTES


@pytest.mark.slow
async def test_the_log_stays_short_however_long_the_writing_goes_on(database: Database) -> None:
    longest, path = 0, path_of(database._url)
    await database.run(adding("written"))
    # Some eighty thousand pages, a few each time, without a pause in which SQLite could restart the log by itself.
    for number in range(80 * CHECKPOINT_AFTER):
        longer = job(id="written", request_id=f"{number:05d}" * 4_000)
        await database.run(lambda transaction, longer=longer: transaction.update_jobs([longer]))
        await asyncio.sleep(0)
        longest = max(longest, pages(path))
    # A busy machine lets more be written before the log's keeper has its turn.
    assert longest < 3 * LONGEST_LOG


# The mode of the file


@pytest.fixture(params=[0o000, 0o022, 0o277], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def modes(path: Path) -> dict[str, int]:
    """Of the file and of its log."""
    return {
        one.name.removeprefix(path.name): stat.S_IMODE(one.stat().st_mode) for one in path.parent.glob(f"{path.name}*")
    }


PRIVATE = {"": 0o600, "-wal": 0o600, "-shm": 0o600}


async def test_only_its_owner_can_read_a_new_file(umask: None, tmp_path: Path, open_stores: OpenStores) -> None:
    path = tmp_path / "proxy.db"
    stores = open_stores(f"sqlite:///{path}")
    await stores.migrate()
    await stores.ledger.commit([Reserve(job())])
    assert modes(path) == PRIVATE


async def test_a_file_of_an_earlier_version_gets_the_same_mode(
    sqlite_databases: SqliteDatabases, open_stores: OpenStores
) -> None:
    url = sqlite_databases.migrated()
    path = path_of(url)
    holder = sqlite3.connect(path)
    holder.execute("SELECT * FROM tenants").fetchall()
    for one in path.parent.glob(f"{path.name}*"):
        one.chmod(0o644)
    assert set(modes(path)) == set(PRIVATE)
    stores = open_stores(url)
    await stores.ping()
    assert modes(path) == PRIVATE
    holder.close()


async def test_a_link_leads_to_a_file_that_is_its_owners(tmp_path: Path, open_stores: OpenStores) -> None:
    (tmp_path / "link.db").symlink_to(tmp_path / "proxy.db")
    await open_stores(f"sqlite:///{tmp_path / 'link.db'}").migrate()
    assert modes(tmp_path / "proxy.db")[""] == 0o600


def test_the_mode_of_a_folder_stays_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(FileExistsError):
        SqliteLocation(str(tmp_path)).connect(0)
    assert tmp_path.stat().st_mode & 0o777 == 0o755


async def test_the_locks_of_a_file_survive_another_connection(tmp_path: Path, open_stores: OpenStores) -> None:
    """POSIX takes all locks of a process on a file away when it closes the file once."""
    path = tmp_path / "proxy.db"
    await open_stores(f"sqlite:///{path}").migrate()
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    keep_private(str(path))
    look = f"import sqlite3; sqlite3.connect({str(path)!r}, timeout=0, isolation_level=None).execute('BEGIN IMMEDIATE')"
    done = await anyio.run_process([sys.executable, "-c", look], check=False)
    assert b"database is locked" in done.stderr
    holder.close()


@pytest.mark.parametrize("is_another_there", [False, True])
async def test_a_file_that_was_moved_is_not_taken_for_another(
    tmp_path: Path, is_another_there: bool, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "proxy.db"
    location = SqliteLocation(str(path))
    location.connect(0).close()
    path.rename(tmp_path / "elsewhere.db")
    if is_another_there:
        path.touch()
    for _ in range(3):
        with pytest.raises(StoreUnavailable, match="no longer in its place"):
            location.connect(0)
    # Each call fails now, and one line a minute says so.
    assert len([record for record in caplog.records if "the database file was moved" in record.message]) == 1
    assert path.exists() == is_another_there
    (tmp_path / "elsewhere.db").rename(path)
    location.connect(0).close()


# What a power cut may take

NORMAL, FULL = 1, 2


@pytest.mark.parametrize(("sync", "level"), [("normal", NORMAL), ("full", FULL)])
async def test_each_connection_waits_for_the_disk_as_the_setting_says(
    sqlite_databases: SqliteDatabases, sync: str, level: int
) -> None:
    settings = read_stores({"PROXY_DATABASE_URL": sqlite_databases.migrated(), "PROXY_SQLITE_SYNC": sync})
    stores, found = SqlStores.of(settings), list[int]()

    def look(connection: Any) -> None:
        found.append(connection._connection.execute("PRAGMA synchronous").fetchone()[0])

    database = stores.ledger._database
    await database.run(look)
    await database.try_out(look)
    async with database.writing() as connection:
        found.append((await connection.execute(text("PRAGMA synchronous"))).scalar_one())
    assert found == [level] * 3
    await stores.close()


async def test_the_event_loop_does_not_wait_for_the_disk(sqlite_databases: SqliteDatabases) -> None:
    database = Database(sqlite_databases.migrated(), is_durable=True)
    assert await database.run(lambda _: threading.current_thread()) is not threading.current_thread()
    await asyncio.gather(*(database.run(adding(f"{number:02}")) for number in range(20)))
    assert await names(database) == [f"{number:02}" for number in range(20)]
    await database.close()


def test_a_wrong_sync_setting_is_refused() -> None:
    with pytest.raises(SettingsError, match="PROXY_SQLITE_SYNC: must be one of normal, full"):
        read_stores({"PROXY_SQLITE_SYNC": "extra"})


async def test_a_file_that_another_process_opens_at_this_moment_is_waited_for(
    sqlite_databases: SqliteDatabases, open_stores: OpenStores
) -> None:
    url = sqlite_databases.migrated()
    path = url.removeprefix("sqlite:///")
    # As a process does that finds a log without its index, or leaves as the last one.
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("PRAGMA locking_mode=EXCLUSIVE")
    other.execute("BEGIN IMMEDIATE")
    committing = asyncio.create_task(open_stores(url, 30).ledger.commit([Reserve(job())]))
    await asyncio.sleep(0)
    assert not committing.done()
    other.close()
    assert await committing == [Granted()]
