"""The stores on a PostgreSQL whose primary changes: a real one, and a real standby that is promoted."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import anyio
import pytest
from sqlalchemy import event

from proxy.errors import StoreUnavailable
from proxy.libpq import parse, split_hosts
from proxy.stores.ledger import Granted, Reserve
from proxy.stores.sql import SqlStores
from proxy.stores.sql.postgres import FRESH_SECONDS
from tests.stores.conftest import OpenStores
from tests.stores.records import job
from tests.support.databases import PostgresDatabases
from tests.support.postgres import Postgres, running_postgres, running_standby
from tests.support.relay import relaying
from tests.support.waiting import wait_until_async

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


async def test_a_connection_that_the_server_has_ended_is_replaced_before_its_end_arrives(
    primary: Postgres, database: str, open_stores: OpenStores
) -> None:
    with relaying(primary.port) as relay:
        stores = open_stores(f"postgresql://proxy@127.0.0.1:{relay.port}/{database}")
        assert await takes_writes(stores)
        relay.holds_ends = True
        primary.ask("postgres", f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'")
        # A connection that answered just now would not be asked.
        await asyncio.sleep(FRESH_SECONDS)
        assert await stores.ledger.get("unknown") is None


async def test_open_connections_leave_a_server_that_is_no_longer_the_primary(
    primary: Postgres, standby: Postgres, database: str, open_stores: OpenStores
) -> None:
    with relaying(primary.port) as relay:
        stores = open_stores(f"postgresql://proxy@127.0.0.1:{relay.port}/{database}")
        assert await takes_writes(stores)
        await wait_until_async(lambda: _has_jobs(standby, database, 1), "nothing was replicated")
        demote(primary)
        standby.ask("postgres", "SELECT pg_promote()")
        relay.to_port = standby.port
        # It meets the old one over the connection that is open, and writes nothing there.
        await wait_until_async(lambda: takes_writes(stores), "writes do not reach the new primary")
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
    await wait_until_async(lambda: takes_writes(stores), "writes do not reach the new primary")
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
def test_of_several_servers_the_one_that_takes_writes_is_used(text: str, attributes: str | None) -> None:
    found = parse(text).url.partition("target_session_attrs=")[2] or None
    assert found == attributes


async def test_a_primary_that_is_frozen_is_passed_over(
    primary: Postgres, standby: Postgres, database: str, open_stores: OpenStores
) -> None:
    """Within the time that one caller waits, and the connections that are open are not waited for one by one."""
    url = f"postgresql://proxy@127.0.0.1:{primary.port},127.0.0.1:{standby.port}/{database}"
    stores, attempts = open_stores(url), 0

    def count(*_: object) -> None:
        nonlocal attempts
        attempts += 1

    event.listen(stores.ledger._database.engine.sync_engine, "do_connect", count)
    assert await asyncio.gather(*(takes_writes(stores) for _ in range(5))) == [True] * 5
    opened = attempts
    assert opened > 1
    standby.ask("postgres", "SELECT pg_promote()")
    # A connection that answered just now would not be asked.
    await asyncio.sleep(FRESH_SECONDS)
    with primary.paused():
        assert await takes_writes(stores)
        # The next connections lead at once to the server that answered, and the silent one is not said goodbye.
        with anyio.fail_after(1.5):
            assert await asyncio.gather(*(takes_writes(stores) for _ in range(5))) == [True] * 5
    assert attempts > opened


@pytest.mark.parametrize(
    ("url", "urls"),
    [
        ("postgresql://u:p@a:1,b/app", ["postgresql://u:p@a:1/app", "postgresql://u:p@b/app"]),
        ("postgresql://[::1]:1,[::2]/app", ["postgresql://[::1]:1/app", "postgresql://[::2]/app"]),
        ("postgresql:///app?host=a,b", ["postgresql:///app?host=a", "postgresql:///app?host=b"]),
        ("postgresql:///app?host=a,b&port=1,2", [f"postgresql:///app?host={one}" for one in ("a&port=1", "b&port=2")]),
        ("postgresql:///app?host=a,b&port=1", [f"postgresql:///app?host={one}&port=1" for one in "ab"]),
        ("postgresql:///app?host=%2Frun%2Fpg", ["postgresql:///app?host=%2Frun%2Fpg"]),
        ("postgresql:///app", ["postgresql:///app"]),
    ],
)
def test_the_servers_of_a_url(url: str, urls: list[str]) -> None:
    assert split_hosts(url) == urls


def test_a_url_with_more_hosts_than_ports_is_refused() -> None:
    with pytest.raises(ValueError, match="names 3 hosts and 2 ports; give one port, or one for each host"):
        parse("postgresql:///app?host=a,b,c&port=1,2")
