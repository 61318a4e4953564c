"""kill -9 at random moments under load: whatever fal was given is in the ledger, and nothing stays reserved.

After a kill the ledger cannot equal fal's own count in every case. A proxy writes a call down, sends it, and writes
down the id that fal gave it. If it dies between the first and the last of these, all that is left is that the call may
have been sent: fal cannot be asked about a request without its id. Such a call is booked as it was reserved, never
given away, so that what is booked lies between what fal accepted and that plus the calls in flight at the kill.
Everywhere else it is equal, call by call.

Each submit has an Idempotency-Key, and a caller who was cut off sends it again to the next life: fal gets it once, and
the caller gets the job's id wherever fal's answer was written down.

Each call has a session with a quota of its own. The quotas of the tenant are soon used up; grants pay from then on, and
what the quotas, the grants and the sessions paid adds up to what is booked.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
import yaml

from proxy.limits.quotas import MILLION
from proxy.sandbox.request_log import RECORDED_REQUESTS
from proxy.stores.grants import GRANT_PREFIX, Grant
from proxy.stores.ledger import SESSION_PREFIX
from proxy.stores.sql import SqlStores
from proxy.tenants.caller import SessionQuota
from tests.limits.callers import ENDPOINT, QUICK, Answered, Caller, http
from tests.limits.forked_servers import ForkedServers, fork_servers
from tests.limits.successor import start_successor
from tests.support.audit import AuditReport, Entry, read_report
from tests.support.audit_log import AUTHOR
from tests.support.databases import PostgresDatabases, SqliteDatabases
from tests.support.forking import Forker
from tests.support.postgres import Postgres
from tests.support.redis import Redis
from tests.support.sandbox import SandboxControl
from tests.support.secrets import SECRET
from tests.support.stack import UNLIMITED, sandbox_environ
from tests.support.waiting import wait_until_async

pytestmark = [pytest.mark.anyio, pytest.mark.tools]
#: CRASH_KILLS=60 makes it twice as many.
KILLS, WORKERS, MOST_CALLS = int(os.environ.get("CRASH_KILLS", "30")), 8, 12
LONGEST_LIFE_SECONDS = 0.6
#: A lease is free this long after its holder died, with a margin for a busy machine.
SLOT_SECONDS = 15 + 60
FAILING = "[[fault fail=content_policy_violation]]"
#: Calls that the quota of the tenant has for, and each of the grants that are spent next; the last ones have for all.
FEW = 10
SMALL_GRANTS = [Grant(f"{number:032x}", "acme", "", "requests", FEW * MILLION, "paid", 0.0, 4e9) for number in range(5)]
LARGE_GRANTS = [
    Grant(f"{number:032x}", "acme", "", unit, 100_000_000 * MILLION, "paid", 0.0)
    for number, unit in enumerate(("requests", "tokens"), 90)
]
PLANS = {
    "plans": {
        "wide": {
            "endpoints": [ENDPOINT],
            **UNLIMITED,
            "concurrency": {"subject": 1, "tenant": 100_000},
            "alerts": [50, 80, 100],
            "quotas": [
                {"per": "tenant", "unit": "requests", "limit": FEW, "window": "month"},
                {"per": "subject", "unit": "requests", "limit": 1, "window": "day"},
                {"per": "tenant", "unit": "tokens", "limit": 10_000, "window": "hour"},
            ],
        }
    },
    "tenants": [{"id": "acme", "plan": "wide"}],
}


@dataclass
class Call:
    """One call as its caller knows it. The subject is its name, in the ledger and in fal's record."""

    subject: str
    kind: str
    fails: bool
    answer: int | None = None
    request_id: str | None = None
    is_lost: bool = False

    @property
    def prompt(self) -> str:
        return f"{self.subject} {QUICK} {FAILING if self.fails else ''}"

    @property
    def was_cut(self) -> bool:
        """Whether the caller got no answer."""
        return self.answer is None

    @property
    def may_be_repeated(self) -> bool:
        return self.was_cut and self.kind == "submit" and not self.is_lost

    def may_come_to(self, at_fal: int | None, entry: Entry) -> set[str]:
        """The states that are right for it; `at_fal` is the status that fal answered, if the call arrived there."""
        truth = "released" if self.fails else "settled"
        if entry.request_id is not None or not self.was_cut:
            return {truth}
        # Without an id, in the middle of it: booked, unless the proxy had heard fal's answer and had written it down.
        return {"settled"} if at_fal is None else {"settled", truth}


@dataclass
class Deployment:
    environ: dict[str, str]
    sandbox: SandboxControl
    servers: ForkedServers


