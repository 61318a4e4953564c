"""Servers that the tests share; each test cleans up the state it made."""

from __future__ import annotations

import gc
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import trustme
from hypothesis import HealthCheck, settings

from tests.server.commands import Commands
from tests.support.databases import Databases, PostgresDatabases, SqliteDatabases
from tests.support.forking import Forker, running_forker
from tests.support.order import LONGEST_FIRST, TESTS
from tests.support.postgres import Postgres, running_postgres
from tests.support.reach import starts_something
from tests.support.redis import Redis, running_redis, running_redis_cluster
from tests.support.sandbox import SandboxControl, running_sandbox
from tests.support.stack import Stack, proxy_in_front_of

PICTURES = Path(__file__).with_name("pictures")
# How long an example takes is a matter of the machine, and of what else runs there.
settings.register_profile(
    "any-machine", parent=settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any-machine")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep the garbage collector from the modules and tests, which live to the end: looking through them takes longer
    than collecting them, and again in each test that asks for a collection."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and starts_something(item):
            item.add_marker(pytest.mark.slow)
    rank = {TESTS / name: position for position, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def shared_sandbox() -> Iterator[SandboxControl]:
    with running_sandbox() as control:
        yield control


@pytest.fixture(scope="session")
def shared_stack(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with proxy_in_front_of(shared_sandbox, tmp_path_factory.mktemp("stack"), dev=True) as stack:
        yield stack


@pytest.fixture(scope="session")
def shared_tls_stack(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1", "queue.localhost")
    chain, key, ca_file = folder / "chain.pem", folder / "key.pem", folder / "ca.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(key)
    authority.cert_pem.write_to_path(ca_file)
    with proxy_in_front_of(shared_sandbox, folder, certificate=(chain, key), ca_file=ca_file) as stack:
        yield stack


@pytest.fixture(scope="session")
def forker() -> Iterator[Forker]:
    with running_forker() as found:
        yield found


@pytest.fixture(scope="session")
def commands(forker: Forker, tmp_path_factory: pytest.TempPathFactory) -> Commands:
    return Commands(forker, tmp_path_factory.mktemp("commands"))


@pytest.fixture
def sandbox(shared_sandbox: SandboxControl) -> Iterator[SandboxControl]:
    """The sandbox, with an empty record; faults are gone when the test ends."""
    shared_sandbox.begin()
    yield shared_sandbox
    shared_sandbox.clear_faults()


@pytest.fixture
def stack(shared_stack: Stack, sandbox: SandboxControl) -> Stack:
    return shared_stack


@pytest.fixture
def tls_stack(shared_tls_stack: Stack, sandbox: SandboxControl) -> Stack:
    return shared_tls_stack


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A server to make databases on. A test that uses it has the mark `tools`."""
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[Redis]:
    with running_redis() as server:
        yield server


@pytest.fixture
def redis(shared_redis: Redis) -> Redis:
    """An empty Redis. A test that uses it has the mark `tools`."""
    shared_redis.forget()
    return shared_redis


@pytest.fixture(scope="session")
def shared_redis_cluster() -> Iterator[Redis]:
    with running_redis_cluster() as server:
        yield server


@pytest.fixture
def redis_cluster(shared_redis_cluster: Redis) -> Redis:
    """An empty Redis Cluster of one node. A test that uses it has the mark `tools`."""
    shared_redis_cluster.forget()
    return shared_redis_cluster


@pytest.fixture(scope="session")
def sqlite_databases(tmp_path_factory: pytest.TempPathFactory) -> SqliteDatabases:
    return SqliteDatabases(tmp_path_factory.mktemp("databases"))


@pytest.fixture(scope="session")
def postgres_databases(postgres: Postgres) -> PostgresDatabases:
    return PostgresDatabases(postgres)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.tools)])
def databases(request: pytest.FixtureRequest) -> Databases:
    """Every kind of database in turn; what is tested with it holds for all of them."""
    kind = {"sqlite": "sqlite_databases", "postgresql": "postgres_databases"}[request.param]
    found: Databases = request.getfixturevalue(kind)
    return found


@pytest.fixture
def database_url(databases: Databases) -> str:
    return databases.migrated()
