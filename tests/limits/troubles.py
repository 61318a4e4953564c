"""Ways in which a store fails, each for as long as its block lasts."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from tests.support.postgres import Postgres
from tests.support.redis import Redis

_TERMINATE = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}"
_CANCEL = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE {others}"


def _ask(postgres: Postgres, url: str, *queries: str) -> None:
    """Do something to the database of a proxy, from another one."""
    name = url.rpartition("/")[2]
    for query in queries:
        postgres.ask("postgres", query.format(name=name, others=f"datname = '{name}' AND pid <> pg_backend_pid()"))


@contextmanager
def restarted(postgres: Postgres, _url: str) -> Iterator[None]:
    with postgres.stopped():
        yield


@contextmanager
def crashed(postgres: Postgres, _url: str) -> Iterator[None]:
    """It ends in the middle of its commits, and recovers from its log."""
    postgres.crash()
    try:
        yield
    finally:
        postgres.start()


@contextmanager
def frozen(postgres: Postgres, _url: str) -> Iterator[None]:
    with postgres.paused():
        yield


@contextmanager
def disconnected(postgres: Postgres, url: str) -> Iterator[None]:
    _ask(postgres, url, _TERMINATE)
    yield
    _ask(postgres, url, _TERMINATE)


@contextmanager
def cancelled(postgres: Postgres, url: str) -> Iterator[None]:
    _ask(postgres, url, *[_CANCEL] * 10)
    yield
    _ask(postgres, url, *[_CANCEL] * 10)


@contextmanager
def read_only(postgres: Postgres, url: str) -> Iterator[None]:
    _ask(postgres, url, 'ALTER DATABASE "{name}" SET default_transaction_read_only = on', _TERMINATE)
    try:
        yield
    finally:
        _ask(postgres, url, 'ALTER DATABASE "{name}" RESET default_transaction_read_only')


@contextmanager
def closed(postgres: Postgres, url: str) -> Iterator[None]:
    _ask(postgres, url, 'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false', _TERMINATE)
    try:
        yield
    finally:
        _ask(postgres, url, 'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')


@contextmanager
def without_a_table(postgres: Postgres, url: str) -> Iterator[None]:
    database = url.rpartition("/")[2]
    postgres.ask(database, "ALTER TABLE quota_usage RENAME TO elsewhere")
    try:
        yield
    finally:
        postgres.ask(database, "ALTER TABLE elsewhere RENAME TO quota_usage")


@contextmanager
def locked(postgres: Postgres, url: str) -> Iterator[None]:
    """Another client holds a lock on the jobs."""
    database = url.rpartition("/")[2]
    lock = "BEGIN; LOCK TABLE jobs IN EXCLUSIVE MODE; SELECT pg_sleep(600)"
    who = f"datname = '{database}' AND query LIKE 'BEGIN; LOCK TABLE jobs%'"
    with ThreadPoolExecutor(1) as pool:
        holding = pool.submit(postgres.ask, database, lock)
        try:
            yield
        finally:
            postgres.ask("postgres", f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {who}")
            with contextlib.suppress(subprocess.CalledProcessError):
                holding.result()


PostgresTrouble = Callable[[Postgres, str], AbstractContextManager[None]]


@contextmanager
def redis_restarted(redis: Redis) -> Iterator[None]:
    """It has lost its data when it is back."""
    with redis.stopped():
        yield


@contextmanager
def redis_frozen(redis: Redis) -> Iterator[None]:
    with redis.paused():
        yield


@contextmanager
def redis_flushed(redis: Redis) -> Iterator[None]:
    redis.forget()
    yield
    redis.forget()


@contextmanager
def redis_read_only(redis: Redis) -> Iterator[None]:
    """It is a replica of a server that does not answer, and keeps its connections."""
    assert redis.ask("REPLICAOF 127.0.0.1 1") == "+OK"
    try:
        yield
    finally:
        assert redis.ask("REPLICAOF NO ONE") == "+OK"


@contextmanager
def redis_disconnected(redis: Redis) -> Iterator[None]:
    for _ in range(10):
        redis.ask("CLIENT KILL TYPE normal")
    yield
    for _ in range(10):
        redis.ask("CLIENT KILL TYPE normal")


@contextmanager
def redis_out_of_memory(redis: Redis) -> Iterator[None]:
    assert redis.ask("CONFIG SET maxmemory-policy noeviction") == redis.ask("CONFIG SET maxmemory 1") == "+OK"
    try:
        yield
    finally:
        assert redis.ask("CONFIG SET maxmemory 0") == "+OK"


RedisTrouble = Callable[[Redis], AbstractContextManager[None]]


@contextmanager
def file_locked(path: Path) -> Iterator[None]:
    """Another process holds the file for itself."""
    database = sqlite3.connect(path, isolation_level=None, timeout=30)
    database.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        database.execute("ROLLBACK")
        database.close()


@contextmanager
def disk_full(path: Path) -> Iterator[None]:
    """The file system of a small disk has no room left."""
    ballast = path.with_name("ballast")
    try:
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                continue
        yield
    finally:
        ballast.unlink()


FileTrouble = Callable[[Path], AbstractContextManager[None]]
