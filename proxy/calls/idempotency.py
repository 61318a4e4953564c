"""Idempotency-Key: the first outcome of a call is kept, and a caller who sends the same key again gets that.

A key belongs to one caller, and to one body. While the first call runs, later ones wait for it, in this process or in
another. What was refused before anything reached fal frees the key again. A call whose answer was lost is never made a
second time: the next try gets the job if fal gave its id, and otherwise the same `upstream_ambiguous`.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson

from proxy.calls.call import KEY_HEADER, Call, Outcome
from proxy.calls.outcome_notes import OutcomeNotes
from proxy.clock import Clock
from proxy.errors import (
    AcceptanceDeferred,
    InvalidInput,
    ProxyError,
    StoreUnavailable,
    UpstreamAmbiguous,
)
from proxy.jobs.settlement import parse_document
from proxy.limits.quotas import new_job_id
from proxy.stores.idempotency import Claim, IdempotencyStore
from proxy.stores.ledger import Job, Ledger
from proxy.targets import Kind

KEPT_SECONDS = 86_400.0
#: Larger answers are not kept; only runs could have them.
MOST_KEPT_BYTES = 1024 * 1024
#: How often and how long a call waits for one with the same key in another process.
LOOK_SECONDS, PATIENCE_SECONDS = 0.2, 60.0
#: A call is booked before its answer is kept: only when none comes for a while after that, it was lost.
LOOKS_AFTER_END = 5
#: A call that no process makes any more is over. One that was only frozen takes its leases again within two seconds.
LOOKS_WHILE_IDLE = 15
#: A key whose job was never even noted is free for the next one after this: longer than a slow database may take for
#: the claim and for the reservation, so that the first call is not still to come.
ABANDONED_SECONDS = 30.0
#: And one whose job was released: its answer, if it is one to be kept, follows sooner. Also one without a job whose
#: process is gone.
RELEASED_SECONDS = 10.0
#: How long a caller waits for an answer when the process ends.
LAST_SECONDS = 0.1
_AMBIGUOUS = "The first call with this Idempotency-Key may have reached fal, and its answer was lost."

Execute = Callable[[Call], Awaitable[Outcome]]
Recover = Callable[[Job], Awaitable[Outcome]]


class Idempotency:
    """Keeps outcomes by key.

    Args:
        is_idle: whether the process that made a job's call is gone.
    """

    def __init__(
        self, store: IdempotencyStore, ledger: Ledger, is_idle: Callable[[Job], Awaitable[bool]], clock: Clock
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._is_idle = is_idle
        self._clock = clock
        self._since = clock.now()
        self._running: dict[tuple[str, str, str], asyncio.Task[Outcome]] = {}
        self._notes = OutcomeNotes(store)

    async def run(
        self, key: str, call: Call, execute: Execute, on_replay: Callable[[], Awaitable[None]], recover: Recover
    ) -> Outcome:
        """Make a call once.

        Args:
            call: with its input.
            execute: makes the call, under the job id that it has then.
            on_replay: is asked before a repeated call is answered, and may refuse.
            recover: answers from a job that fal has.

        Raises:
            InvalidInput: the key was used with another body.
            UpstreamAmbiguous: the outcome of the first call cannot be known.
            ProxyError: whatever `execute` and `on_replay` raise.
        """
        claim = _new_claim(key, call, self._clock.now())
        call = call._replace(job_id=claim.job_id)
        while True:
            try:
                holder = await self._store.claim(claim, self._clock.now() - KEPT_SECONDS)
            except StoreUnavailable:
                self._notes.free_later(claim)
                raise
            if holder is None:
                return await self._first(claim, call, execute)
            if holder.body_hash != claim.body_hash:
                problem = "This Idempotency-Key was used with another body; use a new one."
                raise InvalidInput([{"loc": ["header", KEY_HEADER], "msg": problem, "type": "idempotency_key_reused"}])
            await on_replay()
            outcome = await self._replay(claim, holder, call, execute, recover)
            if outcome is not None:
                return outcome

    async def is_known(self, key: str, call: Call) -> bool:
        """Return whether the caller of a call used a key before.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        now = self._clock.now()
        held = await self._store.find(_new_claim(key, call, now))
        return held is not None and held.created_at >= now - KEPT_SECONDS

    async def _first(self, claim: Claim, call: Call, execute: Execute) -> Outcome:
        """Make the call, whether or not the caller stays: it may come back for the outcome."""
        place = _place_of(claim)
        task = asyncio.create_task(self._execute(claim, call, execute))
        self._running[place] = task
        task.add_done_callback(lambda _: self._running.pop(place, None))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            # The process ends. An answer that is there already is given: it may wait to be booked, and then to be kept.
            for _ in range(2):
                task.cancel()
                await asyncio.wait({task}, timeout=LAST_SECONDS)
            if not task.done():
                raise
            return task.result()

    async def _execute(self, claim: Claim, call: Call, execute: Execute) -> Outcome:
        try:
            outcome = await execute(call)
        except AcceptanceDeferred:
            # The key stays taken, and leads to the job as soon as its id is written down.
            raise
        except UpstreamAmbiguous as problem:
            await self._notes.keep(claim, {"ambiguous": problem.message})
            raise
        except ProxyError:
            await self._notes.free(claim)
            raise
        # What ends in another way, when this process is stopped for example, may have reached fal: the key stays taken,
        # and the next one finds the outcome in the ledger.
        if _is_final(outcome):
            await self._notes.keep(claim, _to_store(outcome))
        else:
            await self._notes.free(claim)
        return outcome

    async def close(self) -> None:
        """End the calls that still run; the ledger books each, as it may have reached fal."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._notes.close()

    async def _replay(
        self, claim: Claim, holder: Claim, call: Call, execute: Execute, recover: Recover
    ) -> Outcome | None:
        """Give the outcome of the first call; None if it was refused meanwhile, and the key is free again."""
        running = self._running.get(_place_of(claim))
        if running is not None:
            return _mark_replayed(await asyncio.shield(running))
        over = gone = 0
        for _ in range(round(PATIENCE_SECONDS / LOOK_SECONDS)):
            if holder.answer is not None:
                return _mark_replayed(_from_store(holder.answer, call))
            job = await self._ledger.get(holder.job_id)
            if job is not None and job.request_id is not None:
                return _mark_replayed(await recover(job))
            over += job is not None and job.is_booked
            gone += await self._is_gone(holder, job)
            is_gone = gone > LOOKS_WHILE_IDLE
            if over > LOOKS_AFTER_END or (is_gone and job is not None and job.state == "reserved"):
                break
            if (job is None or job.state == "released") and await self._takes_over(claim, holder, job, is_gone):
                return await self._first(claim, call, execute)
            await asyncio.sleep(LOOK_SECONDS)
            found = await self._store.find(claim)
            if found is None:
                return None
            holder = found
        raise UpstreamAmbiguous(_AMBIGUOUS)

    async def _is_gone(self, holder: Claim, job: Job | None) -> bool:
        """Return whether no process makes the call of a key any more; False if it got beyond its reservation."""
        if job is not None and job.state != "reserved":
            return False
        if job is not None and await self._is_idle(job):
            return True
        return holder.created_at < self._since and await self._store.is_alone()

    async def _takes_over(self, claim: Claim, holder: Claim, job: Job | None, is_gone: bool) -> bool:
        """Take over the key of a call that was never sent; False if it may have been.

        A job is noted before anything is sent. So if there is none long after the claim, the process died before it
        sent anything; and a job that was released was refused.
        """
        seconds = ABANDONED_SECONDS if job is None and not is_gone else RELEASED_SECONDS
        since = holder.created_at if job is None else job.checked_at
        is_free = self._clock.now() - since > seconds
        return (self._notes.was_refused(holder) or is_free) and await self._store.take_over(claim, holder.job_id)


def _new_claim(key: str, call: Call, now: float) -> Claim:
    target = call.target
    given = [target.kind.value, target.endpoint, call.input]
    return Claim(
        tenant=call.caller.tenant.id,
        subject=call.caller.subject,
        key_hash=_digest(key.encode()),
        body_hash=_digest(orjson.dumps(given, option=orjson.OPT_SORT_KEYS)),
        job_id=new_job_id(now),
        created_at=now,
    )


def _place_of(claim: Claim) -> tuple[str, str, str]:
    return claim.tenant, claim.subject, claim.key_hash


def _is_final(outcome: Outcome) -> bool:
    """Return whether the same call would get the same answer again, or must not be made again."""
    return (outcome.status < 400 or outcome.status in (400, 404, 422)) and len(outcome.body) <= MOST_KEPT_BYTES


def _to_store(outcome: Outcome) -> dict[str, Any]:
    body = base64.b64encode(outcome.body).decode()
    return {"status": outcome.status, "headers": dict(outcome.headers), "body": body}


def _from_store(answer: Mapping[str, Any], call: Call) -> Outcome:
    """Read an outcome.

    Raises:
        UpstreamAmbiguous: that was the outcome.
    """
    if "ambiguous" in answer:
        raise UpstreamAmbiguous(answer["ambiguous"])
    status, body = answer["status"], base64.b64decode(answer["body"])
    document = parse_document(body) if call.target.kind is Kind.SUBMIT and status < 300 else None
    return Outcome(status, answer["headers"], body, document)


def _mark_replayed(outcome: Outcome) -> Outcome:
    return outcome._replace(headers={**outcome.headers, "idempotency-replayed": "true"})


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()