@pytest.fixture
def deployment(forker: Forker, fal: SandboxControl, tmp_path: Path) -> Iterator[Deployment]:
    (tmp_path / "plans.yaml").write_text(yaml.safe_dump(PLANS))
    environ = {
        **sandbox_environ(fal.url),
        "PROXY_SESSION_SECRETS": SECRET,
        "PROXY_CONFIG": str(tmp_path / "plans.yaml"),
        "PROXY_LOG_LEVEL": "warning",
    }
    with fork_servers(forker, tmp_path) as found:
        yield Deployment(environ, fal, found)


async def test_thirty_kills_on_sqlite(
    deployment: Deployment, sqlite_databases: SqliteDatabases, capsys: pytest.CaptureFixture[str]
) -> None:
    deployment.environ["PROXY_DATABASE_URL"] = sqlite_databases.migrated()
    records = await _live_and_die(deployment, random.Random(1))
    await _judge(deployment, records, capsys)


async def test_thirty_kills_on_postgresql_and_redis(
    deployment: Deployment,
    postgres: Postgres,
    postgres_databases: PostgresDatabases,
    redis: Redis,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url = deployment.environ["PROXY_DATABASE_URL"] = postgres_databases.migrated()
    deployment.environ["PROXY_REDIS_URL"] = redis.url
    records = await _live_and_die(deployment, random.Random(2))
    # What a dead proxy had sent to its database may still be going on there.
    connected = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{url.rpartition('/')[2]}'"

    async def is_quiet() -> bool:
        return postgres.ask("postgres", connected) == "0"

    await wait_until_async(is_quiet, "a caller is still connected")
    await _judge(deployment, records, capsys)


@dataclass
class CallRecords:
    """All calls of all lives as their callers know them, by subject."""

    calls: dict[str, Call]
    seconds: float


async def _live_and_die(deployment: Deployment, order: random.Random) -> CallRecords:
    calls: dict[str, Call] = {}
    began = time.monotonic()
    await _give_grants(deployment.environ["PROXY_DATABASE_URL"])
    async with http() as session:
        for life in range(KILLS):
            url, pid = await deployment.servers.start(deployment.environ, session)
            repeated = [
                asyncio.create_task(_repeat(session, url, call)) for call in calls.values() if call.may_be_repeated
            ]
            callers = [
                asyncio.create_task(_call_until_cut(session, url, f"{life}-{number}", calls, order))
                for number in range(WORKERS)
            ]
            await asyncio.sleep(order.uniform(0.01, LONGEST_LIFE_SECONDS))
            await deployment.servers.kill(pid)
            await asyncio.gather(*callers, *repeated)
            (await read_report(deployment.environ["PROXY_DATABASE_URL"])).check()
        url, pid = await deployment.servers.start(deployment.environ, session)
        await asyncio.gather(
            *(_repeat_to_the_end(session, url, call) for call in calls.values() if call.may_be_repeated)
        )
        await deployment.servers.stop(pid)
    return CallRecords(calls, time.monotonic() - began)


async def _give_grants(url: str) -> None:
    stores = SqlStores(url)
    for one in SMALL_GRANTS + LARGE_GRANTS:
        await stores.grants.add(one, by=AUTHOR)
    await stores.close()


def _caller_of(session: aiohttp.ClientSession, url: str, call: Call) -> Caller:
    return Caller(session, url, "acme", call.subject, quotas=(SessionQuota("requests", MILLION),))


async def _submit(caller: Caller, call: Call) -> Answered:
    return await caller.submit(call.prompt, **{"idempotency-key": call.subject})


async def _repeat(session: aiohttp.ClientSession, url: str, call: Call) -> None:
    """Send a submit that was cut off once more, with its key, to a proxy that may be killed as well."""
    try:
        answer = await _submit(_caller_of(session, url, call), call)
    except aiohttp.ClientError:
        return
    if answer.status == 500:
        assert answer.error_type == "upstream_ambiguous", answer
        call.is_lost = True
    elif answer.error_type not in ("too_many_jobs", "store_unavailable"):
        # Otherwise the first call was never written down and its lease is not free yet, or the database is busy.
        assert answer.status == 200, answer
        call.answer, call.request_id = answer.status, answer.body["request_id"]


async def _repeat_to_the_end(session: aiohttp.ClientSession, url: str, call: Call) -> None:
    """Repeat a submit until it has its answer: a lease that a dead proxy held is free again in a moment."""

    async def is_answered() -> bool:
        await _repeat(session, url, call)
        return not call.may_be_repeated

    await wait_until_async(is_answered, f"{call} has no answer", SLOT_SECONDS)


async def _call_until_cut(
    session: aiohttp.ClientSession, url: str, name: str, calls: dict[str, Call], order: random.Random
) -> None:
    """One call after another, half of the jobs watched to their end, until the proxy is gone."""
    for number in range(MOST_CALLS):
        kind = order.choice(["submit", "submit", "submit", "run"])
        call = Call(f"{name}-{number}", kind, fails=order.random() < 0.2)
        calls[call.subject] = call
        caller = _caller_of(session, url, call)
        try:
            answer = await (caller.run(call.prompt) if kind == "run" else _submit(caller, call))
            assert answer.status == (422 if kind == "run" and call.fails else 200), answer
            call.answer, call.request_id = answer.status, answer.body.get("request_id")
            if kind == "submit" and order.random() < 0.5:
                await caller.finished(answer.body["request_id"])
        except aiohttp.ClientError:
            return


async def _judge(deployment: Deployment, records: CallRecords, capsys: pytest.CaptureFixture[str]) -> None:
    at_fal = await _at_fal(deployment.sandbox)
    began, moment = time.monotonic(), time.time()
    async with start_successor(deployment.environ) as successor:
        left_open = await successor.ledger.open_jobs()
        # Fifteen seconds after the last death the jobs in fal's queue have their slots, and nothing else has one.
        await successor.keep_leases(15)
        queued = [job for job in left_open if job.state == "accepted"]
        assert await successor.counters.in_use("tenant:acme", moment) == len(queued)
        await successor.settle_everything()
        assert await successor.ledger.open_jobs() == []
        assert await successor.counters.in_use("tenant:acme", successor.clock.now()) == 0
        # They were given back, and not only left to expire.
        assert await successor.counters.in_use("tenant:acme", moment) == 0
    seconds = time.monotonic() - began

    report = await read_report(deployment.environ["PROXY_DATABASE_URL"])
    entries = {entry.subject: entry for entry in report.entries}
    cut = [call for call in records.calls.values() if call.was_cut]
    _check_report(report, records)
    _judge_each_call(entries, records.calls, at_fal)
    assert {entry.request_id for entry in report.entries} - {None} <= {job["id"] for job in deployment.sandbox.jobs()}

    for call in records.calls.values():
        entry = entries.get(call.subject)
        assert not call.is_lost or entry is None or entry.request_id is None, (call, entry)
        assert not call.may_be_repeated, call
    accepted = [name for name, status in at_fal.items() if status == 200 and not records.calls[name].fails]
    booked = report.by_state()["settled"]
    assert len(accepted) <= booked <= len(accepted) + len(cut)
    with capsys.disabled():
        print(
            f"\n{KILLS} kills in {records.seconds:.0f} s: {len(records.calls)} calls, {len(cut)} cut, {len(left_open)} "
            f"left open, looked after in {seconds:.1f} s; fal accepted {len(accepted)}, booked are {booked}",
            end=" ",
        )


def _check_report(report: AuditReport, records: CallRecords) -> None:
    """Nothing is reserved any more, nothing stands twice, and the accounts are the sum of the jobs."""
    report.check()
    assert len({entry.subject for entry in report.entries}) == len(report.entries)
    assert all(account.reserved == 0 for account in report.accounts.values())
    booked = report.by_state()["settled"] * MILLION
    paid = {prefix: _sum_used(report, prefix) for prefix in (GRANT_PREFIX, SESSION_PREFIX)}
    of_quota = report.total("requests").used
    assert of_quota + paid[GRANT_PREFIX] == booked == paid[SESSION_PREFIX]
    assert of_quota <= FEW * MILLION < paid[GRANT_PREFIX]


def _sum_used(report: AuditReport, prefix: str) -> int:
    """What all accounts with a beginning have of requests."""
    accounts = report.accounts.items()
    return sum(one.used for bucket, one in accounts if bucket.subject.startswith(prefix) and bucket.unit == "requests")


def _judge_each_call(entries: dict[str, Entry], calls: dict[str, Call], at_fal: dict[str, int]) -> None:
    assert at_fal.keys() <= entries.keys(), "something reached fal that was not written down before"
    for call in calls.values():
        entry = entries.get(call.subject)
        if entry is None:
            assert call.was_cut, call
        else:
            assert call.kind == "run" or entry.request_id == call.request_id or call.was_cut, (call, entry)
            assert entry.state in call.may_come_to(at_fal.get(call.subject), entry), (call, entry)


async def _at_fal(sandbox: SandboxControl) -> dict[str, int]:
    """What fal answered to each call that arrived there, by subject; 0 if it did not come to answer."""
    while True:
        record = await asyncio.to_thread(sandbox.requests)
        if all(one["ended"] for one in record):
            break
        await asyncio.sleep(0.05)
    assert len(record) < RECORDED_REQUESTS, "the record has forgotten the first of them"
    posts = [one for one in record if one["method"] == "POST"]
    at_fal = {one["json"]["prompt"].split()[0]: one["answered"] or 0 for one in posts}
    assert len(at_fal) == len(posts), "a call was made twice"
    return at_fal
