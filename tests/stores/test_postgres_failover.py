"""The stores on a PostgreSQL whose primary changes: a real one, and a real standby that is promoted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from proxy.errors import StoreUnavailable
from proxy.libpq import parse
from proxy.stores.ledger import Granted, Reserve
from proxy.stores.sql import SqlStores
from tests.stores.conftest import OpenStores
from tests.stores.records import job
from tests.support.databases import PostgresDatabases
from tests.support.patience import until
from tests.support.postgres import Postgres, running_postgres, running_standby
from tests.support.relay import relaying

pytestmark = [pytest.mark.anyio, pytest.mark.tools]


@pytest.fixture
def primary() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest.fixture
def database(primary: Postgres) -> str:
    """The name of a database at this version."""
    return PostgresDatabases(primary).migrated().rpartition("/")[2]


@pytest.fixture
def standby(primary: Postgres, database: str) -> Iterator[Postgres]:
    with running_standby(primary) as server:
        yield server


async def takes_writes(stores: SqlStores) -> bool:
    try:
        return await stores.ledger.commit([Reserve(job())]) == [Granted()]
    except StoreUnavailable:
        return False


def demote(server: Postgres) -> None:
    """As a tool for high availability fences a primary before it promotes another server."""
    server.ask("postgres", "ALTER SYSTEM SET default_transaction_read_only = on")
    server.ask("postgres", "SELECT pg_reload_conf()")


async def test_open_connections_leave_a_server_that_is_no_longer_the_primary(
    primary: Postgres, standby: Postgres, database: str, open_stores: OpenStores
) -> None:
    with relaying(primary.port) as relay:
        stores = open_stores(f"postgresql://proxy@127.0.0.1:{relay.port}/{database}")
        assert await takes_writes(stores)
        await until(lambda: _has_jobs(standby, database, 1), "nothing was replicated")
        demote(primary)
        standby.ask("postgres", "SELECT pg_promote()")
        relay.to_port = standby.port
        # It meets the old one over the connection that is open, and writes nothing there.
        await until(lambda: takes_writes(stores), "writes do not reach the new primary", seconds=5)
        await stores.ping()
        assert primary.ask(database, "SELECT count(*) FROM jobs") == "1"
        assert standby.ask(database, "SELECT count(*) FROM jobs") == "2"


async def test_a_url_of_all_servers_leads_to_the_one_that_takes_writes(
    primary: Postgres, standby: Postgres, database: str, open_stores: OpenStores
) -> None:
    stores = open_stores(f"postgresql://proxy@127.0.0.1:{standby.port},127.0.0.1:{primary.port}/{database}")
    assert await takes_writes(stores)
    primary.stop()
    assert not await takes_writes(stores)
    with pytest.raises(StoreUnavailable):
        await stores.ping()
    standby.ask("postgres", "SELECT pg_promote()")
    await until(lambda: takes_writes(stores), "writes do not reach the new primary", seconds=5)
    await stores.ping()
    primary.start()


async def _has_jobs(server: Postgres, database: str, number: int) -> bool:
    return server.ask(database, "SELECT count(*) FROM jobs") == str(number)


@pytest.mark.parametrize(
    ("text", "attributes"),
    [
        ("postgresql://a,b/app", "read-write"),
        ("postgresql:///app?host=a,b", "read-write"),
        ("postgresql://a,b/app?target_session_attrs=any", "any"),
        ("postgresql://a/app", None),
        ("postgresql://u:p%2C@a/app", None),
    ],
)
def test_of_several_servers_the_one_that_takes_writes_is_meant(text: str, attributes: str | None) -> None:
    found = parse(text).url.partition("target_session_attrs=")[2] or None
    assert found == attributes
