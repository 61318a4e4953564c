"""PostgreSQL behind a pooler that lends a server connection for one transaction: a real PgBouncer."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text

from proxy.errors import StoreUnavailable
from proxy.libpq import parse
from proxy.stores.ledger import Accept, Charge, Granted, Reserve, Settle
from proxy.stores.sql.database import Database
from tests.server.commands import PROXY, SERVABLE
from tests.stores.conftest import OpenStores
from tests.stores.records import ACME, CLAIM, PLANS, REQUESTS, UPLOAD, job
from tests.support.audit_log import AUTHOR
from tests.support.databases import PostgresDatabases
from tests.support.limited import NEXT, Client, asking, limited_proxy, per, plan
from tests.support.pgbouncer import PgBouncer, running_pgbouncer
from tests.support.postgres import Postgres
from tests.support.relay import relaying
from tests.support.sandbox import SandboxControl
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.tools, pytest.mark.anyio]
#: More than the connections of a process, which are more than those of the pooler.
CALLERS = 60


@pytest.fixture(scope="module")
def pooler(postgres: Postgres) -> Iterator[PgBouncer]:
    with running_pgbouncer(postgres) as pooler:
        yield pooler


def name_of(url: str) -> str:
    return url.rpartition("/")[2]


@pytest.fixture
def pooled_url(pooler: PgBouncer, postgres_databases: PostgresDatabases) -> str:
    return pooler.url(name_of(postgres_databases.migrated()))


@pytest.mark.parametrize("parameters", ["", "?pgbouncer=true", "?target_session_attrs=read-write"])
def test_many_callers_at_once(
    sandbox: SandboxControl, tmp_path: Path, pooled_url: str, postgres: Postgres, parameters: str
) -> None:
    plans = {"acme": plan(quotas=[per("tenant", "requests", 1000)])}
    environ = {"PROXY_DATABASE_URL": f"{pooled_url}{parameters}"}
    with (
        limited_proxy(sandbox, tmp_path, plans, environ=environ) as own,
        Client(own, own.token(tenant="acme")) as alice,
        ThreadPoolExecutor(CALLERS) as pool,
    ):

        def call(number: int) -> list[int]:
            wanted, named = {"endpoint": NEXT, "input": asking("x")}, {"idempotency-key": f"call-{number}"}
            submitted = in_turn(lambda: alice.http.post("/v1/jobs", json=wanted, headers=named))
            return [
                submitted,
                *(in_turn(lambda path=path: alice.http.get(f"/v1/{path}")) for path in ("jobs", "usage")),
            ]

        answers = list(pool.map(call, range(CALLERS)))
    assert [answer[1:] for answer in answers] == [[200, 200]] * CALLERS
    assert {answer[0] for answer in answers} == {202}
    accepted = "SELECT count(*) FROM jobs WHERE request_id IS NOT NULL"
    assert postgres.ask(name_of(pooled_url), accepted) == str(CALLERS)


def test_a_pooler_that_takes_no_options_is_reported_with_what_to_do(pooled_url: str, tmp_path: Path) -> None:
    environ = {**SERVABLE, "PROXY_DATABASE_URL": f"{pooled_url}?options=-c%20statement_timeout%3D5000"}
    for _ in range(10):
        done = subprocess.run([*PROXY, "migrate"], env=environ, cwd=tmp_path, capture_output=True, text=True)
        if "does not answer" not in done.stderr:
            # A busy machine keeps the pooler from answering in time now and then.
            break
    assert done.returncode == 1
    assert "take options out of PROXY_DATABASE_URL" in done.stderr and "Traceback" not in done.stderr, done.stderr


def in_turn(send: Callable[[], httpx.Response]) -> int:
    """What a call comes to, repeated while a busy machine keeps the database from answering in time."""
    return wait_until(lambda: (status := send().status_code) != 503 and status, "it is refused again and again")


async def test_every_store_works_behind_a_pooler(pooled_url: str, open_stores: OpenStores) -> None:
    """With processes that each count their statements from one, as their drivers do."""
    processes = [open_stores(pooled_url) for _ in range(4)]
    await processes[0].directory.apply(PLANS, [ACME], by=AUTHOR)

    async def use(number: int) -> None:
        stores, wanted = processes[number % 4], job(Charge(REQUESTS, 1, 1000))
        claim, upload = replace(CLAIM, key_hash=f"{number:064}"), replace(UPLOAD, id=f"upload-{number}")
        await stores.ping()
        assert await stores.ledger.commit([Reserve(wanted)]) == [Granted()]
        assert await stores.idempotency.claim(claim, 0) is None
        assert await stores.ledger.commit([Accept(wanted.id, f"r-{number}", 3000.0)]) == [Granted()]
        await stores.uploads.add(upload)
        assert await stores.uploads.get(upload.id) == upload
        assert await stores.ledger.find(f"r-{number}") is not None
        assert await stores.ledger.commit([Settle(wanted.id, {"requests": 1}, 1001.0)]) == [Granted()]
        assert (await stores.directory.load()).tenants == [ACME]

    async def use_in_turn(number: int) -> None:
        async with turns:
            await use(number)

    # More than the pooler has connections, and few enough for each to get one in time on a busy machine.
    turns = asyncio.Semaphore(8)
    await asyncio.gather(*(use_in_turn(number) for number in range(40)))
    assert (await processes[0].ledger.accounts([REQUESTS]))[REQUESTS] == (40, 0)


def test_many_migrate_at_once(
    pooler: PgBouncer, postgres: Postgres, postgres_databases: PostgresDatabases, tmp_path: Path
) -> None:
    """The lock is that of a transaction: one of a session would stay with the pooler."""
    url = pooler.url(name_of(postgres_databases.empty()))
    environ = {**SERVABLE, "PROXY_DATABASE_URL": url}

    def migrate(_: int) -> int:
        return subprocess.run([*PROXY, "migrate"], env=environ, cwd=tmp_path, check=False).returncode

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(migrate, range(4))) == [0] * 4
    assert postgres.ask("postgres", "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == "0"


async def prepared(database: Database) -> int:
    """How many statements the server has prepared for this connection."""
    async with database.reading() as connection:
        await connection.execute(text("SELECT 1"))
        found = await connection.execute(text("SELECT count(*) FROM pg_prepared_statements WHERE name <> ''"))
        return int(found.scalar_one())


async def test_statements_are_kept_by_a_server_and_not_by_a_pooler(
    pooler: PgBouncer, postgres_databases: PostgresDatabases
) -> None:
    """Also when the pooler is put in front of the server later."""
    url = postgres_databases.migrated()
    with relaying(parse_port(url)) as relay:
        database = Database(url.replace(str(parse_port(url)), str(relay.port)))
        assert await prepared(database) > 0
        relay.to_port = pooler.port
        await database.engine.dispose()
        for _ in range(2):
            assert await prepared(database) == 0
            await database.engine.dispose()
        await database.close()


def parse_port(url: str) -> int:
    return int(url.rpartition(":")[2].partition("/")[0])


async def test_a_statement_that_is_lost_is_lost_once(postgres_databases: PostgresDatabases) -> None:
    """As by a pooler that shows its clients the server's own process id."""
    database = Database(postgres_databases.migrated())
    assert await prepared(database) > 0
    with pytest.raises(StoreUnavailable):
        async with database.reading() as connection:
            await connection.exec_driver_sql("DEALLOCATE ALL")
            await connection.execute(text("SELECT 1"))
    assert await prepared(database) == 0
    await database.close()


@pytest.mark.parametrize("parameter", ["statement_cache_size=0", "prepared_statement_cache_size=0", "pgbouncer=true"])
async def test_a_url_can_say_that_there_is_a_pooler(postgres_databases: PostgresDatabases, parameter: str) -> None:
    database = Database(f"{postgres_databases.migrated()}?{parameter}")
    assert await prepared(database) == 0
    await database.close()


@pytest.mark.parametrize("parameter", ["statement_cache_size=100", "pgbouncer=maybe", "prepared_statement_cache_size="])
def test_options_that_a_database_url_cannot_have(parameter: str) -> None:
    with pytest.raises(ValueError, match="that is none of"):
        parse(f"postgresql://db/app?{parameter}")
