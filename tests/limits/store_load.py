"""Callers of every kind who go on while a store fails, and what must be true of their calls when it is back."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from proxy.limits.quotas import MILLION
from proxy.sandbox.request_log import RECORDED_REQUESTS
from proxy.stores.ledger import Account
from tests.limits.callers import QUICK, Answered, Caller
from tests.support.audit import AuditReport, Entry
from tests.support.sandbox import SandboxControl
from tests.support.waiting import wait_until_async

SUBMITTERS, RUNNERS, STREAMERS = 12, 4, 3
#: How long a caller waits before it repeats what was refused.
PAUSE_SECONDS = 0.2
#: A proxy holds no refusal longer than this, with a margin for a busy machine.
LONGEST_REFUSAL_SECONDS = 10.0 + 30
#: No answer takes longer. A longer wait means that a retry waits for a call that has already ended.
LONGEST_ANSWER_SECONDS = 15.0 + 30


@dataclass
class Call:
    """What its caller knows of one call. The subject is its name, in the ledger and in fal's record."""

    subject: str
    kind: str
    key: str | None
    succeeded: bool = False
    request_id: str | None = None
    is_cancelled: bool = False

    @property
    def prompt(self) -> str:
        return f"{self.subject} {QUICK}"

    @property
    def headers(self) -> dict[str, str]:
        return {"idempotency-key": self.key} if self.key else {}

    def send(self, caller: Caller) -> Coroutine[Any, Any, Answered]:
        if self.kind == "stream":
            return caller.read_stream(self.prompt)
        return (caller.submit if self.kind == "submit" else caller.run)(self.prompt, **self.headers)


@dataclass
class Load:
    """Callers of some proxies, each call by a subject of its own, and each of its steps at the next proxy."""

    session: aiohttp.ClientSession
    urls: Sequence[str]
    calls: dict[str, Call] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)
    slowest_answer: float = 0.0
    slowest_refusal: float = 0.0
    is_over: bool = False

    def __post_init__(self) -> None:
        self._turns = itertools.cycle(self.urls)

    def caller(self, call: Call) -> Caller:
        return Caller(self.session, next(self._turns), "acme", call.subject)

    async def ask(self, question: Coroutine[Any, Any, Answered], *expected: int) -> Answered:
        """Ask a proxy. What is neither expected nor a documented refusal fails the test."""
        began = time.monotonic()
        answer = await question
        self.slowest_answer = max(self.slowest_answer, time.monotonic() - began)
        self.seen[answer.error_type or "ok"] += 1
        if answer.status in expected:
            return answer
        self.slowest_refusal = max(self.slowest_refusal, time.monotonic() - began)
        assert (answer.status, answer.error_type) in ((503, "store_unavailable"), (500, "upstream_ambiguous")), answer
        assert answer.status == 500 or answer.body["retry_after"] == int(answer.headers["retry-after"]) >= 1, answer
        return answer

    async def call_until_over(self, kind: str, worker: int) -> None:
        for number in itertools.count():
            if self.is_over:
                return
            key = None if kind == "stream" or (kind == "run" and number % 2) else "one"
            call = Call(f"{kind}-{worker}-{number}", kind, key)
            self.calls[call.subject] = call
            await self._make(call)
            if call.request_id is not None:
                await self._follow(call, is_cancelled=number % 4 == 1)

    async def _make(self, call: Call) -> None:
        """Make a call, again while it is refused; and repeat it, when it has succeeded, if it has a key."""
        answer = await self.send(call)
        while answer.status == 503 and not self.is_over:
            await asyncio.sleep(PAUSE_SECONDS)
            answer = await self.send(call)
        if call.key and answer.status == 200:
            await self.send(call)

    async def send(self, call: Call) -> Answered:
        """Send a call, or its repetition: both have the same outcome."""
        answer = await self.ask(call.send(self.caller(call)), 200)
        if answer.status == 200:
            call.succeeded = True
            if call.kind == "submit":
                assert call.request_id in (None, answer.body["request_id"]), (call, answer)
                call.request_id = answer.body["request_id"]
        return answer

    async def _follow(self, call: Call, *, is_cancelled: bool) -> None:
        """Poll a job to its end, or cancel it."""
        assert call.request_id is not None
        if is_cancelled:
            call.is_cancelled = True
            await self.ask(self.caller(call).cancel(call.request_id), 202, 400)
        while not self.is_over:
            status = await self.ask(self.caller(call).status(call.request_id), 200, 202)
            if status.body.get("status") == "COMPLETED":
                await self.ask(self.caller(call).result(call.request_id), *((200, 499) if is_cancelled else (200,)))
                return
            await asyncio.sleep(0.1)

    async def finish(self, sent: Counter[str]) -> None:
        """Let callers who were not given their job get it, and follow each job to its end.

        Some at once: a thousand polls at the same moment would wait for a connection for longer than a caller may.
        """
        turns = asyncio.Semaphore(20)
        await asyncio.gather(*(self._finish(call, turns) for call in self.calls.values() if call.subject in sent))

    async def _finish(self, call: Call, turns: asyncio.Semaphore) -> None:
        async with turns:
            await self._finish_one(call)

    async def _finish_one(self, call: Call) -> None:
        if call.key and not call.succeeded:
            answer = await call.send(self.caller(call))
            # The outcome of a run that could not be kept is unknown; the run is not made again.
            assert answer.status == 200 or (call.kind, answer.error_type) == ("run", "upstream_ambiguous"), answer
            call.request_id = answer.body.get("request_id") if call.kind == "submit" else None
        if call.request_id is not None:
            for url in self.urls:
                assert (await Caller(self.session, url, "acme", call.subject).finished(call.request_id)).status == 200


