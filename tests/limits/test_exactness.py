"""Two proxies, one database, one Redis: what is granted, what is in flight and what the ledger says, to the unit."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from pathlib import Path

import aiohttp
import pytest
import yaml

import proxy
from proxy.auth.sessions import Sessions, new_guest_name
from proxy.clock import SystemClock
from proxy.limits.quotas import MILLION
from proxy.sandbox.app import create_sandbox
from proxy.settings import Secret
from proxy.stores.directory import OverrideRow
from proxy.stores.grants import GRANT_PREFIX, Grant
from proxy.stores.ledger import ADDRESS_PREFIX, SESSION_PREFIX, Account
from proxy.stores.sql import SqlStores
from proxy.tenants.caller import SessionQuota
from tests.limits.callers import ENDPOINT, QUICK, QUICK_SECONDS, Caller, http
from tests.limits.successor import start_successor
from tests.server.commands import serving
from tests.support.audit import Auditor, AuditReport
from tests.support.audit_log import AUTHOR
from tests.support.databases import PostgresDatabases
from tests.support.redis import Redis
from tests.support.sandbox import SandboxControl
from tests.support.secrets import SECRET
from tests.support.servers import running
from tests.support.stack import UNLIMITED, sandbox_environ
from tests.support.waiting import wait_until_async

pytestmark = [pytest.mark.anyio, pytest.mark.tools]
ROOT = Path(proxy.__file__).parent.parent
#: Longer than any pause: a connection that is closed just when it is used again is not what these tests are about.
KEEP_ALIVE_SECONDS = 300
CALLERS, QUOTA, SLOTS = 500, 100, 20


def lasting_window() -> str:
    """The window of a quota that does not end while a test runs: a day, but near midnight a month."""
    soon = datetime.now(UTC) + timedelta(minutes=10)
    return "day" if soon.date() == datetime.now(UTC).date() else "month"


def plans() -> dict[str, object]:
    quota = {"per": "tenant", "unit": "requests", "window": lasting_window()}
    everything = {"endpoints": [ENDPOINT], **UNLIMITED}
    concurrency = {"subject": None, "tenant": SLOTS}
    return {
        "plans": {
            "tight": {**everything, "quotas": [{**quota, "limit": QUOTA}], "concurrency": concurrency},
            "several": {**everything, "quotas": [{**quota, "limit": 10_000}]},
            "wide": {**everything, "quotas": [{**quota, "limit": 10_000}, {**quota, "per": "subject", "limit": 1}]},
            "every": {**everything, "quotas": [{**quota, "limit": 60}, {**quota, "per": "subject", "limit": 5}]},
            "visiting": {**everything, "quotas": [{**quota, "per": "address", "limit": 6}]},
        },
        "tenants": [
            *({"id": name, "plan": name} for name in ("tight", "several", "wide")),
            {"id": "every", "plan": "every", "guests": {"enabled": True, "plan": "visiting", "share": 1.0}},
        ],
    }


@dataclass
class Pair:
    """Two proxies that share everything, and nothing with other tests."""

    urls: tuple[str, str]
    environ: dict[str, str]
    sandbox: SandboxControl


@pytest.fixture(scope="module")
def shared_pair(
    postgres_databases: PostgresDatabases, shared_redis: Redis, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    shared_redis.forget()
    folder = tmp_path_factory.mktemp("pair")
    (folder / "plans.yaml").write_text(yaml.safe_dump(plans()))
    with ExitStack() as open_:
        sandbox = SandboxControl(open_.enter_context(running(create_sandbox(), timeout_keep_alive=KEEP_ALIVE_SECONDS)))
        open_.callback(sandbox.close)
        environ = {
            **sandbox_environ(sandbox.url),
            "PYTHONPATH": str(ROOT),
            "PROXY_SESSION_SECRETS": SECRET,
            "PROXY_CONFIG": str(folder / "plans.yaml"),
            "PROXY_DATABASE_URL": postgres_databases.migrated(),
            "PROXY_REDIS_URL": shared_redis.url,
            "PROXY_LOG_LEVEL": "warning",
            # Calls that fail at fal are part of these tests; they must not open a breaker.
            "PROXY_UPSTREAM_PROBE_SECONDS": "0",
        }
        folders = [folder / "one", folder / "other"]
        for one in folders:
            one.mkdir()
        one, other = [open_.enter_context(serving("serve", environ=environ, folder=one)).url for one in folders]
        yield Pair((one, other), environ, sandbox)


@pytest.fixture
async def auditor(shared_pair: Pair) -> AsyncIterator[Auditor]:
    auditor = Auditor(shared_pair.environ["PROXY_DATABASE_URL"])
    yield auditor
    await auditor.close()


@contextlib.asynccontextmanager
async def sample_reports(auditor: Auditor, look: Callable[[AuditReport], None]) -> AsyncIterator[list[AuditReport]]:
    """Reads the books again and again during the block, and looks at each reading."""
    samples: list[AuditReport] = []

    async def sample() -> None:
        while True:
            report = await auditor.read()
            report.check()
            look(report)
            samples.append(report)
            await asyncio.sleep(0.05)

    sampling = asyncio.create_task(sample())
    try:
        yield samples
        assert not sampling.done(), sampling.exception()
    finally:
        sampling.cancel()
        await asyncio.gather(sampling, return_exceptions=True)


async def test_five_hundred_callers_share_a_hundred_calls_and_twenty_leases(
    shared_pair: Pair, auditor: Auditor, capsys: pytest.CaptureFixture[str]
) -> None:
    granted: list[str] = []
    refusals: Counter[str] = Counter()
    answered_before = 0

    async def call(caller: Caller) -> None:
        for _ in range(200):
            answer = await caller.submit(QUICK)
            # On a busy machine the burst can outlast the patience with Redis: then too nothing was sent.
            if answer.error_type not in ("too_many_jobs", "store_unavailable"):
                break
            refusals[answer.error_type] += 1
            await asyncio.sleep(answer.body["retry_after"] * random.uniform(0.5, 1.0))
        if answer.status == 402:
            refusals[answer.error_type] += 1
            return
        assert answer.status == 200, answer
        request_id = answer.body["request_id"]
        granted.append(request_id)
        assert "error" not in (await caller.finished(request_id)).body
        assert (await caller.result(request_id)).status == 200

    def look(report: AuditReport) -> None:
        """Require that every answered call is in the ledger, and that the ledger never holds more than the quota."""
        nonlocal answered_before
        report = report.of("tight")
        account, jobs = report.total("requests"), [one for one in report.entries if one.state != "released"]
        assert answered_before <= len(jobs) <= QUOTA
        assert account.used + account.reserved == len(jobs) * MILLION
        answered_before = len(granted)

    began = asyncio.get_running_loop().time()
    async with http() as session, sample_reports(auditor, look) as samples:
        callers = [Caller(session, shared_pair.urls[n % 2], "tight", f"s-{n}") for n in range(CALLERS)]
        await asyncio.gather(*map(call, callers))
    seconds = asyncio.get_running_loop().time() - began
    with capsys.disabled():
        print(f"\n{CALLERS} callers: {seconds:.1f} s, {len(samples)} readings, refusals {dict(refusals)}", end=" ")

    jobs = shared_pair.sandbox.jobs()
    assert len(granted) == len(set(granted)) == QUOTA
    assert {job["id"] for job in jobs} == set(granted)
    assert refusals["quota_exceeded"] == CALLERS - QUOTA and refusals["too_many_jobs"] > 0
    assert most_at_once([job["created"] for job in jobs], QUICK_SECONDS) <= SLOTS
    report = (await auditor.read()).of("tight")
    assert (report.total("requests").used, report.total("requests").reserved) == (QUOTA * MILLION, 0)
    assert report.by_state() == {"settled": QUOTA}
    assert len(samples) > 5


async def test_a_session_with_a_quota_of_its_own_never_exceeds_it_on_two_proxies(
    shared_pair: Pair, auditor: Auditor
) -> None:
    """Its calls come at once and everywhere; some fail, some are cancelled, and what these took is there again."""
    sessions, calls, limit = 8, 30, 12

    def look(report: AuditReport) -> None:
        for bucket, account in report.of("several").accounts.items():
            assert not bucket.subject.startswith(SESSION_PREFIX) or sum(account) <= limit * MILLION, bucket

    async def call(caller: Caller, number: int) -> int:
        if number % 5 == 0:
            return (await caller.run("[[fault fail=internal_server_error]]")).status
        answer = await (caller.run(QUICK) if number % 2 else caller.submit("[[pace hold=IN_QUEUE]]"))
        if answer.status == 200 and not number % 2:
            assert (await caller.cancel(answer.body["request_id"])).status == 202
            await caller.finished(answer.body["request_id"])
            return 0
        assert answer.status in (200, 402), answer
        return answer.status

    async with http() as session, sample_reports(auditor, look):
        quotas = (SessionQuota("requests", limit * MILLION),)
        first = [Caller(session, shared_pair.urls[0], "several", f"s-{n}", quotas=quotas) for n in range(sessions)]
        second = [Caller(session, shared_pair.urls[1], "several", one.subject, token=one.token) for one in first]
        both = list(zip(first, second, strict=True))
        done = [asyncio.gather(*(call(pair[n % 2], n) for n in range(calls))) for pair in both]
        for pair, statuses in zip(both, await asyncio.gather(*done), strict=True):
            ran = statuses.count(200)
            while (answer := await pair[ran % 2].run(QUICK)).status == 200:
                ran += 1
            assert (ran, answer.error_type, answer.body["scope"]) == (limit, "quota_exceeded", "session")
            assert answer.headers["quota"] == '"requests";r=0'
    report = (await auditor.read()).of("several")
    own = [account for bucket, account in report.accounts.items() if bucket.subject.startswith(SESSION_PREFIX)]
    assert own == [Account(limit * MILLION, 0)] * sessions
    assert report.total("requests").used == sessions * limit * MILLION


async def _give_and_override(pair: Pair) -> None:
    """What the operator gives in the test below, once both proxies know of it."""
    stores, ahead = SqlStores(pair.environ["PROXY_DATABASE_URL"]), time.time() + 86_400
    for number, (subject, amount) in enumerate([("carol", 1), ("carol", 3), ("", 10)]):
        given = Grant(f"{number:032x}", "every", subject, "requests", amount * MILLION, "paid", time.time(), ahead)
        await stores.grants.add(given, by=AUTHOR)
    limits = {"quotas": [{"per": "subject", "unit": "requests", "limit": 8, "window": lasting_window()}]}
    row = OverrideRow("every", "dave", None, limits, ahead)
    assert await stores.directory.put_override(row, time.time(), 9, by=AUTHOR)
    await stores.close()
    async with http() as session:
        dave = [Caller(session, url, "every", "dave") for url in pair.urls]

        async def is_known() -> bool:
            shown = [(await one.facts()).body for one in dave]
            return all(len(one["grants"]) == 1 and 8 in [quota["limit"] for quota in one["quotas"]] for one in shown)

        await wait_until_async(is_known, "the proxies do not know of the override and the grants")


async def test_of_accounts_of_every_kind_the_smallest_decides(shared_pair: Pair, auditor: Auditor) -> None:
    """A subject's quota, one of a session, one with two grants, an override, and an address; then all of the tenant.

    Five hundred calls come at once; some fail, and what these took is there again.
    """
    await _give_and_override(shared_pair)
    may = {"alice": (5, "subject"), "bob": (3, "session"), "carol": (5 + 4, "subject"), "dave": (8, "subject")}
    may["guests"] = (6, "ip")
    limits = [(SESSION_PREFIX, 3), (ADDRESS_PREFIX, 6), ("alice", 5), ("bob", 3), ("carol", 5), ("dave", 8)]

    def look(report: AuditReport) -> None:
        for bucket, account in report.of("every").accounts.items():
            # What a grant pays stands on the grant's own account: none has more than ten.
            limit = next((most for name, most in limits if bucket.subject.startswith(name)), 10)
            assert sum(account) <= (limit if bucket.subject else 60) * MILLION, (bucket, account)

    async def call(caller: Caller, number: int) -> int:
        answer = await caller.run("[[fault fail=internal_server_error]]" if number % 5 == 0 else QUICK)
        assert answer.status in (200, 402, 500, 503), answer
        return answer.status

    async with http() as session, sample_reports(auditor, look):
        one, other = shared_pair.urls
        quotas = {"bob": (SessionQuota("requests", 3 * MILLION),)}
        first = {name: Caller(session, one, "every", name, quotas=quotas.get(name, ())) for name in may}
        callers = {name: [caller, replace(caller, url=other)] for name, caller in first.items()}
        callers["guests"] = [_guest(session, url) for url in shared_pair.urls for _ in range(20)]
        burst = {name: [call(some[n % len(some)], n) for n in range(CALLERS // 5)] for name, some in callers.items()}
        done = await asyncio.gather(*(asyncio.gather(*calls) for calls in burst.values()))
        for (name, some), statuses in zip(callers.items(), done, strict=True):
            ran = statuses.count(200)
            while (answer := await some[ran % len(some)].run(QUICK)).status == 200:
                ran += 1
            assert (ran, answer.error_type, answer.body["scope"]) == (may[name][0], "quota_exceeded", may[name][1]), (
                name
            )
        others = [Caller(session, shared_pair.urls[n % 2], "every", f"s-{n}") for n in range(CALLERS // 5)]
        answers = await asyncio.gather(*(one.run(QUICK) for one in others))
        left = 60 + 10 - sum(number for number, _ in may.values())
        assert Counter(one.status for one in answers) == {200: left, 402: len(others) - left}
        assert {one.body["scope"] for one in answers if one.status == 402} == {"tenant"}
    report = (await auditor.read()).of("every")
    of_grants = [account for bucket, account in report.accounts.items() if bucket.subject.startswith(GRANT_PREFIX)]
    assert sorted(of_grants) == [Account(MILLION), Account(3 * MILLION), Account(10 * MILLION)]
    assert report.total("requests") == Account(60 * MILLION)
    assert report.by_state()["settled"] == 60 + 10


def _guest(session: aiohttp.ClientSession, url: str) -> Caller:
    """A guest of its own; all of them come from one address."""
    token, guest = Sessions((Secret(SECRET),), SystemClock()).mint("every", new_guest_name(), 3600, guest=True)
    return Caller(session, url, "every", guest.subject, token=token)


@dataclass
class WatchedCaller(Caller):
    """A caller whose calls can be seen to arrive."""

    sandbox: SandboxControl

    async def has_reached_fal(self, prompt: str) -> bool:
        received = await asyncio.to_thread(self.sandbox.requests)
        return any(one["json"] and one["json"].get("prompt") == prompt for one in received)


# Every way in which a call can end, and whether it is to be booked.


async def run_to_its_end(caller: Caller) -> None:
    assert (await caller.run(QUICK)).status == 200


async def stream_to_its_end(caller: Caller) -> None:
    assert await caller.stream(QUICK) > 1


async def watch_a_job(caller: Caller) -> None:
    await caller.finished(await submit(caller, QUICK))


async def leave_a_job_alone(caller: Caller) -> None:
    await submit(caller, QUICK)


async def be_refused_in_a_run(caller: Caller) -> None:
    assert (await caller.run(f"{QUICK} [[fault fail=content_policy_violation]]")).status == 422


async def fail_in_a_run(caller: Caller) -> None:
    assert (await caller.run(f"{QUICK} [[fault fail=internal_server_error]]")).status == 500


async def time_out_at_fal(caller: Caller) -> None:
    assert (await caller.run(f"{QUICK} [[fault fail=generation_timeout]]")).status == 504


async def be_refused_in_a_job(caller: Caller) -> None:
    assert (await caller.finished(await submit(caller, f"{QUICK} [[fault fail=image_too_small]]"))).body["error"]


async def fail_in_a_job_left_alone(caller: Caller) -> None:
    await submit(caller, f"{QUICK} [[fault fail=runner_disconnected]]")


async def be_turned_away_at_the_queue(caller: Caller) -> None:
    assert (await caller.submit("[[fault status=503]]")).status == 503


async def cancel_before_the_start(caller: Caller) -> None:
    assert (await caller.cancel(await submit(caller, "[[pace hold=IN_QUEUE]]"))).status == 202


async def lose_the_answer_to_a_submit(caller: Caller) -> None:
    assert (await caller.submit(f"{QUICK} [[fault drop=lost]]")).error_type == "upstream_ambiguous"


async def time_out_at_a_gateway(caller: Caller) -> None:
    assert (await caller.run("[[fault nginx=504]]")).error_type == "upstream_ambiguous"


async def hang_up_in_a_run(caller: WatchedCaller) -> None:
    prompt = f"[[pace run_seconds=600]] {caller.subject}"
    running = asyncio.create_task(caller.run(prompt))
    # Before it has left the proxy a call is free.
    await wait_until_async(lambda: caller.has_reached_fal(prompt), "the call did not reach fal")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def hang_up_in_a_stream(caller: Caller) -> None:
    await caller.begin_stream("[[pace words_per_second=1]]")


BOOKED = [
    run_to_its_end, stream_to_its_end, watch_a_job, leave_a_job_alone, lose_the_answer_to_a_submit,
    time_out_at_a_gateway, hang_up_in_a_run, hang_up_in_a_stream,
]  # fmt: skip
RELEASED = [
    be_refused_in_a_run, fail_in_a_run, time_out_at_fal, be_refused_in_a_job, fail_in_a_job_left_alone,
    be_turned_away_at_the_queue, cancel_before_the_start,
]  # fmt: skip
EACH = 6


async def submit(caller: Caller, prompt: str) -> str:
    answer = await caller.submit(prompt)
    assert answer.status == 200, answer
    request_id: str = answer.body["request_id"]
    return request_id


async def test_the_ledger_has_the_cost_of_a_call_however_it_ends(shared_pair: Pair, auditor: Auditor) -> None:
    ends: list[Callable[[WatchedCaller], Awaitable[None]]] = [*BOOKED, *RELEASED] * EACH
    random.Random(11).shuffle(ends)
    limit, began = asyncio.Semaphore(25), time.time()

    async def call(caller: WatchedCaller, end: Callable[[WatchedCaller], Awaitable[None]]) -> None:
        async with limit:
            await end(caller)

    async with http() as session, sample_reports(auditor, lambda _: None):
        callers = [
            WatchedCaller(session, shared_pair.urls[n % 2], "wide", f"{n}", shared_pair.sandbox)
            for n in range(len(ends))
        ]
        await asyncio.gather(*map(call, callers, ends))
    async with start_successor(shared_pair.environ) as successor:
        await successor.settle_everything()
        assert await successor.ledger.open_jobs() == []
        assert await successor.counters.in_use("tenant:wide", successor.clock.now()) == 0
        # All slots are free but those of submits whose answer was lost: fal may still run them.
        assert await successor.counters.in_use("tenant:wide", began) == EACH
        (usage,) = await successor.ledger.usage("wide", None, 0.0, successor.clock.now(), frozenset())

    report = (await auditor.read()).of("wide")
    report.check()
    came_to = {entry.subject: entry.state for entry in report.entries}
    assert came_to == {f"{n}": "settled" if end in BOOKED else "released" for n, end in enumerate(ends)}
    assert report.total("requests") == Account(used=len(BOOKED) * EACH * MILLION, reserved=0)
    assert (usage.calls, usage.used["requests"]) == (len(BOOKED) * EACH, len(BOOKED) * EACH * MILLION)


def most_at_once(starts: list[float], seconds: float) -> int:
    """How many intervals of one length overlap at most."""
    # At the same moment an end comes before a beginning.
    changes = sorted([(start, 1) for start in starts] + [(start + seconds, -1) for start in starts])
    return max(accumulate(change for _, change in changes))