@asynccontextmanager
async def loading(session: aiohttp.ClientSession, urls: Sequence[str]) -> AsyncIterator[Load]:
    load = Load(session, urls)
    kinds = ("submit",) * SUBMITTERS + ("run",) * RUNNERS + ("stream",) * STREAMERS
    workers = [asyncio.create_task(load.call_until_over(kind, worker)) for worker, kind in enumerate(kinds)]
    try:
        yield load
    finally:
        load.is_over = True
        await asyncio.gather(*workers)


def sent(sandbox: SandboxControl) -> Counter[str]:
    """How often each subject's call was sent to fal."""
    record = sandbox.requests()
    assert len(record) < RECORDED_REQUESTS, "the record has forgotten the first of them"
    return Counter(one["json"]["prompt"].split()[0] for one in record if one["method"] == "POST")


async def check_at_rest(
    load: Load, sandbox: SandboxControl, read: Callable[[], Coroutine[Any, Any, AuditReport]]
) -> AuditReport:
    """Require that no call was lost, made twice, given away or charged for nothing, and that nothing stays taken."""
    subjects = sent(sandbox)
    await load.finish(subjects)
    assert sent(sandbox) == subjects and set(subjects.values()) == {1}, "a repetition was another call"

    async def is_settled() -> bool:
        return not any(entry.is_open for entry in (await read()).entries)

    async def is_idle() -> bool:
        callers = [Caller(load.session, url, "acme", "last") for url in load.urls]
        return not any([await caller.in_flight() for caller in callers])

    await wait_until_async(is_settled, "something is still reserved")
    await wait_until_async(is_idle, "a lease is still held")
    report = await read()
    report.check()
    _check_entries(load, subjects, report.entries)
    assert report.total("requests") == Account(used=report.by_state()["settled"] * MILLION, reserved=0)
    assert all(account.reserved == 0 for account in report.accounts.values())
    return report


def _check_entries(load: Load, subjects: Counter[str], entries: Sequence[Entry]) -> None:
    """Compare what fal got, what its callers know and what the ledger says, call by call."""
    for call in load.calls.values():
        own = [entry for entry in entries if entry.subject == call.subject]
        charged = [entry for entry in own if entry.state == "settled"]
        # A job that was cancelled before it ran is free; what was refused leaves at most a reservation undone.
        is_free = call.is_cancelled and [entry.state for entry in own if entry.request_id] == ["released"]
        assert len(charged) == (call.subject in subjects and not is_free), (call, own)
        assert not call.succeeded or call.subject in subjects, call
        assert {entry.request_id for entry in own} - {None} == {call.request_id} - {None}, (call, own)
